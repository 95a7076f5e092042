"""Writes docs/api.md from the docstrings (`make api`): what `import holdfast` gives, and what that gives in turn.

With `--check` it compares the page, and writes nothing.
"""

import ast
import re
import sys
import textwrap
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "api.md"
_SOURCE = ROOT / "src"

# In the order of the page: the name, and where it is defined.
PUBLIC = {
    "Checkpointer": "holdfast.loop.checkpointer",
    "attach": "holdfast.integrations.attach",
    "save": "holdfast.mirror.asking",
    "status": "holdfast.mirror.asking",
    "evaluation": "holdfast.state.rng.evaluation",
    "DynamicCheckpoint": "holdfast.settings",
    "Answer": "holdfast.run.request",
    "HoldfastError": "holdfast.errors",
    "Stopped": "holdfast.errors",
}
# What the public names give: classes that nobody makes, so that how they are made is left out.
GIVEN = {
    "PendingSave": "holdfast.engine.pending_save",
    "AskedSave": "holdfast.run.asking",
}
_INNER = {"resolve", "hear", "encode", "line"}  # of ours alone, though other rooms call them
_ERRORS = "holdfast.errors"
_SECTION = re.compile(r"^(Args|Returns|Raises|Yields|Attributes):$")
_ENTRY = re.compile(r"^(?P<names>\*{0,2}[\w, ]+?): (?P<text>.*)$")

_HEAD = """# The Python interface

Written by `make api` from the docstrings: what is wrong here is to be changed there. How these are used:
[python.md](python.md). What each setting means: [configuration.md](configuration.md).
"""

_Documented = ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef


class Docstring(NamedTuple):
    """A docstring of Google's style, taken apart."""

    prose: str
    sections: dict[str, list[tuple[str, str]]]
    """By the name of a section its entries, each with the names that it is about; empty ones where it is about one."""


def page() -> str:
    """Returns the page."""
    parts = [_HEAD]
    for name, module in PUBLIC.items():
        parts += _described(f"holdfast.{name}", _definition(module, name))
    for name, module in GIVEN.items():
        parts += _described(name, _definition(module, name), is_made=False)
    parts += ["## Errors", "Of `holdfast.errors`. Each has an `exit_code`, and a `hint`: what to do next, or None."]
    rows = [f"| `{error.name}` | {_cell(_docstring(error).prose.partition(chr(10))[0])} |" for error in _errors()]
    parts += ["\n".join(["| error | meaning |", "| --- | --- |", *rows])]
    return "\n\n".join(part.strip() for part in parts) + "\n"


def _described(title: str, node: _Documented, *, is_made: bool = True) -> Iterator[str]:
    yield f"## `{title}`"
    initial = _method(node, "__init__") if isinstance(node, ast.ClassDef) else node
    docstring = _docstring(node)
    if is_made and isinstance(initial, ast.FunctionDef):
        yield _signature(title, initial)
    yield docstring.prose
    for section, entries in docstring.sections.items():
        if is_made or section != "Args":
            is_record = any("dataclass" in ast.unparse(decorator) for decorator in node.decorator_list)
            yield _section("Attributes" if is_record else section, entries)
    if isinstance(node, ast.ClassDef):
        if fields := list(_fields(node)):
            yield "\n".join(["| field | meaning |", "| --- | --- |", *fields])
        for method in _public_methods(node):
            yield from _method_described(method)


def _method_described(method: ast.FunctionDef) -> Iterator[str]:
    docstring = _docstring(method)
    is_property = any(isinstance(each, ast.Name) and each.id == "property" for each in method.decorator_list)
    yield f"### `{method.name}`"
    yield f"```text\n{method.name}{_returned(method)}\n```" if is_property else _signature(method.name, method)
    yield docstring.prose
    for section, entries in docstring.sections.items():
        yield _section(section, entries)


def _signature(name: str, function: ast.FunctionDef) -> str:
    """Returns a signature as the source has it, on one line or with a line for each argument."""
    joined = list(_arguments(function.args))
    returned = "" if function.name == "__init__" else _returned(function)
    line = f"{name}({', '.join(joined)}){returned}"
    if len(line) > 110:
        line = f"{name}(\n" + "".join(f"    {argument},\n" for argument in joined) + f"){returned}"
    return f"```text\n{line}\n```"


def _arguments(arguments: ast.arguments) -> Iterator[str]:
    """Yields the arguments but `self`, each with its type and its default."""
    positional = [*arguments.posonlyargs, *arguments.args]
    defaults = [None] * (len(positional) - len(arguments.defaults)) + arguments.defaults
    for argument, default in zip(positional, defaults, strict=True):
        if argument.arg != "self":
            yield _argument(argument, default)
        if arguments.posonlyargs and argument is arguments.posonlyargs[-1]:
            yield "/"
    if arguments.vararg is not None:
        yield f"*{_argument(arguments.vararg, None)}"
    elif arguments.kwonlyargs:
        yield "*"
    for argument, default in zip(arguments.kwonlyargs, arguments.kw_defaults, strict=True):
        yield _argument(argument, default)
    if arguments.kwarg is not None:
        yield f"**{_argument(arguments.kwarg, None)}"


def _argument(argument: ast.arg, default: ast.expr | None) -> str:
    kind = f": {ast.unparse(argument.annotation)}" if argument.annotation is not None else ""
    if isinstance(default, ast.Attribute) and ast.unparse(default.value) == "DEFAULTS":
        default = _setting(default.attr)
    return f"{argument.arg}{kind}" + (f" = {ast.unparse(default)}" if default is not None else "")


