"""A directory as the mirror of a run directory: what goes with the one must not be the other."""

from pathlib import Path

from holdfast.errors import ConfigError
from holdfast.remote.location import DIRECTORY, Location
from holdfast.text import quoted


def require_apart(location: Location, root: Path) -> None:
    """Refuses a mirror that is in the run directory, or that the run directory is in.

    Args:
        location: The mirror.
        root: The run directory, which need not be there yet.

    Raises:
        ConfigError: One is inside the other.
    """
    if location.scheme != DIRECTORY:
        return
    there, here = Path(location.path).resolve(), root.resolve()
    if there == here or here in there.parents:
        problem = f"the mirror {location.url} is in the run directory {quoted(str(root))}, and goes with it"
    elif there in here.parents:
        problem = f"the run directory {quoted(str(root))} is in the mirror {location.url}, where objects alone belong"
    else:
        return
    raise ConfigError([problem], hint="give the mirror a directory of its own, on another disk")


def shares_disk(location: Location, root: Path) -> bool:
    """Tells whether a mirror is on the file system of the run directory, as far as can be told."""
    if location.scheme != DIRECTORY:
        return False
    devices = [_device_of(path) for path in (Path(location.path), root)]
    return None not in devices and devices[0] == devices[1]


def _device_of(path: Path) -> int | None:
    """Returns the file system of a path, or that of what it would be made in."""
    path = path.resolve()
    for each in (path, *path.parents):
        try:
            return each.stat().st_dev
        except FileNotFoundError:
            continue
        except OSError:
            return None
    return None
