"""The mirror of one start: where its checkpoints go, and under which claim."""

import json
from dataclasses import asdict, dataclass

END = b"end\n"
"""The line by which a training that ends has the mirror's process end: data workers may hold the pipe open."""
TRAINS = b"trains\n"
"""The line by which a training says that it has made a step: what it did not wait for may be brought by now."""
LEFT = b"left "
"""The beginning of the line by which a training that waits at its end says for how many seconds more it can."""


@dataclass(frozen=True)
class Destination:
    """The mirror of one start. Nothing in it is secret.

    Args:
        url: The address of the place.
        term: The number by which this start has claimed the run there.
        keep: The number of scheduled checkpoints that are kept there.
        keep_asked: The number of those that somebody asked for; None keeps all.
        keep_every: Keeps those whose step is a multiple of this.
        endpoint: The address of the server; None: the cloud's own.
        region: The region of the bucket; None: as the environment has it.
    """

    url: str
    term: int
    keep: int
    keep_asked: int | None = None
    keep_every: int | None = None
    endpoint: str | None = None
    region: str | None = None


@dataclass(frozen=True)
class Assignment:
    """The words of a training to the mirror's process.

    Args:
        root: The run directory.
        run: The identity of the run.
        token: The lease of the start, by which a control directory that was made anew is known.
        destination: The mirror.
    """

    root: str
    run: str
    token: str
    destination: Destination

    def encode(self) -> bytes:
        """Returns a line for the process."""
        return json.dumps(asdict(self)).encode() + b"\n"

    @classmethod
    def decode(cls, line: bytes) -> "Assignment":
        """Reads the line, which training has written."""
        content = json.loads(line)
        return cls(**{**content, "destination": Destination(**content["destination"])})
