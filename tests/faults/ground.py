"""A run directory that a stranger may write to, what of the user lies elsewhere, and what must hold afterwards."""

import ctypes
import io
import logging
import os
import random
import re
import shutil
import stat
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from faults.accounts import Account, Stranger, become, open_folder, strange, two_accounts
from faults.desk import Desk
from faults.harness import THOROUGH, Child, forked
from helpers.tampering import with_intent
from holdfast.store import names
from holdfast.store.folder import names_in
from holdfast.store.manifest import decode
from holdfast.store.verify import verify

GROUP, STICKY, OPEN = "a group's", "everybody's and sticky", "made with umask 000"
THEIRS = "sticky and the stranger's"
ROOT = "a group's, and root trains"
KINDS = (GROUP, STICKY, OPEN)

# What a link of the stranger's may lead to, by the names that a run writes in a directory.
_OF_THE_USER = ("precious", "README.md", "events.jsonl", "lease.json", "status.json", "outcome.json", "MANIFEST.json")
_EXCHANGE, _AT_FDCWD = 2, -100
_LIBC = ctypes.CDLL(None, use_errno=True)

State = tuple[int, int, int, bytes]


class Ground:
    """Where the user and the stranger meet.

    Args:
        folder: A directory that both can reach.
        kind: Which of `KINDS` the run directory is.
        user: The account that trains.
        stranger: The other one.
    """

    def __init__(self, folder: Path, kind: str, user: Account, stranger: Account) -> None:
        self.folder = folder
        self.user = user
        self.stranger = stranger
        self.home = folder / "home"
        self.lair = folder / "lair"
        """A directory of the stranger's."""
        self.is_sticky = kind in (STICKY, THEIRS)
        self.umask = 0 if kind == OPEN else 0o022
        """That of the user's processes."""
        self.run = folder / "above" / "run"
        self.answered: list[int] = []
        """The steps that were answered "saved"."""
        for place in (self.home, self.private):
            place.mkdir()
            for name in _OF_THE_USER:
                (place / name).write_text('{"at": 1, "event": "end", "outcome": "stopped", "code": 75}\n')
            (place / "requests").mkdir()
        self.lair.mkdir()
        self.run.parent.mkdir()
        if kind != OPEN:
            self.run.mkdir()
            self.run.chmod(0o2770 if kind in (GROUP, ROOT) else 0o1777)
        if kind == THEIRS:
            give(self.run, stranger)
        if kind in (GROUP, ROOT):
            os.chown(self.run, user.uid, user.team)
        give(self.home, user)
        give(self.lair, stranger)
        give(self.run.parent, user, below=False)
        self.remember()
        self._forged: dict[int, State] = {}

    def remember(self) -> None:
        """Takes what is the user's elsewhere for what is to stay so."""
        self._before = state_of(self.home)

    @property
    def private(self) -> Path:
        """A directory of the user's in which a run would change the mode."""
        return self.home / "private"

    @property
    def ran(self) -> Path:
        """The file that what the stranger has written would make if it were run."""
        return self.home / "ran"

    @contextmanager
    def training(self, trains: Callable[[Desk], object], said: str = "said") -> Iterator[Desk]:
        """A training of the user's, in a process of its own that goes on until it is told otherwise."""
        desk = Desk()
        with self.program(lambda: trains(desk), said) as desk.child:
            desk.begin()
            yield desk

    def program(self, action: Callable[[], object], said: str = "said") -> AbstractContextManager[Child]:
        """A process of the user's, with what it prints in a file of that name."""

        def as_user(wait: object) -> None:
            logging.getLogger().handlers.clear()  # those of pytest, which would have its lines
            become(self.user, self.umask)
            action()

        return forked(as_user, self.folder / said)

    def strange(self, turn: Callable[[], int]) -> AbstractContextManager[Stranger]:
        """The stranger, who does one turn after another."""
        return strange(self.stranger, turn)

    def ask(self, desk: Desk) -> str:
        """Asks for a save and waits for its answer, which must be true."""
        said = desk.answer()
        if said.startswith("saved"):
            self.answered.append(int(said.split()[1]))
            self.require_saved(self.answered[-1])
        return said

    def require_saved(self, step: int) -> None:
        """A checkpoint of this step is there, whole, and the user's."""
        path = self.run / names.checkpoint(step)
        report = verify(path)
        assert path.lstat().st_uid == self.user.uid and report.good, f"{path.name} is not there: {report.problems}"
        assert report.entry.manifest is not None and report.entry.manifest.step == step

    def require_saved_as_printed(self, output: str, least: int = 1) -> None:
        """Every checkpoint that a training has printed as saved is there, and they are so many at least."""
        steps = [int(step) for step in re.findall(r"checkpoint saved step=(\d+)", output)]
        assert len(steps) >= least, output
        for step in steps:
            self.require_saved(step)

    def forge(
        self, checkpoint: Path, files: Mapping[str, bytes], name: str = "", without: str = "", **fields: Any
    ) -> Path:
        """Makes a checkpoint of the stranger's like one of the user's, with other files and a manifest that fits.

        Args:
            checkpoint: The user's.
            files: What is in it otherwise, by path.
            name: The name that it gets.
            without: A file that it lacks.
            **fields: What is otherwise in its manifest.
        """
        forged = self.run / (name or f"forged-{checkpoint.name}")
        shutil.copytree(checkpoint, forged, symlinks=True)
        if without:
            (forged / without).unlink()
            manifest = decode((forged / names.MANIFEST).read_bytes())
            others = tuple(file for file in manifest.files if file.path != without)
            (forged / names.MANIFEST).write_bytes(replace(manifest, files=others).encode())
        for path, data in {"README.md": b"a card", **files}.items():
            with_intent(forged, path, data, **fields)
        return self.hand_over(forged)

    def hand_over(self, folder: Path) -> Path:
        """Makes a directory the stranger's, and keeps in mind what is in it."""
        give(folder, self.stranger)
        for place in (folder, *folder.rglob("*")):
            if not place.is_symlink():
                place.chmod(0o777 if place.is_dir() else 0o666)
        self._forged |= state_by_number(folder)
        return folder

    def require_untouched(self) -> None:
        """Nothing of the user's that lies elsewhere has changed, nothing was run, and the stranger's files are his."""
        after = state_of(self.home)
        changed = {path for path in {*self._before, *after} if self._before.get(path) != after.get(path)}
        assert not changed, f"changed outside of the run directory: {sorted(changed)}"
        assert not self.ran.exists(), "what a stranger has written was run"
        for number, state in state_by_number(self.folder / "above").items():
            mode, uid, _, content = state
            if uid != self.stranger.uid or stat.S_ISLNK(mode) or number == self.run.stat().st_ino:
                continue
            if number in self._forged:
                assert state == self._forged[number], "a file of the stranger's checkpoint has changed"
                continue
            wanted = 0o777 if stat.S_ISDIR(mode) else 0o666
            assert stat.S_IMODE(mode) in (wanted, wanted | stat.S_ISGID), f"a file of the stranger's has mode {mode:o}"
            assert not stat.S_ISREG(mode) or content.endswith(b"the stranger's"), f"the stranger's has now: {content!r}"


