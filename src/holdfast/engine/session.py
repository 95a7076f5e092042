"""The objects that the threads of one training share."""

import threading
from dataclasses import dataclass

from holdfast.capture.gate import Gate
from holdfast.engine.outcomes import Outcomes
from holdfast.engine.stop import Stop
from holdfast.log import RunLog
from holdfast.run.run import Run


@dataclass(frozen=True)
class Session:
    """One training in this process.

    Args:
        run: The open run.
        gate: Between training and the thread that saves.
        wake: Set when there is something for that thread to look at.
        stop: The stop of the training, if one comes.
        outcomes: The outcomes of its saves.
        log: Takes lines for the user.
    """

    run: Run
    gate: Gate
    wake: threading.Event
    stop: Stop
    outcomes: Outcomes
    log: RunLog
