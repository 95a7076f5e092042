"""One training's saves, as the training thread sees them."""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import Any

from holdfast.capture.boundary import Boundary
from holdfast.capture.gate import Gate
from holdfast.capture.optimizer_hook import OptimizerHook
from holdfast.capture.snapshot import Snapshots, Subject
from holdfast.capture.staging_budget import StagingBudget
from holdfast.capture.throttle import Throttle
from holdfast.doors.request_queue import RequestQueue
from holdfast.doors.schedule import Minutes
from holdfast.engine.follow_saver import Member
from holdfast.engine.lead_saver import Leader
from holdfast.engine.pending_save import PendingSave
from holdfast.engine.saver import Service
from holdfast.engine.shutdown import Shutdown
from holdfast.errors import HoldfastError
from holdfast.ranks.channel import joined
from holdfast.ranks.heartbeat import LEFT, Heartbeat
from holdfast.ranks.launcher import stopped_after_save
from holdfast.ranks.membership import Membership
from holdfast.resume import open_run as opening
from holdfast.resume.open_run import Resumption
from holdfast.run.request import Answer, Request
from holdfast.settings import Settings
from holdfast.store.retention import RetentionPolicy


class Engine:
    """Saves the last boundary of one training whenever somebody asks. Use it as a context manager.

    Args:
        output_dir: The run directory.
        settings: How it is saved.
        keep: How many checkpoints may stay.
        resume: What to go on from, as `resume_from_checkpoint` has it.
        layout: The layout that this training reads.
        say: Prints a line for the user.

    Raises:
        RunBusyError: Another process trains in `output_dir`.
        NoCheckpointError: `resume` names something that cannot be resumed from.
    """

    def __init__(
        self,
        output_dir: Path,
        settings: Settings,
        keep: RetentionPolicy,
        resume: str | bool | None,
        layout: str,
        say: Callable[[str], None],
    ) -> None:
        self.settings = settings
        self._print = say
        self.channel = joined(settings.rank_timeout_seconds)
        if self.channel is None:
            opened = opening.open_single(output_dir, resume, layout, self.say)
        elif self.channel.rank == 0:
            opened = opening.open_rank0(self.channel, output_dir, resume, layout, self.say)
        else:
            opened = opening.open_follower(self.channel, output_dir)
        self.run = opened.run
        self.origin = Resumption(opened, self.channel, resume, layout, self.say)
        self._minutes = Minutes(settings.save_minutes) if settings.save_minutes else None
        self.gate = Gate(self._wake)
        self._stopping = Shutdown(self, settings.stop_grace_seconds)
        self._roll: Membership | None = None
        self._reception: RequestQueue | Heartbeat
        self._service: Service | Member
        self._set_up(keep)
        self._training_thread = threading.current_thread()
        self._subject: Subject | None = None
        self._snapshots: Snapshots | None = None
        self._hook: OptimizerHook | None = None
        self._number = 0
        self._leave_after: int | None = None
        self._left = False
        self.stop_requested = False
        self.finished = False

    def _set_up(self, keep: RetentionPolicy) -> None:
        if self.channel is not None and self.channel.rank:
            beat = Heartbeat(self.channel, self._describe, self.say)
            self._reception = beat
            self._service = Member(
                self.channel, beat, self.run, self.gate, self.say, self._on_stop, self._stopping.hurry
            )
            return
        reception = RequestQueue(self.run, self.settings.dynamic_checkpoint, self.say, self._wake, self._minutes)
        self._reception = reception
        served = (self.run, self.gate, reception, keep, self.say, self._on_stop, lambda: self._stopping.seconds_left)
        if self.channel is None:
            self._service = Service(*served)
            return
        self._roll = Membership(
            self.channel, reception.accept, lambda ranks: self.run.status.update(ranks=tuple(ranks)), self._on_left
        )
        self._service = Leader(self.channel, self._roll, *served)

    def __enter__(self) -> "Engine":
        self._reception.start()
        if self._roll is not None:
            self._roll.start()
        if not self._stopping.start():
            self.say("not in the main thread: signals do not ask for saves here; the other doors are open")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> bool:
        """Serves what still waits. True swallows an error that was the stop itself: a worker that it killed."""
        self._end_schedule()
        is_stop = self._stopping.explains(error)
        if is_stop:
            self.stop_requested = True  # whatever becomes of its save: training is not finished
        failed = error is not None and not is_stop and not isinstance(error, SystemExit)
        if isinstance(error, Exception) and not is_stop:
            self._save_before_it_leaves(error)
        elif self.finished and self.gate.boundary is not None:
            self._reception.look(self.gate.boundary.step, last=True)
        self._service.close(together=error is None)
        self._stopping.stop()
        if self._roll is not None:
            self._roll.close()
        self._left = error is not None
        self._reception.close()
        self._service.refuse("training ended before the next boundary")
        if self._hook is not None:
            self._hook.remove()
        outcome = f"failed: {kind.__name__}" if kind and failed else "stopped" if self.stop_requested else "finished"
        self.run.close(outcome, 1 if failed else self.exit_code)
        self._stopping.over()
        return is_stop

    @property
    def exit_code(self) -> int:
        """The exit code that tells how training ended: 0, 75 after a stop with a good save, 1 after one without."""
        if not self.stop_requested:
            return 0
        return stopped_after_save() if self._service.stop_saved else 1

    @property
    def stop_saved(self) -> bool | None:
        """Whether the save of the stop succeeded; None as long as there is no answer."""
        return self._service.stop_saved

    @property
    def unsaved(self) -> str:
        """What is lost if the process ends now, in words; empty where nothing is."""
        boundary = self.gate.boundary
        if self.rank or boundary is None or self._service.has_saved(boundary):
            return ""
        last = self.run.status.now.last_checkpoint
        there = f"that of step {last['step']}" if last else "none of this start"
        return f"step {boundary.step} was not saved; the last checkpoint is {there}"

    @property
    def last_answer(self) -> Answer | None:
        """What the last save answered."""
        return self._service.last_answer

    @property
    def nothing_new(self) -> str | None:
        """Before the first boundary: the checkpoint that was resumed from, or an empty text. None once there is one."""
        if self.gate.boundary is not None:
            return None
        return str(self.origin.chosen.path) if self.origin.chosen else ""

    @property
    def interrupted(self) -> bool:
        """Whether the stop was a Ctrl+C: somebody sits there and wants the model."""
        return self.stop_requested and self._stopping.interrupted_at is not None

    def begin(self, subject: Subject, step: int, max_steps: int) -> None:
        """Training begins.

        Args:
            subject: What is saved.
            step: Where it begins: 0 unless it is resumed.
            max_steps: Where it ends; 0 if that is not known.
        """
        reserve = StagingBudget(self.settings.staging_memory)
        self._subject = subject
        self._training_thread = threading.current_thread()
        throttle = Throttle(self.settings.save_rate_limit, self.settings.save_io_priority)
        self._snapshots = Snapshots(subject, self.gate, reserve.pool, throttle)
        self._hook = OptimizerHook(self.gate, self._snapshots.parameters())
        self.run.status.beat(step)
        self.run.status.update(phase="training", max_steps=max_steps, staging_bytes=reserve.pool.bytes)
        if self._minutes is not None:
            self._minutes.restart()
        if self.channel is not None:
            self.channel.prepare()
        self._service.start(self._snapshots, reserve)

    def reach(
        self, step: int, *, face: str = "update", last: bool = False, scheduled: str = "", look: bool = True
    ) -> None:
        """Marks a boundary. Waits only while an earlier one is still being taken.

        Args:
            step: The step of the boundary.
            face: How far a trainer has gone at this step.
            last: Whether training ends here; every door is looked at once more.
            scheduled: What made the schedule ask for a save of this very boundary; empty when it does not.
            look: Whether it is worth looking at the trigger file: once a step.
        """
        assert self._subject is not None and self._snapshots is not None, "begin() comes first"
        self._stopping.look()
        self.gate.leave()
        if self._leave_after is not None and step > self._leave_after:
            self.stop_requested = True
        self._number += 1
        copied = self._snapshots.copied_buffers
        recorded, fingerprint = self._subject.record(), self._snapshots.fingerprint()
        if self._snapshots.copied_buffers != copied:
            self.run.status.update(copied_buffers=dict(self._snapshots.copied_buffers))
        if (reason := self._snapshots.unreadable) and not self.gate.only_when_blocked:
            self._service.stand_still(reason)
        boundary = Boundary(step, face, {}, self._number, recorded, fingerprint, scheduled)
        self.run.status.beat(step)
        asked = look and self._reception.look(step, last=last)
        self.gate.reach(boundary, shut=bool(asked or scheduled) and self._service.serving)

    @contextmanager
    def update(self) -> Iterator[None]:
        """Encloses an update that no torch optimizer makes; it waits at the gate like any other."""
        self.gate.enter_update()
        yield

    def ask(self, request: Request) -> PendingSave:
        """Asks for a save from this process; the ticket learns what becomes of it."""
        ticket = self._service.tickets[request.id] = PendingSave(request.id, self._wait_for)
        self._reception.hear(request)
        return ticket

    def newly_published(self) -> Iterator[Answer]:
        """What was saved since the last call, for those who must see the finished directory."""
        published = self._service.published
        while published:
            yield published.popleft()

    def settle(self) -> None:
        """Returns when everything that was asked for so far is answered. Training stands still meanwhile."""
        self._service.settle()

    def finish(self) -> None:
        """Training has come to its end by itself; a stop that met the last step changes nothing any more."""
        self._end_schedule()
        self.settle()
        self.stop_requested = False
        self.finished = True

    def accept(self, request: Request) -> bool:
        """Takes a request in; tells whether it is on disk too."""
        return self._reception.accept(request)

    @property
    def rank(self) -> int:
        """Which of the processes that train together this is."""
        return 0 if self.channel is None else self.channel.rank

    @property
    def world_size(self) -> int:
        """How many processes train together."""
        return 1 if self.channel is None else self.channel.size

    @property
    def may_be_alone(self) -> bool:
        """Whether other ranks may have left after the save of a stop."""
        return self.channel is not None and self._service.stop_saved is not None

    def say(self, text: str) -> None:
        """Prints a line for the user. Whoever read our output may be gone: training goes on."""
        with suppress(OSError):
            self._print(f"rank {self.rank}: {text}" if self.rank else text)

    def announce(self, text: str) -> None:
        """Prints a line that is the same in all ranks, once."""
        if not self.rank:
            self.say(text)

    def abandon(self, why: str, code: int) -> None:
        """The process ends without its loop: answers who still waits, and closes the run."""
        self._reception.close()
        self._service.refuse(why)
        self.run.close(f"left: {why}", code)

    def _wait_for(self, answered: threading.Event, seconds: float | None) -> bool:
        if threading.current_thread() is not self._training_thread:
            return answered.wait(seconds)
        if self.gate.updating:
            raise HoldfastError(
                "training waits for a save in the middle of an update, where there is nothing whole to save",
                hint="call step() first, or do not wait",
            )
        with self.gate.blocked():
            self._wake()
            return self.gate.block_until(answered.is_set, seconds)

    def _save_before_it_leaves(self, error: Exception) -> None:
        """The last boundary is as good as ever, whatever has happened after it."""
        boundary = self.gate.boundary
        if not self.settings.save_on_exception or boundary is None:
            return
        name = type(error).__name__
        if self.gate.updating:
            self.say(f"{name} in the middle of an update: the state is that of no boundary, and is not saved")
            return
        if not self._service.has_saved(boundary):
            self.say(f"{name}: saving step {boundary.step} before it ends the training")
            self._reception.accept(Request("exception", why=name))

    def _end_schedule(self) -> None:
        if self._minutes is not None:
            self._minutes.end()

    def _describe(self) -> dict[str, Any]:
        """What rank 0 shows of this rank."""
        now, boundary = self.run.status.now, self.gate.boundary
        return {
            "step": now.step,
            "boundary": boundary.number if boundary else 0,
            "phase": LEFT if self._left else now.phase,
            "held": self.gate.blocked_since is not None,
        }

    def _on_left(self) -> None:
        """A rank is no more where the others need it. After the save of a stop nobody waits for it."""
        if isinstance(self._service, Leader) and self.may_be_alone:
            self._service.end("a rank has left")
            self._stopping.hurry()

    def _on_stop(self, after: int | None) -> None:
        if after is None:
            self.stop_requested = True
        elif self._leave_after is None:
            self._leave_after = after
        self._stopping.begin()
        self.run.status.update(phase="stopping")

    def _wake(self) -> None:
        self._service.wake()
