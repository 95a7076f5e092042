"""Whatever a file says, it moves no cursor, forges no line, and does not flood a screen."""

import ast
import dataclasses
import json
import os
import shutil
import tempfile
import threading
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from helpers.loops import train
from helpers.support import RUN, commit_checkpoint, holdfast
from helpers.tampering import with_intent
from helpers.trainings import Training
from holdfast.cli import app
from holdfast.errors import CheckpointError, RunBusyError
from holdfast.run.directory import RunDirectory
from holdfast.run.lease import Holder
from holdfast.run.outcome import Outcome
from holdfast.run.request import IN_NO_FILE, Answer, Request
from holdfast.run.run import Run
from holdfast.run.status import Status
from holdfast.text import MOST_BYTES, MOST_LINE
from security.test_lies import packed, unpacked

CONTROL = "\x1b[2J\x1b]0;title\x07\x9b31m\x7f\u202e\u200d\u2028\udcff\r\n"
EVIL = f"EVIL {CONTROL}fake [red]x[/red] [link=http://a]y[/link] "
LONG = EVIL + "x" * 100_000
# Where a file may not be as large as that.
SHORT = EVIL + "x" * 5_000
SEEN = r"EVIL \x1b[2J\x1b]0;title\x07\x9b31m\x7f\u202e\u200d"
ASKED_FOR = "c" * 32


def require_harmless(output: str) -> None:
    """Fails where a line that was printed is more than printable text, or was begun by a file."""
    for line in output.split("\n"):
        assert line.isprintable(), ascii(line[:300])
        assert len(line) <= MOST_LINE + 100
        assert not line.lstrip().startswith("fake")


def require_short(value: Any) -> None:
    """Fails where a text in JSON is longer than any may be."""
    if isinstance(value, str):
        assert len(value.encode(errors="surrogatepass")) <= MOST_BYTES
    elif isinstance(value, dict):
        for key, inner in value.items():
            require_short(key)
            require_short(inner)
    elif isinstance(value, list):
        for inner in value:
            require_short(inner)


def forged(value: object, text: str) -> Any:
    """The fields of an object of ours, every text replaced."""
    assert dataclasses.is_dataclass(value) and not isinstance(value, type)
    fields = dataclasses.asdict(value)
    return {key: text if isinstance(kept, str) and len(kept) != 32 else kept for key, kept in fields.items()}


def weights(*shape: int) -> bytes:
    """A tensor whose name, type and note are forged."""
    tensor = {"dtype": SHORT, "shape": shape, "data_offsets": [0, 8]}
    return packed({LONG: tensor, "__metadata__": {LONG: LONG}}, bytes(8))


