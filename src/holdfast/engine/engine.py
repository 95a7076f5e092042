"""One training's saves, as the training thread sees them."""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import TracebackType

from holdfast.arguments import AUTO
from holdfast.capture.boundary import Boundary
from holdfast.capture.gate import Gate
from holdfast.capture.snapshot import Snapshots
from holdfast.capture.subject import Subject
from holdfast.doors.request_queue import RequestIntake, RequestQueue
from holdfast.doors.schedule import Minutes
from holdfast.doors.signals import ends_training
from holdfast.engine import cost, mirroring
from holdfast.engine.bodies import Bodies
from holdfast.engine.capturing import Capturing
from holdfast.engine.failure import Failure
from holdfast.engine.follower import Follower
from holdfast.engine.hints import hints
from holdfast.engine.losses import Losses
from holdfast.engine.mirror_wait import MirrorWait
from holdfast.engine.on_published import Hook, OnPublished
from holdfast.engine.own_requests import OwnRequests
from holdfast.engine.peers import Alone, Peers, RankZero
from holdfast.engine.pending_save import PendingSave
from holdfast.engine.rehearsing import rehearsing
from holdfast.engine.saver import Saver
from holdfast.engine.session import Outcomes, Session
from holdfast.engine.shutdown import Shutdown
from holdfast.engine.stop import LEAVING_SECONDS, Stop
from holdfast.errors import FAILED, exit_code_of
from holdfast.layouts.layout import Layout
from holdfast.log import RunLog
from holdfast.ranks.channel import Channel, joined
from holdfast.ranks.heartbeat import Heartbeat
from holdfast.ranks.launcher import stopped_after_save
from holdfast.resume.open_run import Wish, open_run
from holdfast.run.rehearsal import output_dir_for
from holdfast.run.request import Answer, Request
from holdfast.run.status import StatusFile
from holdfast.settings import WITHOUT_MIRROR, Settings
from holdfast.store import files
from holdfast.store.retention import RetentionPolicy


