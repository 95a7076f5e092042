"""Loads the configuration of `holdfast train`: reads it, checks it as a whole, and names every problem at once.

Where things are: the keys in `fields`, `schedule` and `holdfast.settings`, their kinds in `types`, what they mean to
each other in `rules`, paths that must exist in `paths`, YAML and line numbers in `yaml`.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from operator import attrgetter
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError

from holdfast.errors import ConfigError
from holdfast.settings import DynamicCheckpoint
from holdfast.text import shown
from holdfast.train.config import paths, rules, yaml
from holdfast.train.config.fields import DatasetConfig, SpecialTokens, TrainConfig
from holdfast.train.config.overrides import apply
from holdfast.train.config.schedule import Schedule
from holdfast.train.config.yaml import Message, Source
from holdfast.wording import describe

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
    """Lines for the user, about what does not do what it seems to."""


def load(path: Path, overrides: Sequence[str] = ()) -> Loaded:
    """Reads a configuration. Makes nothing on disk.

    Args:
        path: The YAML file.
        overrides: Keys that the command line sets over it, each `KEY=VALUE`.

    Raises:
        ConfigError: The configuration cannot be used. It holds one line for each problem.
    """
    source = yaml.read(path)
    apply(source, overrides)
    filled = _without_empty(source.values)
    ignored = tuple(key for key in filled if _is_ignored(key) and filled[key] is not None)
    values = {key: filled[key] for key in filled if key == "plugins" or not (_is_ignored(key) or key in REFUSED)}

    problems = [*source.problems, *_refused(filled, source)]
    problems += [source.message(loc, text) for loc, text in paths.problems(values)]
    config, wrong, errors = _validated(values, source)
    problems += errors
    contradictions = rules.contradictions(config, config.model_fields_set)
    problems += [_message(finding, source) for finding in contradictions if not wrong & set(finding.keys)]
    if problems:
        raise ConfigError(_in_order(dict.fromkeys(problems)))

    notices = _in_order(_message(finding, source) for finding in rules.notices(config, config.model_fields_set))
    if ignored:
        notices.insert(
            0, f"{source.name}: accepted for Axolotl's sake, no effect here: {', '.join(map(shown, ignored))}"
        )
    return Loaded(config, ignored, tuple(notices))


def _in_order(messages: Iterable[Message]) -> list[str]:
    return [message.text for message in sorted(messages, key=attrgetter("order"))]


def _without_empty(values: dict[str, Any]) -> dict[str, Any]:
    """Leaves out the keys that nothing follows: they have their defaults. Unknown ones stay, to be refused."""
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


def _refused(values: dict[str, Any], source: Source) -> Iterator[Message]:
    for key, why in REFUSED.items():
        if values.get(key):
            yield source.message((key,), f"{why}; leave the key out")


def _validated(values: dict[str, Any], source: Source) -> tuple[TrainConfig, set[str], list[Message]]:
    """Returns the configuration, the keys that are wrong, and a line about each of those.

    Where keys are wrong the configuration is a stand-in without them, so that the rules can look at the others.
    """
    # A key that cannot be read has no place among the others.
    wrong = {str(loc[0]) for loc in source.unread if loc}
    try:
        return TrainConfig.model_validate(values, strict=True), wrong, []
    except ValidationError as error:
        wrong |= {str(details["loc"][0]) for details in error.errors()}
        lines = list(_field_errors(error, source))
    others = {key: value for key, value in values.items() if key not in wrong}
    return TrainConfig.model_validate(_STAND_IN | others, strict=True), wrong, lines


def _field_errors(error: ValidationError, source: Source) -> Iterator[Message]:
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
        yield source.message(loc, describe(details, known, present=loc in source.places))


def _message(finding: rules.Finding, source: Source) -> Message:
    return source.message((finding.keys[0],), finding.text)
