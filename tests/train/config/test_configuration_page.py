"""`docs/configuration.md` and the models say the same."""

import re
from pathlib import Path
from typing import Any

import pytest

from holdfast.train.config import choices
from holdfast.train.config.fields import TrainConfig
from holdfast.train.config.load import IGNORED, REFUSED, load

PAGE = (Path(__file__).parents[3] / "docs" / "configuration.md").read_text(encoding="utf-8")
SCHEMA = TrainConfig.model_json_schema()
NESTED = {"datasets": "DatasetConfig", "special_tokens": "SpecialTokens", "dynamic_checkpoint": "DynamicCheckpoint"}


def documented() -> list[tuple[str, str, str]]:
    """Key, type and default of each row of the tables of keys."""
    found = []
    for table in re.findall(r"\| key \| type \| default \| meaning \|\n[|\- ]+\n((?:\|.*\n)+)", PAGE):
        for row in table.splitlines():
            key, kind, default, meaning = (cell.strip() for cell in row.strip("|").split(" | "))
            assert meaning, key
            found.append((key.strip("`"), kind, default))
    return found


def declared() -> list[tuple[str, str, str]]:
    """The same of each field of the models."""
    found = []
    for key, schema in SCHEMA["properties"].items():
        found.append((key, *kind_and_default(schema, required=key in SCHEMA["required"])))
        if key in NESTED:
            inner = SCHEMA["$defs"][NESTED[key]]
            prefix = f"{key}.N." if key == "datasets" else f"{key}."
            for name, part in inner["properties"].items():
                found.append((prefix + name, *kind_and_default(part, required=name in inner.get("required", ()))))
    return found


def kind_and_default(schema: dict[str, Any], *, required: bool) -> tuple[str, str]:
    if required:
        return kind(schema), "required"
    if "$ref" in schema:
        return kind(schema), "each key's own"
    default = schema["default"]
    if default is None or default == []:
        return kind(schema), "none"
    return kind(schema), f"`{str(default).lower() if isinstance(default, bool) else default}`"


def kind(schema: dict[str, Any]) -> str:
    """The words for a type."""
    if "words" in schema:
        return str(schema["words"])
    if "anyOf" in schema:
        return ", ".join(kind(option) for option in schema["anyOf"] if option.get("type") != "null")
    if "enum" in schema:
        return ", ".join(f"`{option}`" for option in schema["enum"])
    if "const" in schema:
        return f"`{schema['const']}`"
    if "$ref" in schema:
        return "keys and values"
    if schema["type"] == "array":
        return f"list of {kind(schema['items'])}"
    names = {"integer": "whole number", "number": "number", "string": "text", "boolean": "true or false"}
    signs = {"minimum": "≥", "exclusiveMinimum": ">", "maximum": "≤", "exclusiveMaximum": "<"}
    bounds = [f" {sign} {schema[bound]:.15g}" for bound, sign in signs.items() if bound in schema]
    return names[schema["type"]] + ",".join(bounds)


def test_the_page_has_each_key_once_with_its_type_and_default() -> None:
    assert sorted(documented()) == sorted(declared())


def test_all_44_keys_of_axolotl_are_there() -> None:
    ours = {"reinit_weights", "save_strategy", "eval_strategy", "eval_steps", "evals_per_epoch"}
    ours |= {"save_minutes", "keep_every", "save_on_exception", "stop_grace_seconds", "rank_timeout_seconds"}
    ours |= {"staging_memory", "save_rate_limit", "save_io_priority", "resume_settings"}
    ours |= {"mirror", "mirror_keep", "mirror_endpoint", "mirror_region"}
    others = {"plugins", "dynamic_checkpoint"}
    assert len(set(TrainConfig.model_fields) - ours - others) == 44


def test_every_field_says_what_it_is() -> None:
    """A string literal stands under each field of each group of keys."""
    package = Path(__file__).parents[3] / "src" / "holdfast"
    for file in ("settings.py", "train/config/fields.py", "train/config/schedule.py"):
        models, _, _ = (package / file).read_text(encoding="utf-8").partition("class SettingsKwargs")
        lines = models.splitlines()
        for number, line in enumerate(lines):
            if re.match(r"    [a-z_0-9]+: ", line):
                assert lines[number + 1].startswith('    """'), line


@pytest.mark.parametrize("name", [*REFUSED, *IGNORED, *choices.OPTIMIZERS, *choices.SCHEDULERS])
def test_the_page_names_what_is_refused_ignored_and_offered(name: str) -> None:
    assert f"`{name}`" in PAGE


def test_the_example_can_be_used_and_says_nothing_idle(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("models/tiny").mkdir(parents=True)
    Path("data").mkdir()
    Path("data/pairs.jsonl").touch()
    example, *_ = re.findall(r"```yaml\n(.*?)```", PAGE, re.DOTALL)
    Path("config.yml").write_text(example, encoding="utf-8")
    loaded = load(Path("config.yml"))
    assert loaded.notices == ()
    assert loaded.config.dynamic_checkpoint.enabled


def test_the_block_of_the_trigger_file_is_its_default_but_for_being_enabled(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    block = next(text for text in re.findall(r"```yaml\n(.*?)```", PAGE, re.DOTALL) if "base_model" not in text)
    Path("config.yml").write_text(
        f"base_model: a/b\nlearning_rate: 1\ndatasets: [{{path: a/b, type: alpaca}}]\n{block}", encoding="utf-8"
    )
    settings = load(Path("config.yml")).config.dynamic_checkpoint
    assert settings == type(settings)(enabled=True)