@pytest.fixture
def place(request: pytest.FixtureRequest) -> Iterator[Ground]:
    """A ground of the kind that a test wants, gone at the end with its accounts."""
    if not THOROUGH:
        pytest.skip("with two accounts it takes a minute: HOLDFAST_FAULTS=1, make test-faults")
    with two_accounts() as (user, stranger), open_folder() as folder:
        if request.param == ROOT:
            user = replace(user, name="root", uid=0, gid=0)
        yield Ground(folder, request.param, user, stranger)


def give(path: Path, account: Account, *, below: bool = True) -> None:
    """Makes a file or a directory, and all below it, an account's."""
    os.lchown(path, account.uid, account.gid)
    if below and path.is_dir() and not path.is_symlink():
        for inside in path.iterdir():
            give(inside, account)


def state_of(folder: Path) -> dict[str, State]:
    """Mode, owner, group and content of everything in a directory and below it, by path."""
    return {path: state for path, _, state in _states(folder)}


def state_by_number(folder: Path) -> dict[int, State]:
    """The same by the number of the file, whatever name it has."""
    return {number: state for _, number, state in _states(folder)}


def _states(folder: Path) -> Iterator[tuple[str, int, State]]:
    for above, folders, others in os.walk(folder):
        if len(Path(above).relative_to(folder).parts) > 12:
            folders.clear()  # it calls itself, and somebody has dug deep
        for name in (".", *folders, *others):
            path = Path(above, name)
            with suppress(FileNotFoundError):
                status = path.lstat()
                content = path.read_bytes() if stat.S_ISREG(status.st_mode) else b""
                if stat.S_ISLNK(status.st_mode):
                    content = os.fsencode(path.readlink())
                yield str(path), status.st_ino, (status.st_mode, status.st_uid, status.st_gid, content)


def exchange(first: Path, second: Path) -> None:
    """Exchanges what two names lead to, in one step."""
    paths = os.fsencode(first), os.fsencode(second)
    if _LIBC.renameat2(_AT_FDCWD, paths[0], _AT_FDCWD, paths[1], _EXCHANGE):
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()), str(first))


def exchanges(first: Path, second: Path, most_spins: int) -> Callable[[], int]:
    """The stranger's turn: exchanges two directories, and then lets a moment pass."""
    chance = random.Random(11)

    def turn() -> int:
        exchange(first, second)
        for _ in range(chance.randrange(most_spins)):
            pass
        return 1

    return turn


def stages_elsewhere(place: Ground) -> Callable[[], int]:
    """The stranger's turn: puts a link or a directory of his in the place of every other staging directory."""
    seen: set[str] = set()
    whats = ("link", "directory")
    chance = random.Random(3)

    def turn() -> int:
        count = 0
        for name in names_in(place.run):
            if not names.is_staging(name) or name in seen or not belongs_to(place.run / name, place.user):
                continue
            seen.add(name)
            if len(seen) % 2:
                continue
            planted = place.run / f"planted-{len(seen)}"
            plant(planted, whats[len(seen) // 2 % 2], place.private)
            for _ in range(chance.randrange(3000)):  # any moment of a save
                pass
            exchange(planted, place.run / name)
            count += 1
        return count

    return turn


def belongs_to(path: Path, account: Account) -> bool:
    """Whether something has this name, and is the account's."""
    try:
        return path.lstat().st_uid == account.uid
    except OSError:
        return False


def plant(path: Path, what: str, target: Path) -> None:
    """Makes what a stranger may put under a name: a link to `target`, a pipe, a file, or a directory with a file."""
    if what == "link":
        path.symlink_to(target)
    elif what == "pipe":
        os.mkfifo(path)
    elif what == "file":
        path.write_text("the stranger's")
    else:
        path.mkdir()
        (path / "file").write_text("the stranger's")


def pickled(ran: Path) -> bytes:
    """What torch saves of an object that makes a file when it is unpickled."""
    stream = io.BytesIO()
    torch.save(_Runs(str(ran)), stream)
    return stream.getvalue()


class _Runs:
    def __init__(self, ran: str) -> None:
        self._ran = ran

    def __reduce__(self) -> tuple[Callable[..., object], tuple[object, ...]]:
        return os.open, (self._ran, os.O_CREAT | os.O_WRONLY)
