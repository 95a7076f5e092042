"""The names that no documentation promises: all are listed, all are there, and each is done without, or refused."""

import ast
import json
import re
import sys
import tomllib
from importlib import import_module
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.version import Version
from transformers import Trainer
from transformers.trainer_callback import CallbackHandler

import holdfast
from helpers.full import in_full
from helpers.small_trainer import small_trainer
from helpers.trainings import Launcher
from holdfast.errors import UnsupportedError
from holdfast.integrations.trainer import contract
from holdfast.integrations.trainer.contract import CONTRACT, Name

VERSION = version("transformers")
SRC = Path(holdfast.__file__).parent
PROJECT = Path(__file__).parents[3] / "pyproject.toml"
# What those libraries use too, and is not theirs: of Python, of torch and of `datasets`.
OF_OTHERS = {
    *("_asdict", "_exit", "_fields", "_replace"),
    *("_buffers", "_iterator", "_last_lr", "_modules", "_non_persistent_buffers_set", "_orig_mod", "_parameters"),
    *("_schedulers", "_step_count", "_fingerprint"),
    *("_scale", "_growth_tracker", "_version", "_local_tensor"),
}


def used() -> dict[str, str]:
    """The private names that the source uses of objects of others, each with a place."""
    names: dict[str, str] = {}
    for path in sorted(SRC.rglob("*.py")):
        if path.name == "contract.py":
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            name = ""
            if isinstance(node, ast.Attribute) and not (
                isinstance(node.value, ast.Name) and node.value.id in ("self", "cls")
            ):
                name = node.attr
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                name = node.value
            if re.fullmatch(r"_[a-z]\w*", name):
                names.setdefault(name, f"{path.relative_to(SRC)}:{getattr(node, 'lineno', 0)}")
    return names


def theirs() -> set[str]:
    """The private attributes that the four libraries use themselves, in the modules that a training goes through."""
    places = {
        "transformers": ["trainer*.py", "modeling_utils.py", "configuration_utils.py", "generation/utils.py"],
        "accelerate": ["accelerator.py", "data_loader.py", "optimizer.py", "scheduler.py", "state.py"],
        "trl": ["trainer/*.py"],
        "peft": ["peft_model.py", "utils/save_and_load.py"],
    }
    names: set[str] = set()
    for package, patterns in places.items():
        spec = find_spec(package)
        assert spec is not None and spec.origin is not None
        for pattern in patterns:
            for path in Path(spec.origin).parent.glob(pattern):
                names.update(re.findall(r"(?:\.|def |\s)(_[a-z]\w*)\b", path.read_text()))
    return names


def test_every_private_name_that_is_used_is_listed() -> None:
    listed = {name.name for name in CONTRACT}
    unlisted = theirs() & used().keys() - listed - OF_OTHERS
    places = [f"{name} at {used()[name]}: list it in contract.py, with what it is for" for name in unlisted]
    assert not unlisted, places
    private = {name for name in listed if name.startswith("_")}
    assert not private - used().keys(), "listed, and used nowhere"


@pytest.mark.parametrize("name", CONTRACT, ids=str)
def test_the_installed_versions_have_it(name: Name) -> None:
    module, _, last = name.owner.rpartition(".")
    if not last[:1].isupper():
        module = name.owner
    import_module(module)
    assert contract.is_there(name)


def test_the_page_says_what_each_of_them_buys() -> None:
    rows = [
        f"| `{name}` | {name.package} {name.seen} | {name.purpose} | {'refused: ' * name.is_needed}{name.without} |"
        for name in CONTRACT
    ]
    page = (Path(__file__).parents[3] / "docs" / "design.md").read_text()
    assert "\n".join(rows) in page, "docs/design.md has another table; this is the code's:\n" + "\n".join(rows)


METHODS = [name for name in CONTRACT if name.is_needed and callable(getattr(Trainer, name.name, None))]


