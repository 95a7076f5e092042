"""The staging directory exchanged at any moment of a save: no wrong "saved", and nothing changed elsewhere."""

from collections.abc import Callable
from pathlib import Path

import pytest

from crash.stories import KEEP_ALL, snapshot
from helpers.support import RUN
from holdfast.engine import save as saving
from holdfast.run.request import Answer, Request
from holdfast.run.run import Run
from holdfast.store import catalog, names
from holdfast.store.verify import verify
from security.exchanging import Exchange, before_each_call, number_of_calls, tree_of


def staged(root: Path) -> Path | None:
    return next((path for path in root.iterdir() if names.is_staging(path.name) and path.is_dir()), None)


def foreign(top: Path) -> Path:
    """A directory of the same user's, with a file under a name that a save writes, that others may read."""
    other = top / "foreign"
    (other / "folder").mkdir(parents=True)
    other.chmod(0o755)
    (other / "training.json").write_bytes(b"not yours")
    (other / "training.json").chmod(0o644)
    return other


def save(run: Run, step: int = 7) -> Answer:
    return saving.save(run, snapshot(step), [Request("schedule")], KEEP_ALL)


@pytest.mark.parametrize("kind", ["directory", "link"])
def test_security_s21_a_staging_directory_that_is_exchanged_is_no_save_and_nothing_else_is_touched(
    tmp_path: Path, kind: str, record_property: Callable[[str, object], None]
) -> None:
    """Before each call of a save another directory of the same user's, or a link to one, is put in its place."""
    (tmp_path / "count").mkdir()
    counted = Run.open(tmp_path / "count", continues=RUN)
    calls = number_of_calls(lambda: save(counted))
    assert calls > 30
    exchanged = failed = 0
    for number in range(0, calls, 1 if kind == "directory" else 3):
        top = tmp_path / str(number)
        (top / "run").mkdir(parents=True)
        run = Run.open(top / "run", continues=RUN)
        other = foreign(top)
        before = tree_of(other)
        exchange = Exchange(number, lambda root=run.root: staged(root), other, link=kind == "link")  # type: ignore[misc]
        with before_each_call(exchange):
            answer = save(run)
        if exchange.aside is not None:
            exchanged += 1
        left = [path for path in (other, *run.root.glob("*")) if path.is_dir() and (path / "training.json").is_file()]
        where = [path for path in left if (path / "training.json").read_bytes() == b"not yours"]
        assert [tree_of(path) for path in where if not path.is_symlink()] == [before], f"call {number}: {answer}"
        if answer.saved:
            assert verify(Path(answer.path)).good, f"call {number}"
            assert answer.path in [str(entry.path) for entry in catalog.entries(run.root)]
        else:
            failed += 1
            assert "somebody exchanged" in answer.error or "Not a directory" in answer.error, answer.error
            if exchange.aside is not None and exchange.aside.exists():
                assert not list(exchange.aside.iterdir()), f"call {number}: our files are left in {exchange.aside}"
        again = save(run, 8)
        assert again.saved and verify(Path(again.path)).good
        run.close("finished", 0)
    record_property("injected", exchanged)
    assert exchanged > calls / 9 and failed > calls / 12
