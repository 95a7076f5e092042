"""The mirror that a run directory has: where its last start has claimed it."""

from typing import NamedTuple

from holdfast.mirror import state
from holdfast.remote.location import location_of
from holdfast.run.directory import RunDirectory
from holdfast.store import terms


class Address(NamedTuple):
    """A place, as somebody who is to open it needs it.

    Args:
        url: Its address.
        endpoint: The address of the server; None: the cloud's own.
        region: The region of the bucket; None: as the environment has it.
    """

    url: str
    endpoint: str | None = None
    region: str | None = None


def address_of(directory: RunDirectory, run: str) -> Address | None:
    """Returns the mirror that a run was last started with here; None where it has had none.

    Raises:
        OSError: The terms that were claimed here cannot be read.
    """
    claimed = [term for term in terms.claimed(directory.control) if term.run == run]
    if not claimed:
        return None
    url = max(claimed, key=lambda term: term.number).mirror
    said = state.read(directory)
    if said and location_of(str(said["url"])).url == url:
        return Address(url, said["endpoint"], said["region"])
    return Address(url)