def checkpoint(
    root: Path, step: int, layout: str = "transformers", shape: tuple[int, ...] = (2,), best: str | None = None
) -> Path:
    state: dict[str, Any] = {
        "best_model_checkpoint": best,
        "log_history": [{LONG: LONG}],
        "stateful_callbacks": {LONG: {}},
    }
    path = commit_checkpoint(
        root,
        step,
        {"model.safetensors": weights(*shape), "trainer_state.json": json.dumps(state).encode()},
        layout=layout,
        created=LONG,
        reasons=tuple({"id": LONG, "why": LONG, "door": LONG, "label": LONG} for _ in range(3)),
        boundary={"face": LONG, LONG: LONG},
        versions={LONG: LONG, "torch": LONG, LONG + "more": LONG},
        not_finite=(LONG, LONG + "more"),
        settings={LONG: LONG},
    )
    (path / (EVIL.replace("/", "-") + "x" * 120)).touch()
    return path


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run directory in which every text of every file is forged, and whose holder seems to be alive elsewhere."""
    forge(tmp_path / "run")
    return tmp_path / "run"


def forge(root: Path) -> None:
    directory = RunDirectory.create(root)
    token = "a" * 32
    (directory.control.path / "pins").mkdir()
    (directory.control.path / "pins" / (EVIL.replace("/", "-") + "x" * 120)).touch()
    checkpoint(root, 1)
    checkpoint(root, 2, LONG)
    checkpoint(root, 3, shape=(1, 2))
    damaged = checkpoint(root, 4)
    (damaged / "trainer_state.json").write_bytes(b"other")
    checkpoint(root, 7, best=LONG)
    bad = root / "checkpoint-5"
    shutil.copytree(damaged, bad)
    (bad / "MANIFEST.json").write_bytes(os.fsencode(LONG))
    (root / "axolotl_checkpoint.save").write_bytes(os.fsencode(EVIL))
    (root / "events.jsonl").write_bytes(json.dumps({"event": LONG, LONG: LONG}).encode() + b"\n" + os.fsencode(LONG))
    for name, content in {
        "lease": forged(Holder(RUN, token, 1, "host", "boot", 1, 1.0), LONG),
        "outcome": forged(Outcome(RUN, token, 1, 1, None, 1.0, "finished", 0, 2.0), SHORT),
        "status": {
            **forged(Status(RUN, 1), SHORT),
            "capture": SHORT,
            "body": SHORT,
            "failing_since": 1.0,
            "pending": [{"why": SHORT, "label": SHORT, "door": SHORT, "id": SHORT}] * 3,
            "copied_buffers": {SHORT: 1, SHORT + "more": 2},
            "last_checkpoint": {"path": SHORT, "bytes": 1, "seconds": 1, "at": 1, "not_finite": [SHORT, SHORT]},
            "ranks": [{"rank": 1, "step": 1, "phase": SHORT, "held": False, "age": 1.0, "host": SHORT}] * 3,
            SHORT: SHORT,
        },
    }.items():
        getattr(directory, name).path.write_text(json.dumps(content))
    asked = forged(Request("command", label="label", why="why", id=ASKED_FOR, asked_at=1.0), SHORT)
    del asked["at"], asked["slot"]  # the one is in no file, the other a name, or the request is none
    for name, request in {"b" * 32: {"door": SHORT}, ASKED_FOR: asked | {"door": "command"}}.items():
        (directory.requests.path / f"{name}.json").write_text(json.dumps(request))


@pytest.fixture
def answered(run: Path) -> Iterator[None]:
    """Somebody who answers each new request with a forged failure."""
    directory = RunDirectory.open(run)
    before = set(directory.requests.path.iterdir())
    ended = threading.Event()

    def answer() -> None:
        while not ended.wait(0.01):
            for path in set(directory.requests.path.glob("*.json")) - before:
                failed = forged(Answer(saved=False, path="p", error="e", digest="d", finite="f"), SHORT)
                failed |= {"saved": '"stop": true' in path.read_text()}
                content = {**failed, "request": path.stem, "not_finite": [SHORT], "not_carried": [SHORT, SHORT]}
                for name in IN_NO_FILE:
                    del content[name]
                (directory.answers.path / path.name).write_text(json.dumps(content))

    thread = threading.Thread(target=answer)
    thread.start()
    yield
    ended.set()
    thread.join()


VERBS: Mapping[str, tuple[str, ...]] = {
    "status": ("status", "run"),
    "status --outcome": ("status", "run", "--outcome"),
    "list": ("list", "run"),
    "verify": ("verify", "run"),
    "inspect": ("inspect", "run/checkpoint-1"),
    "verify a state": ("verify", "run/checkpoint-7"),
    "inspect damage": ("inspect", "run/checkpoint-5"),
    "diff": ("diff", "run/checkpoint-1", "run/checkpoint-3"),
    "diff damage": ("diff", "run/checkpoint-1", "run/checkpoint-4"),
    "pin": ("pin", "run/checkpoint-1"),
    "unpin": ("unpin", "run/checkpoint-1"),
    "prune": ("prune", "run", "--keep-last", "1", "--dry-run"),
    "prune what is not alive": ("prune", "dead", "--keep-last", "1", "--labelled", "--yes"),
    "export": ("export", "run/checkpoint-1", "weights"),
    "export another layout": ("export", "run/checkpoint-2", "weights"),
    "save": ("save", "run", "--wait", "--timeout", "30"),
    "stop": ("stop", "run", "--wait", "--timeout", "30"),
    "drill": ("drill", "--", "sh", "-c", "printf '\\033[2J\\n\\rsaid\\n'; exit 3"),
    "a name that a shell found": ("list", EVIL),
    "names that a shell found": ("list", "run", EVIL),
    "no verb": (EVIL,),
}
# What a file says of these is in what they print.
SHOWS = ("status", "list", "verify", "verify a state", "inspect", "diff", "export another layout", "save", "stop")


@pytest.mark.usefixtures("answered")
def test_security_s29_no_verb_prints_what_moves_a_cursor_or_has_no_end(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, record_property: Callable[[str, object], None]
) -> None:
    """Every text of every file of a run has terminal control and 100 KB; each verb runs, with `--json` and without."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))  # for what a drill leaves
    dead = tmp_path / "dead"
    shutil.copytree(run, dead)
    (dead / ".holdfast" / "lease.json").unlink()
    for name, argv in VERBS.items():
        plain = holdfast(*argv, cwd=tmp_path)
        require_harmless(plain.stdout + plain.stderr)
        assert "Traceback" not in plain.stderr, plain.stderr
        if name in SHOWS:
            assert SEEN in plain.stdout + plain.stderr, f"{name} shows nothing of it:\n{plain}"
        if name.startswith(("names", "no verb")):
            continue
        at = argv.index("--") if "--" in argv else len(argv)
        shutil.rmtree(tmp_path / "weights", ignore_errors=True)
        scripted = holdfast(*argv[:at], "--json", *argv[at:], cwd=tmp_path)
        require_harmless(scripted.stdout.replace(" ", "") + scripted.stderr)
        require_short(json.loads(scripted.stdout))
        assert scripted.returncode == plain.returncode
    assert "[red]x[/red] [link=http://a]y[/link]" in holdfast("status", run).stdout
    assert len(json.loads(holdfast("status", run, "--json").stdout)["pending"]) == 3
    facts = json.loads(holdfast("inspect", run / "checkpoint-1", "--json").stdout)
    assert (len(facts["reasons"]), len(facts["versions"]), len(facts["not_finite"])) == (3, 3, 2)
    record_property("injected", 2 * len(VERBS))


