"""How the source reads: what docstrings begin with, what locals are called, how long functions of `engine/` are.

How many branches those have is ruff's to count: `pyproject.toml`, C901.
"""

import ast
import re
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import pytest

import holdfast

SOURCE = Path(holdfast.__file__).parent
FILES = sorted(SOURCE.rglob("*.py"))

# A docstring begins with a verb or a noun phrase, and not with a clause.
CLAUSE = re.compile(r"(What|Whether|How|Where|Who|When)\b", re.ASCII)
# Names that say that something was got, and not what it is.
EMPTY_NAMES = {"found", "one", "held", "told", "given", "it"}

MOST_LINES = 40
# Stories that are read from top to bottom.
STORIES = {("save.py", "save")}

Function = ast.FunctionDef | ast.AsyncFunctionDef
Documented = ast.Module | ast.ClassDef | Function


def docstrings(tree: ast.Module) -> Iterator[tuple[int, str]]:
    """Those of modules, classes, functions and attributes, with the line."""
    for node in ast.walk(tree):
        if isinstance(node, Documented):
            if (text := ast.get_docstring(node)) is not None:
                yield getattr(node, "lineno", 1), text
            if not isinstance(node, Function) or node.name == "__init__":
                yield from _of_attributes(node.body)


def _of_attributes(body: list[ast.stmt]) -> Iterator[tuple[int, str]]:
    for before, after in pairwise(body):
        if (
            isinstance(before, ast.Assign | ast.AnnAssign)
            and isinstance(after, ast.Expr)
            and isinstance(after.value, ast.Constant)
            and isinstance(after.value.value, str)
        ):
            yield after.lineno, after.value.value


def locals_of(tree: ast.Module) -> Iterator[tuple[int, str]]:
    """Every name that is bound to a value: by assignment, loop, `with`, `except`, `match`, or as a parameter."""
    for node in ast.walk(tree):
        match node:
            case ast.Name(id=name, ctx=ast.Store()) | ast.arg(arg=name):
                yield node.lineno, name
            case ast.ExceptHandler(name=str(name)) | ast.MatchAs(name=str(name)) | ast.MatchStar(name=str(name)):
                yield node.lineno, name
            case ast.MatchMapping(rest=str(name)):
                yield node.lineno, name


def lines_without_docstring(function: Function) -> int:
    """The lines from `def` to the end, less those of the docstring."""
    assert function.end_lineno is not None
    lines = function.end_lineno - function.lineno + 1
    if ast.get_docstring(function) is not None:
        first = function.body[0]
        assert first.end_lineno is not None
        lines -= first.end_lineno - first.lineno + 1
    return lines


def named(path: Path) -> str:
    return str(path.relative_to(SOURCE))


@pytest.mark.parametrize("path", FILES, ids=named)
def test_no_docstring_begins_with_a_clause(path: Path) -> None:
    clauses = [f"{path}:{line}: {text}" for line, text in docstrings(ast.parse(path.read_text())) if CLAUSE.match(text)]
    assert not clauses, "begin with a verb or a noun phrase:\n" + "\n".join(clauses)


@pytest.mark.parametrize("path", FILES, ids=named)
def test_locals_are_named_for_what_they_hold(path: Path) -> None:
    empty = [f"{path}:{line}: {name}" for line, name in locals_of(ast.parse(path.read_text())) if name in EMPTY_NAMES]
    assert not empty, "name them for what they hold:\n" + "\n".join(empty)


@pytest.mark.parametrize("path", sorted((SOURCE / "engine").glob("*.py")), ids=named)
def test_functions_of_the_engine_are_short(path: Path) -> None:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, Function) and (path.name, node.name) not in STORIES:
            lines = lines_without_docstring(node)
            assert lines <= MOST_LINES, f"{path}:{node.lineno}: {node.name} has {lines} lines; {MOST_LINES} is the most"


def test_every_kind_of_docstring_is_looked_at() -> None:
    tree = ast.parse(
        '"""a"""\nX = 1\n"""b"""\n"not one"\n'
        'class C:\n    """c"""\n    x: int\n    """d"""\n'
        '    def __init__(self):\n        """e"""\n        self.x = 1\n        """f"""\n'
        '    async def m(self):\n        """g"""\n        y = 1\n        """not one"""\n'
    )
    assert sorted(text for _, text in docstrings(tree)) == list("abcdefg")
    assert [bool(CLAUSE.match(text)) for text in ("What is", "Whether", "Whatever is", "Whole", "Returns what")] == [
        True,
        True,
        False,
        False,
        False,
    ]


@pytest.mark.parametrize(
    "code",
    [
        "it = 1",
        "it: int = 1",
        "a, (b, *it) = c",
        "for it in a: pass",
        "with a as it: pass",
        "try: pass\nexcept OSError as it: pass",
        "[it for it in a]",
        "{a: b for a, it in c}",
        "if (it := a): pass",
        "def f(it): pass",
        "def f(*it): pass",
        "def f(*, it=1): pass",
        "lambda **it: 1",
        "match a:\n    case [1, *it]: pass",
        "match a:\n    case {'b': 1, **it}: pass",
        "match a:\n    case int() as it: pass",
    ],
)
def test_every_way_to_bind_a_local_is_looked_at(code: str) -> None:
    assert "it" in {name for _, name in locals_of(ast.parse(code))}


@pytest.mark.parametrize("code", ["a.it = 1", "f(it=1)", "print(it)", "a['it'] = 1", "def it(): pass"])
def test_what_is_no_local_may_have_any_name(code: str) -> None:
    assert "it" not in {name for _, name in locals_of(ast.parse(code))}
