import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest
from tools import api

import holdfast
from helpers.trainings import Launcher

# An interface: a name that is added here is one that is kept.
PUBLIC = [
    "Answer",
    "Checkpointer",
    "DynamicCheckpoint",
    "HoldfastError",
    "Stopped",
    "__version__",
    "attach",
    "evaluation",
    "save",
    "status",
]


def test_the_public_names_are_these() -> None:
    assert holdfast.__all__ == PUBLIC


@pytest.mark.parametrize("name", [name for name in PUBLIC if name not in ("__version__", "attach")])
def test_each_resolves_and_says_what_it_is(name: str) -> None:
    found = getattr(holdfast, name)
    assert found.__doc__ and found.__name__ == name


def test_attach_resolves_and_says_what_it_is(launcher: Launcher, tmp_path: Path) -> None:
    # It loads transformers, which takes ten seconds where that was not done before.
    program = "import holdfast; print(holdfast.attach.__name__, holdfast.attach.__doc__.splitlines()[0])"
    process = launcher.start(cwd=tmp_path, program=program)
    assert process.wait() == 0 and process.output.startswith("attach Makes a trainer save on demand")


def test_there_is_nothing_else() -> None:
    with pytest.raises(AttributeError, match="module 'holdfast' has no attribute 'Checkpointer2'"):
        holdfast.Checkpointer2  # noqa: B018
    assert holdfast.__doc__ and holdfast.__version__.count(".") == 2


def test_importing_the_package_loads_neither_torch_nor_pydantic() -> None:
    heavy = "{'torch', 'pydantic', 'transformers', 'numpy', 'typer'}"
    script = f"import sys, holdfast; holdfast.save, holdfast.status; print({heavy} & set(sys.modules))"
    found = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert found.stdout == "set()\n"


def test_the_page_of_the_interface_is_what_the_docstrings_say() -> None:
    assert set(api.PUBLIC) == set(PUBLIC) - {"__version__"}
    for name, module in api.PUBLIC.items():
        assert getattr(import_module(module), name) is getattr(holdfast, name)
    assert api.PAGE.read_text() == api.page(), "write it anew: make api (PYTHONPATH=src:. python -m tools.api)"
