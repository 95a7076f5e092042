"""The program with two neighbouring steps of one function exchanged, made from its own source."""

import ast
import inspect
import textwrap
from collections.abc import Callable
from typing import Any

_STEPS = ("files.", "make_way(", "os.fsync(", "write_all(", "_remove(", ".unlink(")


def steps_of(function: Callable[..., Any]) -> list[str]:
    """The first lines of the statements of a function that touch the disk."""
    return [ast.unparse(statement).splitlines()[0] for _, _, statement in _steps(_tree_of(function))]


def exchanged(function: Callable[..., Any], number: int) -> Callable[..., Any]:
    """The same function with its `number`-th step and the one after it, in the same block, exchanged."""
    tree = _tree_of(function)
    (block, place, _), (other, later, _) = _steps(tree)[number : number + 2]
    assert block is other, "the steps are in different blocks"
    block[place], block[later] = block[later], block[place]
    made: dict[str, Any] = {}
    exec(compile(ast.fix_missing_locations(ast.Module([tree], [])), "exchanged", "exec"), function.__globals__, made)
    changed: Callable[..., Any] = made[tree.name]
    return changed


def _tree_of(function: Callable[..., Any]) -> ast.FunctionDef:
    (tree,) = ast.parse(textwrap.dedent(inspect.getsource(function))).body
    assert isinstance(tree, ast.FunctionDef)
    return tree


def _steps(tree: ast.FunctionDef) -> list[tuple[list[ast.stmt], int, ast.stmt]]:
    """The statements that touch the disk: in the body of the function, or in that of its `try` or `with` with more."""
    bodies = [tree.body, *(statement.body for statement in tree.body if isinstance(statement, ast.Try | ast.With))]
    return max(map(_steps_in, bodies), key=len)


def _steps_in(block: list[ast.stmt]) -> list[tuple[list[ast.stmt], int, ast.stmt]]:
    return [
        (block, place, statement)
        for place, statement in enumerate(block)
        if not (isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Constant))  # a docstring
        if any(step in ast.unparse(statement) for step in _STEPS)
    ]