@pytest.mark.parametrize("name", METHODS, ids=str)
def test_what_nothing_can_be_saved_without_is_refused_before_anything_is_written(
    tmp_path: Path, name: Name, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer = small_trainer(tmp_path / "out")
    assert len(METHODS) > 10
    monkeypatch.delattr(Trainer, name.name)
    said = f"^transformers {VERSION} has no {name}: {re.escape(name.without)}"
    with pytest.raises(UnsupportedError, match=said) as refused:
        holdfast.attach(trainer)
    assert "install one of these" in (refused.value.hint or "") and not [*(tmp_path / "out").glob("*")]


def test_other_parameters_are_another_method(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trainer = small_trainer(tmp_path / "out")
    monkeypatch.setattr(CallbackHandler, "on_save", lambda self, args, control: control)
    with pytest.raises(UnsupportedError, match=r"has another CallbackHandler\.on_save: "):
        holdfast.attach(trainer)


# Trains, stops at step 7, goes on, and is compared with the same trainer without Holdfast, which goes on from nothing.
RUN = """
import json, sys
from pathlib import Path
from helpers.renamed import rename
import holdfast.integrations.trainer.attach
for module, names in json.loads(sys.argv[1]).items():
    rename(module, names)
settings = json.loads(sys.argv[2])
from helpers.small_trainer import Stop, checkpoints, small_trainer, train, weights
plain = small_trainer(Path("plain"), **settings)
plain.train()
train(Path("out"), [Stop(7)], **settings)
ended = train(Path("out"), **settings)
history = [
    [{k: v for k, v in row.items() if not k.endswith(("runtime", "per_second"))} for row in trainer.state.log_history]
    for trainer in (plain, ended)
]
result = {"equal": weights(ended) == weights(plain), "plain": history[0], "ours": history[1]}
Path("result.json").write_text(json.dumps(result))
"""

LESSER = [
    name
    for name in CONTRACT
    if not name.is_needed
    and name.owner.startswith("transformers.trainer")
    and Version(name.since or "0") <= Version(VERSION)
]


def run_without(
    launcher: Launcher, folder: Path, names: list[Name], **settings: object
) -> tuple[dict[str, object], str]:
    modules: dict[str, list[str]] = {}
    for name in names:
        module = name.owner if name.owner in sys.modules else name.owner.rpartition(".")[0]
        modules.setdefault(module, []).append(name.name)
    folder.mkdir(exist_ok=True)
    process = launcher.start(json.dumps(modules), json.dumps(settings), cwd=folder, program=RUN)
    assert process.wait() == 0, process.output
    result: dict[str, object] = json.loads((folder / "result.json").read_text())
    return result, process.output


BEST = {
    "eval_strategy": "steps",
    "eval_steps": 2,
    "save_steps": 2,
    "load_best_model_at_end": True,
}


def test_a_version_that_has_none_of_what_can_be_done_without_trains_on_the_same_weights(
    launcher: Launcher, tmp_path: Path
) -> None:
    result, output = run_without(launcher, tmp_path, LESSER, logging_steps=3, **BEST)
    for name in LESSER:
        assert output.count(f": {name.without}") == 2, (name, output)  # in both starts
    assert result["equal"], output
    assert result["plain"] != result["ours"], "nothing is lost without them, and they should go"


@pytest.mark.parametrize("name", [pytest.param(n, id=str(n), marks=in_full("all of them at once")) for n in LESSER])
def test_without_one_of_them_it_trains_on_the_same_weights(launcher: Launcher, tmp_path: Path, name: Name) -> None:
    settings = {"logging_steps": 3, **BEST}
    result, output = run_without(launcher, tmp_path, [name], **settings)
    assert output.count(f"has no {name}: {name.without}") == 2 and output.count(f"{VERSION} has no ") == 2
    assert result["equal"], output
    is_sum = name.name in ("_tr_loss", "_total_loss_scalar", "_globalstep_last_logged", "_initial_global_step")
    assert (result["plain"] == result["ours"]) is not is_sum


def test_without_what_is_known_of_prepared_loaders_the_data_goes_on_all_the_same(
    launcher: Launcher, tmp_path: Path
) -> None:
    names = [name for name in CONTRACT if name.name == "base_dataloader"]
    result, output = run_without(launcher, tmp_path, names)
    assert f"accelerate {version('accelerate')} has no DataLoaderShard.base_dataloader: " in output
    assert result["equal"] and result["plain"] == result["ours"], output


def test_the_bounds_of_the_project_are_the_versions_that_were_run() -> None:
    extras = tomllib.loads(PROJECT.read_text())["project"]["optional-dependencies"]
    bounds = {Requirement(line).name: Requirement(line).specifier for line in [*extras["hf"], *extras["trl"]]}
    for package, seen in contract.SEEN.items():
        first, last = seen.split(" to ")
        major, _, minor = last.partition(".")
        assert bounds[package] == SpecifierSet(f">={first},<{major}.{int(minor) + 1}"), package