def test_security_s29_a_training_in_such_a_directory_says_so_in_lines_of_its_own(run: Path, tmp_path: Path) -> None:
    """A loop begins where all that is forged lies: first beside a holder that seems to be alive, then without one."""
    with pytest.raises(RunBusyError) as busy:
        Run.open(run)
    require_harmless(str(busy.value))
    assert SEEN in str(busy.value)

    (run / ".holdfast" / "lease.json").unlink()
    train(tmp_path / "own", 6, save_steps=6)
    shutil.copytree(tmp_path / "own" / "checkpoint-6", run / "checkpoint-6")
    said: list[str] = []
    train(run, 8, save_steps=8, say=said.append)
    for line in said:
        require_harmless(line)
        assert "\n" not in line
    for text in ("skipped checkpoint-2: its layout is 'EVIL", "checkpoint-6: step 6", f"request:{ASKED_FOR}"):
        assert any(text in line for line in said), said

    header, data = unpacked((run / "checkpoint-8" / "model.safetensors").read_bytes())
    first = next(name for name in header if name != "__metadata__")
    renamed = {LONG if name == first else name: entry for name, entry in header.items()}
    with_intent(run / "checkpoint-8", "model.safetensors", packed(renamed, data))
    with pytest.raises(CheckpointError, match="does not fit this training") as raised:
        train(run, 10, resume=str(run / "checkpoint-8"))
    require_harmless(str(raised.value))
    assert SEEN in str(raised.value)


def test_security_s29_so_does_a_configured_training(training: Training) -> None:
    """`holdfast train` begins where all that is forged lies, and with a configuration of such texts."""
    forge(training.run)
    changes: dict[str, Any] = {
        "max_steps": 2,
        "save_strategy": "steps",
        "save_steps": 2,
        "resume_from_checkpoint": "auto",
    }
    alive = training.start("--resume", "auto", **changes)
    assert alive.wait() == 1
    (training.run / ".holdfast" / "lease.json").unlink()
    process = training.start("--resume", "auto", **changes)
    process.wait()
    of_such_texts: dict[str, Any] = {"learning_rate": EVIL, EVIL: EVIL}
    wrong = training.start(**of_such_texts)
    assert wrong.wait() == 2, wrong.output
    expected = {SEEN: alive, "skipped checkpoint-2: its layout is 'EVIL": process, "EVIL \\x1b[2J": wrong}
    for text, ended in expected.items():
        assert text in ended.output, ended.output
        require_harmless(ended.output)
    assert "[red]x[/red]" in process.output


def test_no_verb_prints_past_the_one_place_that_escapes() -> None:
    folder = Path(app.__file__).parent
    for path in sorted(folder.glob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "print":
                constant = all(isinstance(argument, ast.Constant) for argument in node.args)
                assert path.name == "output.py" or constant, f"{path}:{node.lineno} prints what is not escaped"
