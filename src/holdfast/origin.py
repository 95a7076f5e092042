"""What a training goes on from: the checkpoint that was chosen, or an older one where that turns out to be damaged."""

from collections.abc import Callable

from holdfast import opening, resuming
from holdfast.errors import DamagedCheckpointError
from holdfast.opening import Opened
from holdfast.ranks.channel import Channel
from holdfast.resuming import Chosen


class Origin:
    """The checkpoint that is read before training begins, in all ranks the same.

    Args:
        opened: The run, and what was chosen when it was opened.
        channel: To the other ranks; None where there are none.
        resume: What to go on from, as `resume_from_checkpoint` has it.
        layout: The layout that this training reads.
        say: Prints a line for the user.
    """

    def __init__(
        self,
        opened: Opened,
        channel: Channel | None,
        resume: str | bool | None,
        layout: str,
        say: Callable[[str], None],
    ) -> None:
        self._run = opened.run
        self._channel = channel
        self._resume, self._layout, self._say = resume, layout, say
        self._tried = 0
        self.chosen = opened.chosen
        """The checkpoint; None for a training that begins anew."""

    def has_read(self, failure: Exception | None) -> None:
        """Returns when all ranks have read the checkpoint. Raises what has become of it in any, the failure first."""
        opening.all_have_read(self._channel, self._tried, failure)

    def fall_back(self, damaged: DamagedCheckpointError) -> Chosen:
        """Takes an older checkpoint, in all ranks alike, because the one that was read is damaged.

        Raises:
            CheckpointError: No other will do.
        """
        chosen, root = self.chosen, self._run.root
        assert chosen is not None
        problems = damaged.problems or [str(damaged)]
        found = opening.fall_back(
            self._channel,
            self._tried,
            lambda: resuming.fall_back(chosen, problems, root, self._resume, self._layout, self._say),
        )
        self.chosen = found
        self._tried += 1
        if found.manifest is not None:
            self._run.go_on_from(found.manifest.attempt)
        return found
