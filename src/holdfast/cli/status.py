"""`holdfast status RUN`: the state of a run right now."""

import json as json_library
import time
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer

from holdfast.cli.output import ago, as_json, clock, size, tell
from holdfast.errors import DID_NOT_END, STILL_TRAINING, STOPPED_AFTER_SAVE
from holdfast.mirror.asking import said_by
from holdfast.run import asking, lease, outcome
from holdfast.run.directory import RunDirectory
from holdfast.run.lease import Holder
from holdfast.store import catalog
from holdfast.store.manifest import in_short
from holdfast.text import one_line, shown

# Of more ranks than these, those alone are shown that lag behind.
_MOST_RANKS = 16
_MOST_STEPS = 10
_SILENT_SECONDS = 5.0
_HANGS_SECONDS = 10.0
_TO_GO_ON = "holdfast train CONFIG --resume auto, or the script as it is"


def status(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="The output_dir of a training.")],
    ended: Annotated[bool, typer.Option("--outcome", help="How the last start ended, as an exit code.")] = False,
    json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Tell whether a run is alive, its step, rate, loss, last checkpoint, and what is pending."""
    directory = RunDirectory.open(run)
    alive = asking.living(directory) is not None
    if ended:
        _outcome(directory, lease.read(directory), alive=alive, json=json)
    known = said_by(directory, alive=alive)
    if json:
        as_json({"path": str(run), "alive": alive, **known})
        return
    try:
        lines = _lines(run, known, alive=alive)
    except (TypeError, ValueError, LookupError, AttributeError, OverflowError):
        # Another version wrote it, or somebody's script. Whether the run is alive does not depend on it.
        lines = [
            *_lines(run, {}, alive=alive),
            f"unknown     {directory.status} is not written as this Holdfast writes it",
        ]
    for line in lines:
        tell(shown(line))


def _outcome(directory: RunDirectory, holder: Holder | None, *, alive: bool, json: bool) -> NoReturn:
    """Tells how the last start ended, by one line and an exit code, for scripts that decide whether to start again."""
    last = outcome.read(directory)
    if last is not None and (holder is None or last.token != holder.token):
        last = None  # a later start was killed before it could say anything
    if alive:
        code, line = STILL_TRAINING, f"training (pid {holder.pid if holder else None}): it has not ended"
    elif last is None or last.ended_at is None:
        code = DID_NOT_END
        line = (
            "the last start has not said how it ended: it was killed, its machine failed, or it was an older Holdfast"
        )
    else:
        code = last.exit_code
        line = _end({"phase": "ended", "outcome": last.outcome, "code": code, "written_at": last.ended_at})
    if json:
        record = {} if last is None else asdict(last)
        as_json({"path": str(directory.root), "alive": alive, **record, "exit_code": code})
    else:
        tell(shown(line))
    raise typer.Exit(code)


def _lines(root: Path, known: dict[str, Any], *, alive: bool) -> list[str]:
    state = f"{known.get('phase', 'unknown')} (pid {known.get('pid')})" if alive else _end(known)
    total = f" of {known['max_steps']}" if known.get("max_steps") else ""
    lines = [f"state       {state}", f"step        {known.get('step', 0)}{total}"]
    if known.get("rate") and alive:
        lines.append(f"rate        {known['rate']:g} steps/s")
    if known.get("loss") is not None:
        lines.append(f"loss        {known['loss']:.4f}")
    lines += _ranks(known) if alive else []
    lines += [] if known.get("last_checkpoint") else _saved_earlier(root, known)
    if last := known.get("last_checkpoint"):
        lines.append(
            f"saved       {last['path']} ({size(last['bytes'])} in {last['seconds']:.2f} s, {ago(last['at'])})"
        )
        if not_finite := last.get("not_finite"):
            lines.append(f"not finite  it holds NaN or infinity in {shown(in_short(not_finite))}")
    if known.get("capture", "live") != "live":
        lines.append(f"capture     at boundaries only: {shown(str(known['capture']))}")
    if (body := known.get("body")) and alive:
        lines.append(f"body        {shown(str(body))}")
    if staging := known.get("staging"):
        lines.append(f"staging     {_staging(staging, known.get('staging_bytes', 0), alive=alive)}")
    if known.get("writes") == "buffered":
        lines.append("writes      through the page cache: the file system refuses direct writes")
    if copied := known.get("copied_buffers"):
        names = ", ".join(shown(name) for name in copied)
        lines.append(f"buffers     {size(sum(copied.values()))} copied at every boundary, because they change: {names}")
    if known.get("held_seconds"):
        lines.append(f"waited      {known['held_seconds']:.2f} s for saves in all")
    lines += [f"pending     {_pending(request)}" for request in known.get("pending", [])]
    if more := known.get("more_pending"):
        lines.append(f"pending     and {more:,} more")
    lines += _failures(known, alive=alive)
    lines += _mirror(known, alive=alive)
    if alive and known.get("written_at"):
        hangs = time.time() - known["written_at"] > _HANGS_SECONDS
        silence = ": it writes its status every second, so its storage or its host may hang" if hangs else ""
        lines.append(f"heard of    {ago(known['written_at'])}{silence}")
    return lines


def _staging(state: Any, bytes_there: int, *, alive: bool) -> str:
    """Returns what there is of the memory that snapshots of a GPU are copied into."""
    if state != "being made":
        return f"{size(bytes_there)}, {shown(str(state))}"
    return (
        "being made: until then a save takes what there is, and training may wait for it" if alive else "was being made"
    )


def _end(known: dict[str, Any]) -> str:
    """Returns how a run that is not alive has ended, in words."""
    if known.get("phase") != "ended":
        return "not running, it died"
    outcome, code = str(known.get("outcome", "")), known.get("code")
    when = ago(known["written_at"]) if known.get("written_at") else "some time ago"
    if not outcome:
        return "not running"
    is_good_stop = code == STOPPED_AFTER_SAVE or (outcome == "stopped" and code == 0)
    how = "stopped after a good save" if is_good_stop and outcome == "stopped" else shown(outcome)
    again = f"; to go on: start it again ({_TO_GO_ON})" if is_good_stop else ""
    return how + (f" ({code})" if code or is_good_stop else "") + f", {when}{again}"


def _saved_earlier(root: Path, known: dict[str, Any]) -> list[str]:
    """Returns a line for the newest checkpoint, where the present start has not saved yet."""
    newest = next((entry for entry in catalog.entries(root) if entry.manifest is not None), None)
    if newest is None or newest.manifest is None or newest.manifest.run != known.get("run", newest.manifest.run):
        return []
    return [f"saved       {newest.path} ({size(newest.manifest.size)}, by an earlier start)"]


def _failures(known: dict[str, Any], *, alive: bool) -> list[str]:
    reason = one_line(str(known.get("last_failure")))
    count = known.get("failed_saves", 0)
    if not (since := known.get("failing_since")):
        return [f"failed      {count} saves; the last: {reason}"] if count else []
    line = f"failing     no checkpoint since {clock(since)} ({ago(since)}): {reason}"
    if alive:
        again = known.get("next_try_at")
        wait = f"in {max(0.0, again - time.time()):.0f} s" if again else "when the next save is due or asked for"
        line += f"; next try {wait}"
    return [line, f"failed      {count} saves"] if count else [line]


def _mirror(known: dict[str, Any], *, alive: bool) -> list[str]:
    """Returns lines for the run's mirror: what is there, what waits, and since when and why it does not come."""
    mirror = known.get("mirror")
    if not mirror:
        return []
    there = mirror.get("mirrored")
    upto = f"up to step {there['step']}, {ago(there['at'])}" if there else "nothing yet"
    if doing := mirror.get("doing"):  # of a start, which has not claimed the run yet
        pulled = f" of step {mirror['step']}, {size(mirror['bytes'])} of {size(mirror['of'])}" if mirror["of"] else ""
        upto = f"{doing}{pulled}"
    lines = [f"mirror      {upto} ({mirror['url']})"]
    if uploading := mirror.get("uploading") if alive else None:
        done = f"{size(uploading['bytes'])} of {size(uploading['of'])}"
        lines.append(f"mirror      sending step {uploading['step']}: {done}")
    if waiting := mirror.get("waiting"):
        steps = ", ".join(str(each["step"]) for each in waiting[:_MOST_STEPS])
        more = ", ..." if len(waiting) > _MOST_STEPS else ""
        rest = mirror.get("more_waiting") or {"bytes": 0}
        total = size(sum(each["bytes"] for each in [*waiting, rest]))
        lines.append(f"mirror      on this disk only: step {steps}{more} ({total})")
    if since := mirror.get("failing_since"):
        again = mirror.get("next_try_at")
        wait = f"; next try in {max(0.0, again - time.time()):.0f} s" if again and alive else ""
        if alive and (end := mirror.get("gives_up_at")):
            wait += f", and this start ends in {max(0.0, end - time.time()):.0f} s if nothing comes"
        lines.append(f"mirror      failing since {clock(since)} ({ago(since)}): {one_line(str(mirror['why']))}{wait}")
    if taken_over := mirror.get("taken_over"):
        lines.append(f"mirror      {one_line(str(taken_over))}: nothing is sent any more")
    if not_deleted := mirror.get("not_deleted"):
        lines.append(f"mirror      what should go from it could not: {one_line(str(not_deleted))}")
    if not_sent := mirror.get("not_sent"):
        steps = ", ".join(map(str, not_sent[:_MOST_STEPS]))
        lines.append(f"mirror      pinned, and on this disk only (holdfast push sends it): step {steps}")
    if not_pinned := mirror.get("not_pinned"):
        steps = ", ".join(map(str, not_pinned[:_MOST_STEPS]))
        lines.append(f"mirror      pinned on this disk only, for it had been deleted there before: step {steps}")
    return lines


def _ranks(known: dict[str, Any]) -> list[str]:
    """Returns a line for each rank; of many, for those that lag behind."""
    ranks, step, rate = known.get("ranks", []), known.get("step", 0), known.get("rate") or 0.0
    lines = []
    for rank in ranks:
        # Each tells where it stands once a second.
        lags = rank["age"] > _SILENT_SECONDS or rank["step"] + 1 + 2 * rate < step
        if lags or len(ranks) <= _MOST_RANKS:
            waits = ", held for a save" if rank["held"] else ""
            where = (
                f"step {rank['step']}, {rank['phase']}{waits}, heard of {rank['age']:g} s ago on {shown(rank['host'])}"
            )
            lines.append(f"rank {rank['rank']:<6} {where}{', LAGS' if lags else ''}")
    if len(ranks) > _MOST_RANKS:
        lines.insert(0, f"ranks       {len(ranks) + 1}, {len(lines)} of them lag behind")
    return lines


def _pending(request: dict[str, Any]) -> str:
    label = f", label {json_library.dumps(request['label'])}" if request.get("label") else ""
    slot = f", slot {request['slot']}" if request.get("slot") else ""
    return f"{request.get('why')} ({ago(float(request.get('asked_at', 0)))}{label}{slot})"
