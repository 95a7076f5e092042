"""Whose turn it is: which of the checkpoints that wait for a mirror is sent next, and which need not be sent at all."""

from collections.abc import Sequence

from holdfast.mirror.queue import Queued


def overtaken(waiting: Sequence[Queued]) -> list[Queued]:
    """Returns those that need not be sent: scheduled ones behind which a later one waits that does not need them.

    Args:
        waiting: What waits, in the order of commits.
    """
    if not waiting or (needed := waiting[-1].protected) is None:
        return []
    return [each for each in waiting[:-1] if each.kind == "scheduled" and each.attempt not in needed]


def next_of(waiting: Sequence[Queued], *, newest_was_last: bool) -> Queued:
    """Returns the one whose turn it is: that of a stop at once, otherwise the newest and the oldest in turns.

    The newest loses the least when the machine goes; the oldest would never come, where saves are quicker than the
    mirror, if it were always the newest.

    Args:
        waiting: What waits, in the order of commits; at least one.
        newest_was_last: True where the last one that was sent had the turn of the newest.
    """
    if stops := [each for each in waiting if each.kind == "stop"]:
        return stops[-1]
    return waiting[0] if newest_was_last else waiting[-1]


def gives_way(left: int, to: int, rate: float, seconds: float) -> bool:
    """Tells whether what is being sent is given up for the checkpoint of a stop: alone that is there in time.

    Where both will be, or neither, what is being sent goes on.

    Args:
        left: The bytes of it that are still to be sent.
        to: The size of the stop's checkpoint.
        rate: The bytes that are sent in a second.
        seconds: The time that is left until training ends, and this process with it.
    """
    return to <= rate * seconds < left + to
