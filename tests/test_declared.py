"""What the package imports is declared: of everybody what `dependencies` has, and of the rest what an extra has."""

import ast
import re
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest
from tools import dist

import holdfast

SOURCE = Path(holdfast.__file__).parent
PROJECT = tomllib.loads((Path(__file__).parent.parent / "pyproject.toml").read_text())["project"]
EXTRAS: dict[str, list[str]] = PROJECT["optional-dependencies"]

# Of those whose module is called otherwise than what is installed.
MODULES = {"pyyaml": "yaml"}
# What these import beyond `dependencies`, by the extra. What has the longest name counts.
OF_EXTRAS = {
    "integrations/trainer": {"hf"},
    "remote": {"remote"},
    "integrations/trainer/trl_state.py": {"hf", "trl"},
    "train": {"hf", "trl"},
}
# A plugin is imported by the program that it is one of.
OF_HOSTS = {"integrations/axolotl": {"axolotl"}}


def of_requirement(requirement: str) -> str:
    """The module of a requirement such as `PyYAML>=6`."""
    match = re.match(r"[A-Za-z0-9._-]+", requirement)
    assert match is not None
    name = match[0].lower()
    return MODULES.get(name, name.replace("-", "_"))


def modules_of(extra: str) -> set[str]:
    own = {of_requirement(each) for each in EXTRAS[extra] if not each.startswith("holdfast-torch")}
    inner = re.findall(r"holdfast-torch\[([\w,]+)\]", " ".join(EXTRAS[extra]))
    return own.union(*(modules_of(each) for names in inner for each in names.split(",")))


def longest(table: dict[str, set[str]], path: Path) -> set[str]:
    """The entry for a file: that of itself, of a name that it begins with, or of a folder that it is in."""
    text = str(path.relative_to(SOURCE))
    fitting = [key for key in table if text.startswith(key)]
    return table[max(fitting, key=len)] if fitting else set()


def allowed(path: Path) -> set[str]:
    declared = {of_requirement(each) for each in PROJECT["dependencies"]}
    return declared.union(*map(modules_of, longest(OF_EXTRAS, path))) | longest(OF_HOSTS, path)


def others_in(tree: ast.AST) -> Iterator[tuple[str, int]]:
    """The modules of others that a file imports, anywhere in it, except for types alone."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            continue
        names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        names += [str(node.module)] if isinstance(node, ast.ImportFrom) else []
        for top in {name.partition(".")[0] for name in names} - {"holdfast"} - sys.stdlib_module_names:
            yield top, getattr(node, "lineno", 0)
        yield from others_in(node)


@pytest.mark.parametrize("path", sorted(SOURCE.rglob("*.py")), ids=lambda path: str(path.relative_to(SOURCE)))
def test_what_a_file_imports_is_declared(path: Path) -> None:
    known = allowed(path)
    foreign = [f"{path}:{line}: {top}" for top, line in others_in(ast.parse(path.read_text())) if top not in known]
    assert not foreign, "neither in dependencies nor in an extra that is for this file:\n" + "\n".join(foreign)


def test_what_is_declared_is_imported() -> None:
    imported = {top for path in SOURCE.rglob("*.py") for top, _ in others_in(ast.parse(path.read_text()))}
    declared = {of_requirement(each) for each in PROJECT["dependencies"]} | modules_of("hf") | modules_of("trl")
    assert declared <= imported, f"nothing imports {sorted(declared - imported)}"


def test_every_import_is_seen_and_names_are_read() -> None:
    code = "import a.b, os\ndef f():\n    from c.d import e\n    import holdfast.x\nif TYPE_CHECKING:\n    import t\n"
    assert sorted(others_in(ast.parse(code))) == [("a", 1), ("c", 3)]
    assert [of_requirement(each) for each in ("PyYAML>=6", "huggingface_hub", "pytorch-ignite>=1")] == [
        "yaml",
        "huggingface_hub",
        "pytorch_ignite",
    ]
    assert "transformers" in modules_of("trl") and "trl" not in modules_of("hf")


def test_a_release_is_used_with_the_lowest_versions_and_with_every_extra_for_training() -> None:
    assert len(dist.lowest()) == len(PROJECT["dependencies"]), "each has a lower bound, which `make dist` installs"
    assert set(EXTRAS) - set(dist.extras()) == {"bench", "dev", "servers", "trainers"}
    programs = {path.stem.removeprefix("with_") for path in dist.PROGRAMS.glob("with_*.py")}
    assert {"hf", "trl", "lightning"} <= programs <= set(EXTRAS)
