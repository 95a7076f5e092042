"""The directory that a trainer takes for its `output_dir` while it writes a checkpoint.

Some write there beside the checkpoint: TRL leaves a model card, and any subclass may do so. They write by path, through
whatever link somebody has planted at the name, and wait for a reader where it is a pipe. So they get a private
directory, with copies of the small files that lie in the run directory, to add to; what is new there afterwards is
left in the run directory by a rename, which follows no link and waits for nobody. A link is left as one.
"""

import os
import stat
from contextlib import ExitStack, suppress
from pathlib import Path

from holdfast.store import files, names
from holdfast.store.folder import Folder, Level, Place, exists, status_of, walk

# What somebody adds to at each save is a table or a card. The model of a finished training is larger.
_MOST_BYTES = 1 << 20
_MOST_FILES = 100
# No file of a checkpoint begins with a dot.
_NAME = ".output_dir"


class OutputDirectory:
    """A private directory in the place of the run directory, for one save.

    Args:
        root: The run directory.
        place: A directory that nobody else may enter, for it to be made in.
        left: The paths of what was left by this training before; those that are added now are noted there.
    """

    def __init__(self, root: Folder, place: Path, left: set[str]) -> None:
        self._root = root
        self._left = left
        self._place = place / _NAME
        self.path = self._place / (root.path.absolute().name or _NAME)
        """A directory of the run directory's name, by which TRL calls the model."""
        self.path.mkdir(mode=0o700, parents=True)
        self._before = self._copy_in()

    def __enter__(self) -> "OutputDirectory":
        return self

    def __exit__(self, *exception: object) -> None:
        files.remove_tree(self._place)

    def leave(self) -> list[str]:
        """Leaves what was written, and no checkpoint, in the run directory.

        Returns:
            A text for each file that could not be left there.
        """
        problems = []
        with Folder.open(self.path) as written:
            for level in walk(written):
                for name in level.others:
                    path = level.inside(name)
                    try:
                        self._leave_file(level, name, path)
                    except OSError as error:
                        problems.append(
                            f"{path}, which the trainer wrote beside the checkpoint: {error.strerror or error}"
                        )
        return problems

    def _copy_in(self) -> dict[str, bytes]:
        """Copies what a trainer may want to add to; returns the contents."""
        contents: dict[str, bytes] = {}
        # What is added to at each save comes first: without it, nothing could be added.
        own = (name for name in self._root.names() if names.is_component(name) and name != names.JOURNAL)
        for path in dict.fromkeys((*sorted(self._left), *own)):
            if len(contents) == _MOST_FILES:
                break
            with suppress(OSError), files.open_inside(self._root, path) as fd:
                status = os.fstat(fd)
                if status.st_uid == os.geteuid() and status.st_size <= _MOST_BYTES:
                    contents[path] = os.read(fd, _MOST_BYTES)
                    copy = self.path / path
                    copy.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
                    copy.write_bytes(contents[path])
        return contents

    def _leave_file(self, level: Level, name: str, path: str) -> None:
        written = level.folder / name
        status = status_of(written)
        is_small = status.st_size <= _MOST_BYTES
        if (
            stat.S_ISREG(status.st_mode)
            and is_small
            and self._before.get(path) == files.read(written, limit=_MOST_BYTES)
        ):
            return
        with ExitStack() as opened:
            folder = self._root
            for part in path.split("/")[:-1]:
                with suppress(FileExistsError):
                    files.make_directory(folder / part)
                folder = opened.enter_context(Folder.open(folder / part))
            target = folder / name
            # One that was too large to be seen, and is large again, was written anew; what is small may be an addition.
            is_known = path in self._before or (path in self._left and not is_small)
            if exists(target) and not is_known and not _is_planted(target):
                raise OSError("there is one that it did not see, and nothing is overwritten")
            if stat.S_ISLNK(status.st_mode):
                files.replace_by_link(target, self._of_run(os.readlink(name, dir_fd=level.folder.fd)))
            else:
                files.copy(written, target)
            self._left.add(path)
            files.sync_directory(folder)

    def _of_run(self, leads_to: str) -> str:
        """Returns the path for a link in the run directory, which leads there where this one leads in here."""
        for here in (self.path, self.path.resolve()):
            if Path(leads_to).is_relative_to(here):
                return str(self._root.path.absolute() / Path(leads_to).relative_to(here))
        return leads_to


def _is_planted(target: Place) -> bool:
    """Tells whether a name is taken by what no trainer leaves: a link, a pipe, another user's file."""
    status = status_of(target)
    return not stat.S_ISREG(status.st_mode) or status.st_uid != os.geteuid()
