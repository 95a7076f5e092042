"""The others who may write to a run directory, and what they can do there: one line at the start."""

import grp
import os
import pwd
import stat
from contextlib import suppress
from pathlib import Path

_ACL = "system.posix_acl_access"


def exposure(root: Path) -> str:
    """Returns in one line who else may write to a run directory or above it, and what that means; empty for nobody."""
    here = root.resolve()
    above = {path: path.stat() for path in here.parents}
    if any(not status.st_mode & 0o011 and status.st_uid in (os.geteuid(), 0) for status in above.values()):
        return ""  # nobody else comes so far
    exchangeable = [path for path, status in above.items() if status.st_mode & 0o002 and not _is_sticky(status)]
    parents = ", ".join(map(str, reversed(exchangeable)))
    status = here.stat()
    if who := _writers(here, status):
        mode = f"{stat.S_IMODE(status.st_mode):04o}"
        also = f" (and everybody to {parents} above it)" if parents else ""
        if _is_sticky(status):
            can = "put files of their own there; they cannot rename or delete yours, as it is sticky"
        else:
            can = (
                "rename and delete what is in it, checkpoints too, put other files in their place, and so ask for saves"
            )
        is_mine = status.st_uid == os.geteuid()
        mend = f"chmod go-w {here}" if is_mine else "train in a directory of your own"
        return f"{who} may write to {here}, whose mode is {mode}{also}: they can {can}. If that is not meant: {mend}"
    if parents:
        return (
            f"everybody may write to {parents} above {here}: they can rename the whole directory, and put another in"
            f" its place. If that is not meant: chmod o-w {' '.join(map(str, reversed(exchangeable)))}"
        )
    return ""


def _writers(path: Path, status: os.stat_result) -> str:
    if status.st_mode & 0o002:
        return "everybody"
    if status.st_uid not in (os.geteuid(), 0):
        return f"its owner (uid {status.st_uid})"
    if status.st_mode & 0o020 and not _is_group_of_one(path, status.st_gid):
        return f"the group {_name_of_group(status.st_gid)}"
    return ""


def _is_sticky(status: os.stat_result) -> bool:
    return bool(status.st_mode & stat.S_ISVTX) and status.st_uid in (os.geteuid(), 0)


def _is_group_of_one(path: Path, gid: int) -> bool:
    """Tells whether a group is this user's alone, as systems make one for each: of the same name, with no member."""
    with suppress(OSError):
        os.getxattr(path, _ACL)
        return False  # the bits of the group may speak of others
    try:
        group = grp.getgrgid(gid)
        return group.gr_name == pwd.getpwuid(os.geteuid()).pw_name and set(group.gr_mem) <= {group.gr_name}
    except KeyError:
        return False


def _name_of_group(gid: int) -> str:
    try:
        return grp.getgrgid(gid).gr_name
    except KeyError:
        return str(gid)