class Engine:
    """Saves the last boundary of one training whenever somebody asks. Use it as a context manager.

    Args:
        output_dir: The run directory.
        settings: The settings of its saves.
        policy: The rules by which checkpoints stay.
        resume: The checkpoint to go on from, as `resume_from_checkpoint` has it.
        layout: The layout that this training reads.
        say: Takes each line for the user; without it they go to the application's logging, or are printed.

    Raises:
        RunBusyError: Another process trains in `output_dir`.
        NoCheckpointError: `resume` names something that cannot be resumed from.
    """

    def __init__(
        self,
        output_dir: Path,
        settings: Settings,
        policy: RetentionPolicy,
        resume: str | bool | None,
        layout: Layout,
        say: Callable[[str], None] | None = None,
    ) -> None:
        self.log = RunLog(say)
        self.channel = joined(settings.rank_timeout_seconds)
        self.log.rank = self.rank
        self._rehearsing = rehearsing(self.channel)
        if self._rehearsing is not None:
            resume, settings = AUTO, settings.model_copy(update=WITHOUT_MIRROR)
        self.settings = settings
        self.origin = open_run(self.channel, Wish(output_dir_for(output_dir), resume, layout, self.log, settings))
        self.run = self.origin.run
        self._wake = wake = threading.Event()
        self.gate = Gate(wake)
        self._status: StatusFile = self.run.status
        self.losses = Losses(self._status, self._rehearsing)
        self._stop = Stop(settings.stop_grace_seconds, self.run.status)
        self._outcomes = Outcomes(OnPublished(self.log), self.log)
        self._mirror = mirroring.mirror_of(self.run, settings, policy, self.log)
        session = Session(self.run, self.gate, wake, self._stop, self._outcomes, self.log, self.origin, self._mirror)
        self._minutes = Minutes(settings.save_minutes) if settings.save_minutes else None
        self._intake, self._saver = _saver_of_rank(session, settings, policy, self._minutes, self.channel)
        self._shutdown = Shutdown(session, self._intake, self._saver, self.origin, among_ranks=self.channel is not None)
        self._mirror_wait = MirrorWait(session, self._intake, self._saver, self._shutdown, self.channel)
        self._failure = Failure(session, self._intake, is_saved=settings.save_on_exception)
        self.bodies = Bodies(session, self._saver)
        """Takes in where in an epoch's body a loop is."""
        self._own = OwnRequests(session, self._intake, self._saver, among_ranks=self.channel is not None)
        self._capturing: Capturing | None = None
        self._number = 0
        self.finished = False
        """True when training has come to its end by itself."""
        self.outcome = ""
        """The way in which it ends, where that is neither of those that the engine knows."""

    def __enter__(self) -> "Engine":
        for hint in hints(self.run.root, self.settings.dynamic_checkpoint):
            self.log.announce(hint)
        for line in [] if self.rank else files.lacking(self.run.folder):
            self.log.announce(line)
        self._intake.start()
        self._saver.listen()
        self._shutdown.start()
        mirroring.begin(self.run, self._mirror, self.origin.chosen)
        return self

    @ends_training
    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> bool:
        """Serves what still waits. True swallows an error that was the stop itself: a worker that it killed."""
        if self._shutdown.is_in_child:
            return False
        self._shutdown.keep_handlers()
        if error is not None:
            self.bodies.take_back_cut()
        self._own.ask_now()
        self._end_schedule()
        self._leave_rehearsal(error)
        is_stop = self._shutdown.explains(error)
        if self._shutdown.is_end_by_signal(error) or is_stop:
            self._stop.requested = True  # whatever becomes of its save: training is not finished
        if isinstance(error, Exception) and not is_stop:
            self._failure.save_before(error, self._snapshots)
        elif self.finished and self.gate.boundary is not None:
            self._intake.look(self.gate.boundary.step, last=True)
        raised = None if is_stop else error
        try:
            self._saver.close(together=error is None, seconds=LEAVING_SECONDS if self._shutdown.has_left else None)
            self._own.end()
            if isinstance(error, Exception) and not is_stop:
                self._failure.tell_of_loss(error, self._snapshots)
            self._outcomes.on_published.run_last(error)
            if not self.outcome:  # a training that takes this one over sends what waits
                self._mirror_wait.wait(failed=isinstance(error, Exception) and not is_stop)
            self._shutdown.call_handlers()
        except BaseException as late:
            if self._shutdown.is_end_by_signal(late) and not self.finished:
                self._stop.requested = True
            raised = late
            raise
        finally:
            self._close(raised, has_left=error is not None)
        return is_stop

    @property
    def rank(self) -> int:
        """The number of this process among those that train together."""
        return 0 if self.channel is None else self.channel.rank

    @property
    def world_size(self) -> int:
        """The number of processes that train together."""
        return 1 if self.channel is None else self.channel.size

    @property
    def stop_requested(self) -> bool:
        """True when a stop was asked for and the loop should end."""
        return self._stop.requested

    @property
    def exit_code(self) -> int:
        """The exit code that tells how training ended: 0, 75 after a stop with a good save, 1 after one without."""
        if not self.stop_requested:
            return 0
        if self._stop.unsaved_code is not None:
            return self._stop.unsaved_code
        return stopped_after_save() if self._stop.saved else FAILED

    @property
    def exit_of_handler(self) -> SystemExit | KeyboardInterrupt | None:
        """That by which a handler of the user's has left the training at a signal, if one has."""
        return self._shutdown.exit

    @property
    def last_answer(self) -> Answer | None:
        """The answer of the last save."""
        return self._outcomes.last_answer

    @property
    def interrupted(self) -> bool:
        """True when the stop was a Ctrl+C: somebody sits there and wants the model."""
        return self.stop_requested and self._shutdown.interrupted_at is not None

    @property
    def _snapshots(self) -> Snapshots | None:
        return self._capturing.snapshots if self._capturing is not None else None

    @property
    def updating(self) -> bool:
        """True while training is somewhere between the beginning of an update and the next boundary."""
        return self.gate.updating

    def begin(self, subject: Subject, step: int, max_steps: int) -> None:
        """Takes in that training begins, or begins anew: a trainer may do so with smaller batches.

        Args:
            subject: The state that is saved.
            step: The step at which it begins: 0 unless it is resumed.
            max_steps: The step at which it ends; 0 if that is not known.
        """
        if self._capturing is not None:
            if not self.gate.updating:
                self.settle()
            self.gate.leave()  # what was reached before is the state of nothing any more
            self._capturing.end()
        self._capturing = capturing = Capturing(subject, self.gate, self.settings, self._wake)
        self.losses.begin(capturing.in_use)
        subject.begin(self.losses.late)
        self._own.begin(capturing)
        self.bodies.begin(capturing)
        self.gate.begin()
        if self.origin.chosen is None:
            self.gate.reach(self._record(step, "update"), shut=False)
        self._status.beat(step)
        budget = capturing.budget
        staging = cost.state_of(budget.making)
        self._status.update(phase="training", max_steps=max_steps, staging_bytes=budget.bytes, staging=staging)
        if self._minutes is not None:
            self._minutes.restart()
        if self._rehearsing is not None:
            self._rehearsing.begin(step)
        if self.channel is not None and not self._saver.serving:
            self.channel.prepare()
        self._saver.start(capturing.snapshots, budget)
        if self.origin.chosen is not None and not self.rank:
            self._saver.settle()  # what waits is answered with the checkpoint; a loop of short steps would be further

    def reach(
        self, step: int, *, stage: str = "update", last: bool = False, scheduled: str = "", look: bool = True
    ) -> None:
        """Marks a boundary. Waits while an earlier one is still being taken, and for the answer to a stop.

        Args:
            step: The step of the boundary.
            stage: The progress of a trainer within this step.
            last: True where training ends here; every door is looked at once more.
            scheduled: The reason of the schedule for a save of this very boundary; empty when it wants none.
            look: True where it is worth looking at the trigger file: once a step.
        """
        assert self._capturing is not None, "begin() comes first"
        self._shutdown.look()
        self.gate.leave()
        self._stop.reach(step, ends_body=stage == "epoch_end")
        self._number += 1
        kept = self._own.reach(self._number, ends_body=stage == "epoch_end")
        boundary = self._record(step, stage)
        if self._outcomes.on_published.wait:
            self.gate.reach(boundary, shut=False)  # whatever a hook does, it finds a whole boundary
            self._outcomes.on_published.run()
            here = self.gate.boundary or boundary  # a hook may have asked for a save of it
            boundary = replace(self._record(step, stage), asked=here.asked, revision=here.revision + 1)
        if scheduled or kept:
            boundary = replace(boundary, scheduled=scheduled, asked=(*boundary.asked, *kept))
        self._status.beat(step)
        if self._rehearsing is not None:
            self._rehearsing.reach(self._capturing.subject, boundary)
        asked = look and self._intake.look(step, last=last)
        self.gate.reach(boundary, shut=bool(asked or scheduled or kept) and self._saver.serving, last=last)
        for request in kept:
            self._intake.hear(request, boundary.number)
        if self._rehearsing is not None:
            self._rehearsing.go_on(step, self._stop, is_last_stage=look)
        if self._stop.is_coming and not self._stop.requested:
            self._saver.settle_stop()

    def _record(self, step: int, stage: str) -> Boundary:
        """Returns the boundary that training is at, with the small state and the fingerprint of the large one."""
        assert self._capturing is not None
        snapshots = self._capturing.snapshots
        copied = snapshots.copied_buffers
        boundary = self._capturing.record(step, stage, self._number)
        if snapshots.copied_buffers != copied:
            self._status.update(copied_buffers=dict(snapshots.copied_buffers))
        if (reason := snapshots.unreadable) and not self.gate.only_when_blocked:
            self._saver.stand_still(reason)
        return boundary

    def mark(self, step: int, stage: str) -> None:
        """Keeps the state of a step whose update is done and whose boundary is not reached yet.

        What comes in between, callbacks, may fail or outlast the grace of a stop; the mark is saved then, and the
        boundary in every other case.

        Args:
            step: The step.
            stage: The stage, from which a resume knows what is to be done yet.
        """
        assert self._capturing is not None, "begin() comes first"
        self.gate.mark(self._capturing.record(step, stage, self._number + 1))

    @contextmanager
    def update(self) -> Iterator[None]:
        """Encloses an update that no torch optimizer makes; it waits at the gate like any other."""
        if self._capturing is None:
            self.gate.enter_update()
        else:
            self._capturing.hook.enter_update()
        yield

    def ask(self, request: Request, *, at_once: bool = False) -> PendingSave:
        """Asks for a save from this process, as `OwnRequests.ask` does; the pending save learns what becomes of it."""
        return self._own.ask(request, at_once=at_once)

    def on_published(self, hook: Hook, *, raises: bool = False) -> None:
        """Adds a hook that runs in the training thread of every rank, after the commit of each checkpoint.

        Args:
            hook: Called with the answer of the save.
            raises: True where an error of it is the training's own. That of another hook is logged, and stops neither
                training nor the next hook.
        """
        self._outcomes.on_published.add(hook, raises=raises)

    def save_at_end(self) -> None:
        """Saves the last boundary if it has no checkpoint yet: training has come to its end by itself."""
        self.settle()
        here = self.gate.boundary
        is_over = here is None or here.number == 0 or self.gate.updating or self.stop_requested
        if here is None or is_over or self._outcomes.has_saved_step_of(here) or not self._saver.serving:
            return
        self.gate.renew(replace(self._own.renewed(here), scheduled="save_at_end"))

    def run_hooks(self) -> None:
        """Runs the hooks for what was published since; `reach` does so as well."""
        self._outcomes.on_published.run()

    def settle(self) -> None:
        """Returns when everything that was asked for so far is answered. Training is blocked meanwhile."""
        self._own.ask_now()
        self._saver.settle()

    def finish(self) -> None:
        """Takes in that training has come to its end by itself: a stop that met the last step changes nothing.

        It may go on with another epoch; the schedules live as long as the run is open.
        """
        self.settle()
        self._leave_rehearsal()
        self._stop.requested = False
        self.finished = True

    def _leave_rehearsal(self, error: BaseException | None = None) -> None:
        """Ends a rehearsal whose training has come to its end by itself: what comes after it is not rehearsed."""
        if self._rehearsing is not None and error is None and not self._stop.requested:
            self._rehearsing.leave(self._status.now.step)

    def _close(self, error: BaseException | None, *, has_left: bool) -> None:
        """Answers who still waits, writes down how the run ended, and takes back the signal handlers."""
        try:
            self._shutdown.end()
            self._intake.close(has_left=has_left)
            self._saver.refuse("training ended before the next boundary")
            if self._capturing is not None:
                self._capturing.end()
            self._write_end(error)
        finally:
            self._shutdown.over()
            self._mirror_wait.close()
            self.origin.close()
            if not self._saver.hangs:  # a save that comes back yet writes through what the run holds
                self.run.let_go()

    def _write_end(self, error: BaseException | None) -> None:
        outcome, code = self.outcome or ("stopped" if self.stop_requested else "finished"), self.exit_code
        if isinstance(error, SystemExit) or (isinstance(error, KeyboardInterrupt) and self.stop_requested):
            code = exit_code_of(error)
        elif isinstance(error, Exception) or (error is not None and not self.stop_requested):
            outcome, code = f"failed: {type(error).__name__}", FAILED
        self.run.close(outcome, code)

    def _end_schedule(self) -> None:
        if self._minutes is not None:
            self._minutes.end()


def _saver_of_rank(
    session: Session, settings: Settings, policy: RetentionPolicy, minutes: Minutes | None, channel: Channel | None
) -> tuple[RequestIntake, Saver | Follower]:
    """Returns what hears requests in this rank, and the thread that saves in it."""
    if channel is not None and channel.rank:
        heartbeat = Heartbeat(channel, session.run.status, session.gate, session.log)
        return heartbeat, Follower(session, channel, heartbeat)
    queue = RequestQueue(session.run, settings.dynamic_checkpoint, session.log, session.wake, minutes)
    peers: Peers = Alone(session) if channel is None else RankZero(session, channel, queue)
    return queue, Saver(session, queue, policy, peers)
