"""The configuration of PEFT's adapters in a model, as far as training depends on it."""

from collections.abc import Iterator, Mapping
from typing import Any

from holdfast.state import recorded_settings
from holdfast.state.recorded_settings import Change, readable

_NAMES = (
    "peft_type",
    "task_type",
    "r",
    "lora_alpha",
    "lora_dropout",
    "lora_bias",
    "bias",
    "use_rslora",
    "use_dora",
    "fan_in_fan_out",
    "target_modules",
    "exclude_modules",
    "target_parameters",
    "modules_to_save",
    "layers_to_transform",
    "layers_pattern",
    "rank_pattern",
    "alpha_pattern",
)


def configurations(model: object) -> dict[str, Any]:
    """Returns the configuration of each adapter of a model by the adapter's name; empty where there is none."""
    adapters = getattr(model, "peft_config", None)
    if not isinstance(adapters, dict):
        return {}
    return {
        name: readable({key: getattr(config, key) for key in _NAMES if hasattr(config, key)})
        for name, config in adapters.items()
    }


def changes(recorded: Any, present: Mapping[str, Any], model: str) -> Iterator[Change]:
    """Yields what differs of adapters of the same name.

    Args:
        recorded: As a checkpoint has it, which anybody may have written.
        present: As `configurations` gave it.
        model: The name of the model.
    """
    if isinstance(recorded, Mapping):
        for name, configuration in present.items():
            yield from recorded_settings.changes(recorded.get(name), configuration, model, name)
