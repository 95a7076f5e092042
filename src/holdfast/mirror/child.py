"""The command of a process that works for a training beside it: started by exec, never forked from it.

A store's library hangs in a process that was forked from one that has used it, and the user's own data workers are
forked from training. So nothing of it is ever imported there.
"""

import os
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import holdfast

_NO_FORK = threading.RLock()
os.register_at_fork(before=_NO_FORK.acquire, after_in_parent=_NO_FORK.release, after_in_child=_NO_FORK.release)


def command(module: str) -> list[str]:
    """Returns the command that runs the function `main` of a module of the house, as it is installed here.

    The directory of the training is none of the first places where modules are looked for: what is there is the user's.
    Those that the training has beside the interpreter's own are the last ones: it may have been told of its libraries.

    Args:
        module: The module's name.
    """
    home = str(Path(holdfast.__file__).resolve().parent.parent)
    others = [each for each in sys.path if Path(each).is_absolute()]
    load = f"import sys; sys.path.insert(0, {home!r}); import holdfast; del sys.path[0]; sys.path += {others!r}"
    alike = ["-E"] * sys.flags.ignore_environment + ["-s"] * sys.flags.no_user_site
    return [sys.executable, "-P", *alike, "-c", f"{load}; from {module} import main; main()"]


def start(module: str, **options: Any) -> "subprocess.Popen[bytes]":
    """Starts such a process. Whoever forks meanwhile waits until it is there.

    What is forked in the middle of it, such as a data worker, would keep open what the start waits to see closed, and
    the start would last as long as that. What a terminal sends to training is not for it.

    Args:
        module: The module's name.
        **options: How it is started, in `subprocess.Popen`'s words.

    Raises:
        OSError: It cannot be started.
    """
    with _NO_FORK:
        pipe, errors = subprocess.PIPE, None if _has_errors() else subprocess.DEVNULL
        return subprocess.Popen(command(module), stdin=pipe, stderr=errors, start_new_session=True, **options)


def _has_errors() -> bool:
    """Returns whether this process was given a place for its errors, and has it still: a daemon may have none."""
    try:
        os.fstat(2)
    except OSError:
        return False
    return sys.__stderr__ is not None
