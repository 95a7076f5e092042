"""The length of a run, its warm-up, its saves and its evaluations: the keys, and what they come to together."""

from dataclasses import dataclass
from typing import Literal

from holdfast.arguments import AUTO
from holdfast.train.config.types import (
    Count,
    CountOrZero,
    Fields,
    Positive,
    Resume,
    Share,
    ShareOrCount,
    Steps,
    Strategy,
)

DEFAULT_STEPS = 500
"""The steps of the strategy `steps` where no key says how many: transformers' own default."""

_DEFAULT_KEPT = 4


@dataclass(frozen=True)
class Schedule:
    """The times of something recurring, in the terms of transformers' `save_strategy` and `save_steps`."""

    strategy: Literal["no", "steps", "epoch"]
    """Every so many steps, at the end of every epoch, or never."""

    steps: int | float | None
    """With the strategy `steps`: every so many optimizer steps, or, below 1, that share of the run. Otherwise None."""


class ScheduleFields(Fields):
    """Everything about a run that is counted in steps or epochs."""

    num_epochs: Positive = 1.0
    """The number of times that the data is gone through."""

    max_steps: Count | None = None
    """Ends after this many optimizer steps, whatever `num_epochs` says."""

    warmup_ratio: Share | None = None
    """The share of the run over which the learning rate rises to its full value."""

    warmup_steps: CountOrZero | None = None
    """The number of optimizer steps over which the learning rate rises to its full value."""

    logging_steps: Count | None = None
    """Logs the loss every N optimizer steps. Unset, the trainer chooses."""

    save_strategy: Strategy | None = None
    """The schedule of saves. Unset: `steps` with `save_steps` or `saves_per_epoch`, else `epoch`."""

    save_steps: Steps | None = None
    """Saves every N optimizer steps, or, below 1, each time that share of the run has passed."""

    saves_per_epoch: Count | None = None
    """Saves this many times in each of the `num_epochs` epochs."""

    save_total_limit: Count | None = None
    """The number of scheduled checkpoints that are kept; the oldest go first. Unset acts as 4."""

    keep_every: Count | None = None
    """Keeps the checkpoints whose step is a multiple of this, whatever the limits say."""

    resume_from_checkpoint: Resume | None = None
    """`auto` or true resumes the newest good checkpoint, in `output_dir` or in the mirror; `local` the newest good one
    in `output_dir`, and leaves the mirror alone; a path resumes the checkpoint there.
    """

    auto_resume_from_checkpoints: bool | None = None
    """The same as `resume_from_checkpoint: auto`."""

    val_set_size: ShareOrCount = 0.0
    """The part of the data that is held out for evaluation."""

    eval_strategy: Strategy | None = None
    """The schedule of evaluations. Unset: `steps` with `eval_steps` or `evals_per_epoch`, else `epoch`."""

    eval_steps: Steps | None = None
    """Evaluates every N optimizer steps, or, below 1, each time that share of the run has passed."""

    evals_per_epoch: CountOrZero | None = None
    """Evaluates this many times in each of the `num_epochs` epochs; 0 turns evaluation off."""

    @property
    def save_schedule(self) -> Schedule:
        """The schedule of saves, whichever keys give it."""
        return self._schedule(self.save_strategy, self.save_steps, self.saves_per_epoch)

    @property
    def eval_schedule(self) -> Schedule:
        """The schedule of evaluations: never where no data is held out."""
        if not self.val_set_size or self.evals_per_epoch == 0:
            return Schedule("no", None)
        return self._schedule(self.eval_strategy, self.eval_steps, self.evals_per_epoch)

    @property
    def held_out(self) -> int | float:
        """The data held out for evaluation: a number of examples (int), a share of the data (float below 1), or 0."""
        return self.val_set_size if 0 < self.val_set_size < 1 else int(self.val_set_size)

    @property
    def warmup(self) -> int | float:
        """The warm-up as transformers' `warmup_steps` takes it: a number of steps, or, below 1, a share of the run."""
        return self.warmup_steps if self.warmup_steps is not None else self.warmup_ratio or 0

    @property
    def scheduled_kept(self) -> int:
        """The number of scheduled checkpoints that are kept."""
        return self.save_total_limit or _DEFAULT_KEPT

    @property
    def resume(self) -> str | bool | None:
        """The checkpoint to resume, as `Engine` takes it: `auto`, true, a path, or nothing."""
        return self.resume_from_checkpoint or (AUTO if self.auto_resume_from_checkpoints else None)

    def _schedule(
        self, strategy: Literal["no", "steps", "epoch"] | None, steps: int | float | None, per_epoch: int | None
    ) -> Schedule:
        if strategy in ("no", "epoch"):
            return Schedule(strategy, None)
        if per_epoch:
            share = 1 / (per_epoch * self.num_epochs)
            # transformers takes 1.0 for every step; once or less in the whole run is what the end of the epoch is for.
            return Schedule("steps", share) if share < 1 else Schedule("epoch", None)
        if steps is None and strategy is None:
            return Schedule("epoch", None)
        return Schedule("steps", steps or DEFAULT_STEPS)
