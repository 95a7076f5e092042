"""What must be durable reaches the disk through `holdfast.store.files`, so that nobody forgets a sync on the way."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

import holdfast

SOURCE = Path(holdfast.__file__).parent

# Operations that change a disk, by the names that they have in `os`, `shutil` and `Path`.
CHANGES = re.compile(
    "open|p?write|pwritev|fsync|fdatasync|f?truncate|rename|replace|unlink|remove|rmdir|mkdir|makedirs|f?chmod|link"
    "|symlink|hardlink_to|symlink_to|rmtree|move|copy|copyfile|copytree|touch|write_bytes|write_text"
)
# What goes past the layer, and why that is safe.
PAST_IT = {
    ("store/blocks.py", "open"): "staged files are synced when they are sealed",
    ("store/blocks.py", "pwrite"): "likewise",
    ("store/blocks.py", "fsync"): "a head start: sealing syncs again",
    ("store/blocks.py", "unlink"): "a probe, in a directory that is staged",
    ("store/folder.py", "open"): "opens for the layer, and directories, which are only read",
    ("store/reading.py", "open"): "only reads",
}


def past_the_layer(path: Path) -> Iterator[str]:
    """The operations of a module that change the disk, and are none of `files`."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and CHANGES.fullmatch(node.func.attr):
            owner = ast.unparse(node.func.value)
            plain = owner in ("os", "shutil") or node.func.attr not in ("open", "replace", "write", "copy", "remove")
            if owner not in ("files", "dataclasses", "self") and plain:
                yield node.func.attr
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "open":
            yield "open"


ROOMS = [path for room in ("store", "run") for path in sorted((SOURCE / room).rglob("*.py")) if path.name != "files.py"]


@pytest.mark.parametrize(
    "path", [*ROOMS, SOURCE / "engine" / "save.py"], ids=lambda path: str(path.relative_to(SOURCE))
)
def test_every_change_of_the_disk_goes_through_one_layer(path: Path) -> None:
    name = str(path.relative_to(SOURCE))
    assert {(name, operation) for operation in past_the_layer(path)} <= PAST_IT.keys()


def test_nothing_is_excused_that_is_not_there() -> None:
    assert {(name, found) for name, _ in PAST_IT for found in past_the_layer(SOURCE / name)} >= PAST_IT.keys()