def _setting(name: str) -> ast.expr | None:
    """Returns the default of a setting, as `Settings` has it, or what that is made of."""
    classes = [node for node in _tree("holdfast.settings").body if isinstance(node, ast.ClassDef)]
    fields = [field for node in classes for field in node.body if isinstance(field, ast.AnnAssign)]
    values = [field.value for field in fields if ast.unparse(field.target) == name and field.value is not None]
    return values[0]


def _returned(function: ast.FunctionDef) -> str:
    return f" -> {ast.unparse(function.returns)}" if function.returns is not None else ""


def _section(name: str, entries: Sequence[tuple[str, str]]) -> str:
    if name in ("Returns", "Yields"):
        return f"**{name}:** {' '.join(text for _, text in entries)}"
    title = {"Args": "argument", "Raises": "raises", "Attributes": "field"}[name]
    rows = [f"| `{'`, `'.join(names.split(', '))}` | {_cell(text)} |" for names, text in entries]
    return "\n".join([f"| {title} | meaning |", "| --- | --- |", *rows])


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")


def _fields(node: ast.ClassDef) -> Iterator[str]:
    """Yields a row for each attribute that has a docstring of its own."""
    for before, after in zip(node.body, node.body[1:], strict=False):
        if isinstance(before, ast.AnnAssign) and isinstance(before.target, ast.Name) and _text(after):
            name, kind = before.target.id, ast.unparse(before.annotation)
            default = f" = {_default(before.value)}" if before.value is not None else ""
            yield f"| `{name}: {_cell(kind + default)}` | {_cell(_text(after))} |"


def _default(value: ast.expr) -> str:
    """Returns the default of a field, which pydantic may have in a call."""
    if isinstance(value, ast.Call):
        defaults = [each.value for each in value.keywords if each.arg == "default"]
        return ast.unparse(defaults[0]) if defaults else "..."
    return ast.unparse(value)


def _text(node: ast.stmt) -> str:
    is_text = isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)
    return str(node.value.value) if is_text else ""  # type: ignore[attr-defined]


def _docstring(node: _Documented) -> Docstring:
    """Takes a docstring apart.

    Raises:
        ValueError: There is none.
    """
    text = ast.get_docstring(node)
    if text is None:
        raise ValueError(f"{node.name} has no docstring")
    prose: list[str] = []
    sections: dict[str, list[str]] = {}
    lines = prose
    for line in text.splitlines():
        if heading := _SECTION.match(line):
            lines = sections.setdefault(heading[1], [])
        else:
            lines.append(line)
    return Docstring(_prose(prose), {name: _entries(name, inside) for name, inside in sections.items()})


def _prose(lines: Sequence[str]) -> str:
    """Returns paragraphs as they are, and what is indented as a block of code."""
    paragraphs = re.split(r"\n\s*\n", "\n".join(lines).strip())
    shown = []
    for paragraph in paragraphs:
        is_code = all(line.startswith("    ") for line in paragraph.splitlines())
        shown.append(f"```text\n{textwrap.dedent(paragraph)}\n```" if is_code else paragraph)
    return "\n\n".join(shown)


def _entries(section: str, lines: Sequence[str]) -> list[tuple[str, str]]:
    """Returns the entries of a section, each with its names; one of what is returned has none."""
    text = textwrap.dedent("\n".join(lines)).strip()
    if section in ("Returns", "Yields"):
        return [("", " ".join(text.split()))]
    entries: list[tuple[str, str]] = []
    begun = ""  # names that go over the end of a line
    for line in text.splitlines():
        if line.startswith(" "):
            names, so_far = entries[-1]
            entries[-1] = (names, f"{so_far} {line.strip()}")
        elif (entry := _ENTRY.match(begun + line)) is not None:
            entries.append((entry["names"], entry["text"]))
            begun = ""
        elif line.endswith(","):
            begun += f"{line} "
        else:
            raise ValueError(f"an entry of {section} names nothing: {line}")
    return entries


def _definition(module: str, name: str) -> _Documented:
    for node in _tree(module).body:
        if isinstance(node, _Documented) and node.name == name:
            return node
    raise LookupError(f"{module} defines no {name}")


def _errors() -> list[ast.ClassDef]:
    return [node for node in _tree(_ERRORS).body if isinstance(node, ast.ClassDef)]


def _tree(module: str) -> ast.Module:
    path = _SOURCE.joinpath(*module.split(".")).with_suffix(".py")
    return ast.parse(path.read_text(encoding="utf-8"))


def _method(node: ast.ClassDef, name: str) -> ast.FunctionDef | None:
    return next((each for each in node.body if isinstance(each, ast.FunctionDef) and each.name == name), None)


def _public_methods(node: ast.ClassDef) -> Iterator[ast.FunctionDef]:
    for each in node.body:
        if isinstance(each, ast.FunctionDef) and not each.name.startswith("_") and each.name not in _INNER:
            yield each


def main() -> None:
    """Writes the page, or compares it."""
    text = page()
    if "--check" not in sys.argv[1:]:
        PAGE.write_text(text, encoding="utf-8")
        print(f"wrote {PAGE.relative_to(ROOT)}")
    elif not PAGE.exists() or PAGE.read_text(encoding="utf-8") != text:
        sys.exit("docs/api.md is not what the docstrings say: make api")


if __name__ == "__main__":
    main()
