"""The configuration of `holdfast train config.yml`: read, checked as a whole, and every problem told at once.

Where things are: the keys in `fields` and `schedule`, their kinds in `field_types`, what they mean to each other in
`rules`, paths that must exist in `local_paths`, YAML and line numbers in `yaml_source`.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from operator import attrgetter
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError

from holdfast.errors import ConfigError
from holdfast.settings import DynamicCheckpoint
from holdfast.train.config import paths as local_paths
from holdfast.train.config import rules
from holdfast.train.config import yaml as yaml_source
from holdfast.train.config.errors import describe
from holdfast.train.config.fields import DatasetConfig, SpecialTokens, TrainConfig
from holdfast.train.config.overrides import apply
from holdfast.train.config.schedule import Schedule
from holdfast.train.config.yaml import Line, Source

__all__ = ["DatasetConfig", "Loaded", "Schedule", "SpecialTokens", "TrainConfig", "load"]

REFUSED = {
    "deepspeed": "DeepSpeed shards training over several devices, which this version does not do",
    "fsdp": "FSDP shards training over several devices, which this version does not do",
    "fsdp_config": "FSDP shards training over several devices, which this version does not do",
    "rl": "preference and reinforcement learning is something this version does not do",
}
"""Keys of Axolotl that would change the whole run, each with what is said of it."""

IGNORED = ("flash_attention", "model_type", "plugins", "strict", "tokenizer_type")
"""Keys of Axolotl that are accepted and have no effect, beside those that begin with `wandb_`."""

_PARTS: dict[str, type[BaseModel]] = {
    "datasets": DatasetConfig,
    "dynamic_checkpoint": DynamicCheckpoint,
    "special_tokens": SpecialTokens,
}
# Takes the place of required values that are missing or wrong, so that the rules can look at the others.
_STAND_IN = {"base_model": "none", "learning_rate": 1.0, "datasets": [{"path": "none", "type": "completion"}]}


@dataclass(frozen=True)
class Loaded:
    """A configuration that can be used."""

    config: TrainConfig

    ignored: tuple[str, ...]
    """The keys that were given and have no effect in any configuration."""

    notices: tuple[str, ...]
    """What the user should be told, a line each."""


def load(path: Path, overrides: Sequence[str] = ()) -> Loaded:
    """Reads a configuration. Makes nothing on disk.

    Args:
        path: The YAML file.
        overrides: What the command line sets over it, each `KEY=VALUE`.

    Raises:
        ConfigError: The configuration cannot be used. It holds one line for each problem.
    """
    source = yaml_source.read(path)
    apply(source, overrides)
    given = _without_empty(source.values)
    ignored = tuple(key for key in given if _is_ignored(key) and given[key] is not None)
    values = {key: given[key] for key in given if key == "plugins" or not (_is_ignored(key) or key in REFUSED)}

    problems = [*source.problems, *_refused(given, source)]
    problems += [source.say(loc, text) for loc, text in local_paths.problems(values)]
    config, wrong, errors = _validated(values, source)
    problems += errors
    contradictions = rules.contradictions(config, config.model_fields_set)
    problems += [_told(found, source) for found in contradictions if not wrong & set(found.keys)]
    if problems:
        raise ConfigError([line.text for line in sorted(dict.fromkeys(problems), key=attrgetter("order"))])

    told = [_told(found, source) for found in rules.notices(config, config.model_fields_set)]
    notices = [line.text for line in sorted(told, key=attrgetter("order"))]
    if ignored:
        notices.insert(0, f"{source.name}: accepted for Axolotl's sake, no effect here: {', '.join(ignored)}")
    return Loaded(config, ignored, tuple(notices))


def _without_empty(values: dict[str, Any]) -> dict[str, Any]:
    """Leaves out the keys that nothing follows: they have their defaults. Unknown ones stay, to be told of."""
    kept = _filled(values, TrainConfig)
    for key, model in _PARTS.items():
        if isinstance(kept.get(key), dict):
            kept[key] = _filled(kept[key], model)
        elif isinstance(kept.get(key), list):
            kept[key] = [_filled(item, model) if isinstance(item, dict) else item for item in kept[key]]
    return kept


def _filled(values: dict[str, Any], model: type[BaseModel]) -> dict[str, Any]:
    return {key: value for key, value in values.items() if value is not None or key not in model.model_fields}


def _is_ignored(key: str) -> bool:
    return key in IGNORED or key.startswith("wandb_")


def _refused(values: dict[str, Any], source: Source) -> Iterator[Line]:
    for key, why in REFUSED.items():
        if values.get(key):
            yield source.say((key,), f"{why}; leave the key out")


def _validated(values: dict[str, Any], source: Source) -> tuple[TrainConfig, set[str], list[Line]]:
    """The configuration, the keys that are wrong, and what is wrong with them.

    Where keys are wrong the configuration is a stand-in without them, so that what the others mean to each other can
    be told at the same time.
    """
    wrong = {str(loc[0]) for loc in source.unread}
    try:
        return TrainConfig.model_validate(values, strict=True), wrong, []
    except ValidationError as error:
        wrong |= {str(details["loc"][0]) for details in error.errors()}
        lines = list(_field_errors(error, source))
    others = {key: value for key, value in values.items() if key not in wrong}
    return TrainConfig.model_validate(_STAND_IN | others, strict=True), wrong, lines


def _field_errors(error: ValidationError, source: Source) -> Iterator[Line]:
    for details in error.errors():
        loc = details["loc"]
        # Of a value that could not even be read, enough has been said.
        if (
            any(loc[: len(unread)] == unread[: len(loc)] for unread in source.unread)
            and details["type"] != "extra_forbidden"
        ):
            continue
        model = _PARTS.get(str(loc[0]))
        known = model.model_fields if model else [*TrainConfig.model_fields, *IGNORED]
        yield source.say(loc, describe(details, known, present=loc in source.places))


def _told(found: rules.Finding, source: Source) -> Line:
    return source.say((found.keys[0],), found.text)
