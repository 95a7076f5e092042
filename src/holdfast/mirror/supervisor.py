"""The mirror, as the training sees it: it keeps the mirror's process alive, and says what becomes of checkpoints."""

import logging
import os
import subprocess
import sys
import threading
import time
from contextlib import suppress
from typing import Any

from holdfast.log import RunLog
from holdfast.mirror import child, state
from holdfast.mirror.destination import END, LEFT, TRAINS, Assignment, Destination
from holdfast.mirror.queue import Answer, Queue, Queued
from holdfast.mirror.wanted import WantedList
from holdfast.run.run import Run
from holdfast.store import names, pins
from holdfast.text import one_line

_LOOK_SECONDS = 1.0
_LOOK_SECONDS_AT_END = 0.1
# A process that dies again and again is started less and less often.
_LONGEST_PAUSE_SECONDS = 60.0
# One that is there, and writes down nothing, hangs. The longest that a good one is silent are its pauses and tries.
_SILENT_SECONDS = 1800.0
# Of more that wait the number is shown: the status is written once a second, beside training.
_MOST_SHOWN = 100
# It ends at the end of its pipe; one that is deep in the kernel, at a disk that hangs, does not.
_ENDING_SECONDS = 2.0


class Supervisor:
    """Has the mirror's process run as long as a training does.

    Args:
        run: The open run, in rank 0.
        destination: The mirror.
        log: Takes lines for the user.
    """

    def __init__(self, run: Run, destination: Destination, log: RunLog) -> None:
        self._run = run
        self.destination = destination
        self._log = log
        self.queue = Queue(run.directory)
        self._wanted = WantedList(run.directory)
        self.process: subprocess.Popen[bytes] | None = None
        """The mirror's process; None where none is there."""
        self._pipe = threading.Lock()
        self._root = str(run.root.absolute())  # a relative path leads elsewhere once training works elsewhere
        self._begun_at = self._restart_at = 0.0
        self._deaths = self._deaths_in_a_row = 0
        self._dying: dict[str, Any] = {}
        self._looked_at = self._silence = 0.0
        self._said_at: float | None = None
        self._knows_of_step = False
        self._closing = threading.Event()
        self._looking = threading.Lock()
        self._awaited: dict[str, Queued] = {}
        self._newest_answered: Answer | None = None
        self._seen_to: set[str] = set()
        self._is_failing = False
        self._is_taken_over = False
        self._not_pinned: set[int] = set()
        self._thread = threading.Thread(target=self._watch, name="holdfast-mirror", daemon=True)

    def start(self) -> None:
        """Starts the process, and begins to watch it."""
        self.queue.forget_old_answers()
        with suppress(OSError):
            self._awaited = {queued.attempt: queued for queued in self.queue.waiting()}
        self._thread.start()

    def put(self, queued: Queued) -> None:
        """Queues a checkpoint. What the disk does not take is said, and is on this disk only.

        A later checkpoint that is mirrored makes up for it.
        """
        try:
            with self._looking:  # a look in between would take it for one that waits no more
                self.queue.put(queued)
                self._awaited[queued.attempt] = queued
        except OSError as error:
            self._run.journal.write("not mirrored", step=queued.step, why=f"it could not be queued: {error}")
            return
        self.poke()

    def need(self, queued: Queued) -> None:
        """Queues a checkpoint that another needs, once in a start: it may be of a time when there was no mirror.

        What is there already is found there.
        """
        if queued.attempt not in self._seen_to and queued.attempt not in self._awaited:
            self._seen_to.add(queued.attempt)
            self.put(queued)

    def poke(self, left: float | None = None) -> None:
        """Has the process look at once, and try again what has failed.

        Args:
            left: The seconds for which training can wait for it; None where there is no end.
        """
        self._write(b"\n" if left is None else LEFT + b"%.3f\n" % left)

    def _write(self, line: bytes) -> None:
        with self._pipe, suppress(OSError, ValueError):
            if self.process is not None and self.process.stdin is not None:
                self.process.stdin.write(line)

    def look(self) -> None:
        """Takes in what the process has said since: into status, journal and lines for the user."""
        with self._looking:
            self._keep_alive()
            if not self._knows_of_step and self._run.status.now.rate is not None:
                self._knows_of_step = True
                self._write(TRAINS)
            with suppress(OSError):
                waiting = pins.queued(self._run.directory.control)  # each is taken out once it is answered
                over = [queued for attempt, queued in self._awaited.items() if attempt not in waiting]
                answers = [(self.queue.answer_to(queued.attempt), queued) for queued in over]
                # Of several since the last look the journal has first which was answered first.
                for answer, queued in sorted(answers, key=lambda pair: pair[0].at if pair[0] is not None else 0.0):
                    self._awaited.pop(queued.attempt, None)
                    self._journal(queued, answer)
                    self._lives(answer is not None and answer.mirrored)
            self._lives(self.process is not None and time.monotonic() - self._begun_at > _LONGEST_PAUSE_SECONDS)
            self._tell_of_wanted()
            self._show()

    def _tell_of_wanted(self) -> None:
        """Says what has come from the mirror beside training, or will not come."""
        for wanted in self._wanted.all():
            if not wanted.is_over:
                continue
            name = names.checkpoint(wanted.step)
            if wanted.why:
                self._log.warning(
                    f"{name}, which is to stay, cannot be brought from the mirror: {one_line(wanted.why)}"
                )
            else:
                self._log.log(
                    logging.INFO,
                    f"pulled {name} of {self.destination.url}, which is to stay: {wanted.bytes:,} bytes in"
                    f" {wanted.seconds:.1f} s",
                )
                self._run.journal.write("pulled", step=wanted.step, bytes=wanted.bytes, seconds=wanted.seconds)
            with suppress(OSError):
                self._wanted.remove(wanted)

    def _journal(self, queued: Queued, answer: Answer | None) -> None:
        event: dict[str, Any] = {"step": queued.step, "sequence": queued.sequence}
        if answer is not None and answer.mirrored:
            newest = self._newest_answered
            if newest is None or (newest.term, newest.sequence) < (answer.term, answer.sequence):
                self._newest_answered = answer
            event |= {"term": answer.term, "bytes": answer.bytes, "seconds": answer.seconds}
            self._seen_to.add(queued.attempt)
            self._run.journal.write("mirrored", **event)
        else:
            lost = "it is in the queue no more: the disk was full, or the queue was damaged"
            self._run.journal.write("not mirrored", **event, why=answer.why if answer else lost)

    @property
    def waiting(self) -> list[Queued]:
        """The checkpoints that wait, in the order of commits."""
        return sorted(self._awaited.values(), key=lambda queued: queued.sequence)

    @property
    def mirrored(self) -> dict[str, Any] | None:
        """The newest checkpoint that is in the mirror, as its process or `holdfast push` says; None for none."""
        return self._with_answered(self._known()).get("mirrored")

    def _with_answered(self, known: dict[str, Any]) -> dict[str, Any]:
        """Returns what the process has said, with what another has sent."""
        newest, there = self._newest_answered, known.get("mirrored")
        if newest is None or (there and (there["term"], there["sequence"]) >= (newest.term, newest.sequence)):
            return known
        return {**known, "mirrored": newest.place()}

    def progress(self) -> str:
        """Returns what waits, and how far the one is that is being sent, in words."""
        known, waiting = self._known(), self.waiting
        steps = ", ".join(str(queued.step) for queued in waiting[:5]) + (", ..." if len(waiting) > 5 else "")
        text = f"waiting for the mirror: step {steps}"
        if uploading := known.get("uploading"):
            digits = 0 if uploading["of"] >= 10e6 else 3
            sent, of = (f"{uploading[key] / 1e6:,.{digits}f}" for key in ("bytes", "of"))
            text += f", {sent} of {of} MB of step {uploading['step']}"
        if known.get("failing_since") is not None:
            text += f"; it fails: {one_line(known['why'])}"
        return text

    def close(self) -> None:
        """Ends the process, whatever it is doing, and watches no more."""
        self._closing.set()
        if self._thread.is_alive():
            self._thread.join(_ENDING_SECONDS)
        self._end()

    def _end(self) -> None:
        """Has the process end, and waits for that, but not for long."""
        if (process := self._let_go()) is None:
            return
        try:
            process.wait(_ENDING_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            with suppress(subprocess.TimeoutExpired):
                process.wait(_ENDING_SECONDS)

    def _watch(self) -> None:
        while True:
            try:
                self.look()
            except Exception:  # noqa: BLE001 - without this thread nobody would start the process again
                threading.excepthook(threading.ExceptHookArgs((*sys.exc_info(), threading.current_thread())))
            if self._closing.wait(_LOOK_SECONDS):
                return

    def _keep_alive(self) -> None:
        """Starts the process where none is there, or one that hangs."""
        if self._closing.is_set():
            return
        if self.process is not None and self.process.poll() is None:
            self._end_if_silent(self.process)
            return
        now = time.monotonic()
        if self.process is not None:
            code = self.process.returncode
            self._let_go()
            self._run.journal.write("mirror process ended", code=code, deaths=self._deaths + 1)
            self._dies(now, f"ended ({code})")
        if now >= self._restart_at:
            self._start_process()

    def _end_if_silent(self, process: "subprocess.Popen[bytes]") -> None:
        """Kills a process that hangs: the next one goes on with what waits."""
        now, said_at = time.monotonic(), self._known().get("written_at")
        if said_at != self._said_at:
            self._silence = 0.0
        else:
            self._silence += min(now - self._looked_at, 2 * _LOOK_SECONDS)  # where all are stopped, nobody is silent
        self._looked_at, self._said_at = now, said_at
        if self._silence > _SILENT_SECONDS:
            self._silence = 0.0
            self._run.journal.write("mirror process hangs", seconds=_SILENT_SECONDS)
            process.kill()

    def _dies(self, now: float, how: str) -> None:
        """Takes in that the process is not there, and has to be started again: less and less often."""
        self._deaths += 1
        self._deaths_in_a_row += 1
        pause = min(_LOOK_SECONDS * 2.0 ** (self._deaths_in_a_row - 1), _LONGEST_PAUSE_SECONDS)
        self._restart_at = now + pause - _LOOK_SECONDS
        if self._deaths == 1:
            self._log.warning(f"the mirror's process has {how}, and is started again; training goes on")
        if self._deaths_in_a_row == 1:
            return
        since = self._dying.get("failing_since") or time.time()
        why = f"the mirror's process has {how}, {self._deaths_in_a_row} times in a row"
        self._dying = {"failing_since": since, "why": why, "next_try_at": time.time() + pause}

    def _lives(self, does: bool) -> None:
        """Takes in a sign that the process can work: what it has died of is over."""
        if does:
            self._deaths_in_a_row, self._dying = 0, {}

    def _let_go(self) -> "subprocess.Popen[bytes] | None":
        """Closes the pipe of the process, by which it ends, and returns the process."""
        with self._pipe, suppress(OSError):
            process, self.process = self.process, None
            if process is not None and process.stdin is not None:
                with suppress(OSError):
                    process.stdin.write(END)
                process.stdin.close()
        return process

    def _start_process(self) -> None:
        holder = self._run.lease.holder
        assignment = Assignment(self._root, holder.run, holder.token, self.destination)
        self._begun_at = time.monotonic()
        self._silence = 0.0
        self._knows_of_step = False
        try:
            process = child.start("holdfast.mirror.process", stdout=subprocess.DEVNULL, bufsize=0)
        except (OSError, RuntimeError) as error:  # the latter where the interpreter ends
            self._run.journal.write("mirror process ended", problem=str(error))
            self._dies(self._begun_at, f"not been started ({error})")
            return
        assert process.stdin is not None
        with suppress(OSError):  # it has ended, which the next look sees
            process.stdin.write(assignment.encode())
        os.set_blocking(process.stdin.fileno(), False)  # nothing of training ever waits for it
        self.process = process  # not before: whoever pokes it would come first
        if self._closing.is_set():
            self._end()  # nobody else does any more

    def _known(self) -> dict[str, Any]:
        """Returns what the process has said; nothing where it has said nothing, and an earlier start's has."""
        known = state.read(self._run.directory)
        ours = known and (known["url"], known["term"]) == (self.destination.url, self.destination.term)
        return {**(known if ours else {}), **self._dying}

    def _show(self) -> None:
        waiting = self.waiting
        shown: dict[str, Any] = {
            "url": self.destination.url,
            "term": self.destination.term,
            **self._with_answered(self._known()),
            "waiting": [queued.in_short() for queued in waiting[:_MOST_SHOWN]],
        }
        if more := waiting[_MOST_SHOWN:]:
            shown["more_waiting"] = {"count": len(more), "bytes": sum(queued.bytes for queued in more)}
        self._run.status.update(mirror=shown)
        self._tell(shown)

    def _tell_of_pins(self, shown: dict[str, Any]) -> None:
        """Says once of each that is pinned that it is on this disk only."""
        push = f"holdfast push {self._run.root} sends it"
        for key, why in (("not_pinned", f"{self.destination.url} had deleted it before"), ("not_sent", push)):
            for step in shown.get(key, ()):
                if step not in self._not_pinned:
                    self._not_pinned.add(step)
                    self._log.warning(f"{names.checkpoint(step)} is pinned, and is on this disk only: {why}")

    def _tell(self, shown: dict[str, Any]) -> None:
        """Says once that the mirror does not take checkpoints, and once that it does again."""
        if (why := shown.get("taken_over")) and not self._is_taken_over:
            self._is_taken_over = True
            self._run.journal.write("mirror taken over", why=why)
            self._log.warning(f"{one_line(why)}: what this training saves from now on is on this disk only")
        self._tell_of_pins(shown)
        failing = shown.get("failing_since") is not None
        if failing and not self._is_failing:
            self._run.journal.write("mirror failing", why=shown["why"])
            self._log.warning(
                f"nothing can be sent to {self.destination.url}: {one_line(shown['why'])}; it is tried again and again,"
                " and training goes on"
            )
        elif self._is_failing and not failing and shown.get("mirrored"):
            self._run.journal.write("mirror works again")
            self._log.log(logging.INFO, f"{self.destination.url} takes checkpoints again")
        self._is_failing = failing
