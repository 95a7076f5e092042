"""The page of the interface, from docstrings of every shape that there is."""

import ast

import pytest
from tools import api


def described(code: str) -> str:
    (node,) = ast.parse(code).body
    assert isinstance(node, ast.ClassDef | ast.FunctionDef)
    return "\n".join(api._described("it", node))


def test_arguments_have_their_types_defaults_and_meanings_however_they_are_written() -> None:
    page = described('''
def save(run: str | dict[str, int], /, label: str = "a, b", *rest: int, wait: bool = False, **more: Any) -> None:
    """Saves.

    It goes on:

        save(1)

    Args:
        run: One | or
            the other: here.
        label, wait,
        rest: Three.
        **more: Whatever.

    Returns:
        Nothing: really
        nothing.

    Raises:
        ConfigError: It is wrong.
    """
''')
    assert (
        "it(run: str | dict[str, int], /, label: str = 'a, b', *rest: int, wait: bool = False, **more: Any) -> None"
        in (" ".join(page.replace("\n    ", " ").replace(",\n)", ")").replace("( ", "(").split()))
    )
    assert "```text\nsave(1)\n```" in page
    assert (
        "| `run` | One \\| or the other: here. |\n| `label`, `wait`, `rest` | Three. |\n| `**more` | Whatever. |"
        in page
    )
    assert "**Returns:** Nothing: really nothing." in page and "| `ConfigError` | It is wrong. |" in page


def test_a_class_shows_fields_properties_and_public_methods_alone() -> None:
    page = described('''
class Thing(BaseModel):
    """A thing."""

    size: int = Field(default=3, ge=0)
    """Its size."""

    _hidden: int = 0
    shown: str

    @property
    def answer(self) -> int | None:
        """The answer."""

    def _own(self) -> None:
        """Not shown."""

    def wait(self, timeout: float | None = None) -> int:
        """Waits."""
''')
    assert "| `size: int = 3` | Its size. |" in page and "hidden" not in page and "Not shown" not in page
    assert "### `answer`\n```text\nanswer -> int | None\n```" in page
    assert "wait(timeout: float | None = None) -> int" in page


def test_what_has_no_docstring_is_an_error() -> None:
    with pytest.raises(ValueError, match="save has no docstring"):
        described("def save(): pass")
