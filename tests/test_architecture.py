"""The floors of the house: `docs/design.md`, "The house"."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import holdfast

SOURCE = Path(holdfast.__file__).parent

# A room imports only from floors below its own, and from itself. `settings` stands above `store`: it asks it for names.
FLOORS = {
    "text": 0,
    "wording": 0,
    "errors": 1,
    "log": 1,
    "arguments": 2,
    "devices": 1,
    "store": 2,
    "state": 2,
    "settings": 3,
    "run": 3,
    "capture": 3,
    "layouts": 3,
    "remote": 3,
    "mirror": 4,
    "doors": 4,
    "ranks": 4,
    "resume": 5,
    "engine": 6,
    "loop": 7,
    "integrations": 8,
    "train": 9,
    "drill": 9,
    "cli": 10,
}
# These are the house itself, not rooms of it: what a user imports, and what `python -m` runs.
FACES = {"__init__", "__main__"}
COMMIT_CORE = ("folder", "files", "names", "grid", "digest", "manifest", "commit")
WITHOUT_TORCH = ("store", "run", "remote", "mirror", "doors", "layouts", "drill", "cli")
HEAVY = {"torch", "transformers", "accelerate", "peft", "trl", "datasets", "safetensors", "numpy"}

FILES = sorted(SOURCE.rglob("*.py"))


def room_of(path: Path) -> str:
    first = path.relative_to(SOURCE).parts[0]
    return first.removesuffix(".py")


def imports(path: Path, *, inside_functions: bool = True) -> Iterator[tuple[str, int]]:
    """Every module that a file imports, and every name from one, with the line."""
    tree = ast.parse(path.read_text())
    nodes = ast.walk(tree) if inside_functions else _at_module_level(tree)
    for node in nodes:
        if isinstance(node, ast.Import):
            yield from ((alias.name, node.lineno) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: a relative import hides the room that it comes from"
            yield from ((f"{node.module}.{alias.name}", node.lineno) for alias in node.names)


def _at_module_level(node: ast.AST) -> Iterator[ast.AST]:
    for child in ast.iter_child_nodes(node):
        if not _is_for_types_only(child) and not isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            yield child
            yield from _at_module_level(child)


def rooms_that(path: Path) -> Iterator[tuple[str, int]]:
    for module, line in imports(path):
        house, *rest = module.split(".")
        if house == "holdfast" and rest and rest[0] not in ("__version__",):
            yield rest[0], line


def test_every_room_has_a_floor_and_every_floor_a_room() -> None:
    assert {room_of(path) for path in FILES} - FACES == set(FLOORS)


@pytest.mark.parametrize(
    "path", [path for path in FILES if room_of(path) not in FACES], ids=lambda path: str(path.relative_to(SOURCE))
)
def test_a_room_imports_from_floors_below_its_own_alone(path: Path) -> None:
    own = room_of(path)
    for room, line in rooms_that(path):
        assert room in FLOORS, f"{path}:{line}: imports from the face of the house: {room}"
        assert room == own or FLOORS[room] < FLOORS[own], f"{path}:{line}: {own} imports {room}, which is not below it"


def module_of(path: Path) -> str:
    parts = path.relative_to(SOURCE.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def modules_imported_by(path: Path) -> set[str]:
    """The modules of the house that a file imports, inside functions too, apart from those for types alone."""
    names = set()
    for node in _that_run(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom):
            names |= {str(node.module)} | {f"{node.module}.{alias.name}" for alias in node.names}
        elif isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
    return names & {module_of(other) for other in FILES}


def _that_run(node: ast.AST) -> Iterator[ast.AST]:
    for child in ast.iter_child_nodes(node):
        if not _is_for_types_only(child):
            yield child
            yield from _that_run(child)


def _is_for_types_only(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"


def circles(imported: dict[str, set[str]]) -> list[list[str]]:
    """The groups of modules of which each reaches all others by imports, over any number of steps."""
    reached = {module: set(others) for module, others in imported.items()}
    for middle in imported:
        for module in imported:
            if middle in reached[module]:
                reached[module] |= reached[middle]
    groups = {frozenset(m for m in imported if m in reached[one] and one in reached[m]) for one in imported}
    return sorted(sorted(group) for group in groups if group)


def test_no_modules_import_each_other_in_a_circle() -> None:
    imported = {module_of(path): modules_imported_by(path) for path in FILES if room_of(path) not in FACES}
    assert circles(imported) == []


def test_a_circle_is_seen_over_any_number_of_steps() -> None:
    assert circles({"a": {"b"}, "b": {"c"}, "c": {"a"}, "d": {"a"}}) == [["a", "b", "c"]]
    assert circles({"a": {"b"}, "b": {"c"}, "c": set()}) == []


def test_a_file_holds_one_subject_in_four_hundred_lines_at_most() -> None:
    assert {path.name: lines for path in FILES if (lines := len(path.read_text().splitlines())) > 400} == {}


@pytest.mark.parametrize("name", COMMIT_CORE)
def test_the_commit_core_imports_the_standard_library_and_itself_alone(name: str) -> None:
    core = {"holdfast.text", *(f"holdfast.store.{other}" for other in COMMIT_CORE)}
    # The digest's own package comes with the first digest that is taken; the core is handed the function that takes it.
    for module, line in imports(SOURCE / "store" / f"{name}.py", inside_functions=name != "digest"):
        own = any(module.startswith(f"{other}.") or module == other for other in core)
        assert own or module.split(".")[0] in sys.stdlib_module_names, f"{name}.py:{line}: imports {module}"


def loaded_by(statement: str) -> set[str]:
    script = f"import sys; sys.path.insert(0, {str(SOURCE.parent)!r}); {statement}; print(*sys.modules)"
    found = subprocess.run([sys.executable, "-I", "-c", script], capture_output=True, text=True, check=True)
    return set(found.stdout.split())


def test_the_commit_core_loads_nothing_else_when_it_is_imported() -> None:
    # What the environment loads into every process (files `*.pth` of editable installs) is none of its business.
    loaded = loaded_by("import holdfast.store.commit") - loaded_by("pass")
    own = {module for module in loaded if module.split(".")[0] == "holdfast"}
    core = {f"holdfast.store.{name}" for name in COMMIT_CORE}
    assert core <= own <= {"holdfast", "holdfast.errors", "holdfast.text", "holdfast.store", *core}
    assert {module.split(".")[0] for module in loaded - own} <= sys.stdlib_module_names


@pytest.mark.parametrize("room", WITHOUT_TORCH)
def test_no_module_that_a_verb_needs_loads_torch_or_its_kin(room: str) -> None:
    for path in sorted((SOURCE / room).rglob("*.py")):
        for module, line in imports(path, inside_functions=False):
            assert module.split(".")[0] not in HEAVY, f"{path}:{line}: imports {module} when it is loaded"


def test_the_verbs_reach_training_only_when_they_train() -> None:
    for path in sorted((SOURCE / "cli").rglob("*.py")):
        for module, line in imports(path, inside_functions=False):
            above = [
                room
                for room in ("train", "integrations", "loop", "engine", "resume", "doors", "settings")
                if module.startswith(f"holdfast.{room}")
            ]
            assert not above, f"{path}:{line}: imports {module} when it is loaded"
