"""The command of a process that works for a training beside it: started by exec, never forked from it.

A store's library hangs in a process that was forked from one that has used it, and the user's own data workers are
forked from training. So nothing of it is ever imported there.
"""

import sys
from pathlib import Path

import holdfast


def command(module: str) -> list[str]:
    """Returns the command that runs the function `main` of a module of the house, as it is installed here.

    The directory of the training is none of the places where modules are looked for: what is there is the user's.

    Args:
        module: The module's name.
    """
    home = str(Path(holdfast.__file__).resolve().parent.parent)
    load = f"import sys; sys.path.insert(0, {home!r}); import holdfast; del sys.path[0]"
    return [sys.executable, "-P", "-c", f"{load}; from {module} import main; main()"]
