"""The settings that ask for saves and keep them, validated. `docs/configuration.md` describes each for a user."""

import re
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from holdfast.errors import ConfigError
from holdfast.store import names


class DynamicCheckpoint(BaseModel):
    """On-demand saving through a trigger file: the block `dynamic_checkpoint` of a configuration."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    enabled: bool = False
    """Whether the trigger file is looked at. Signals and commands work either way."""

    check_interval: int = Field(default=100, ge=0)
    """Look at the trigger file every N optimizer steps. 0 looks all the time and serves at the next boundary."""

    trigger_file_path: str = "axolotl_checkpoint.save"
    """The name of the trigger file inside `output_dir`."""

    keep: int | None = Field(default=None, ge=1)
    """How many on-demand checkpoints are kept; the oldest go first. Unset keeps all of them."""

    @field_validator("trigger_file_path")
    @classmethod
    def _a_plain_file_name(cls, name: str) -> str:
        if not names.is_component(name) or names.is_reserved(name):
            raise ValueError(
                f"{name!r} is not a file name that a trigger file may have: it lies in output_dir, and its name is "
                "letters, digits, '.', '_' and '-', with no leading dot, no '/', not 'checkpoint-...', and without an "
                "ending that files of a model have"
            )
        return name


_UNITS = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "t": 10**12, "ki": 2**10, "mi": 2**20, "gi": 2**30, "ti": 2**40}
_BYTES = re.compile(r"(\d+(?:\.\d+)?)\s*([kmgt]?i?)b?")


def as_bytes(value: object) -> object:
    """A number of bytes from text like `2GB` or `512 MiB`; anything else as it is."""
    found = _BYTES.fullmatch(value.strip().lower()) if isinstance(value, str) else None
    return int(float(found[1]) * _UNITS[found[2]]) if found else value


class Settings(BaseModel):
    """How a training is saved, whatever asks for it. `docs/configuration.md` describes each for a user."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    dynamic_checkpoint: DynamicCheckpoint = DynamicCheckpoint(enabled=True, check_interval=0)
    """The trigger file."""

    save_minutes: float | None = Field(default=None, gt=0)
    """Save when this many minutes have passed since the last save."""

    save_on_exception: bool = True
    """Whether an exception that leaves the loop is preceded by a save of the last boundary."""

    stop_grace_seconds: float = Field(default=25.0, gt=0)
    """From a stop to the end of the process at the latest, even when the loop does not come back."""

    rank_timeout_seconds: float = Field(default=30.0, gt=0)
    """How long a rank that is not heard of is waited for, before a save is given up without it."""

    staging_memory: int | None = Field(default=None, ge=0)
    """The most host memory that snapshots may use, in bytes or as text like `2GB`. Unset: a quarter of what is free."""

    save_rate_limit: int | None = Field(default=None, gt=0)
    """The most bytes a second that saves write, or text like `500MB`. Unset: as many as the disk takes."""

    save_io_priority: Literal["normal", "low", "idle"] = "normal"
    """The priority of saves at the disk, as `ionice` has it: the last of its best-effort class, or its idle class."""

    @field_validator("staging_memory", "save_rate_limit", mode="before")
    @classmethod
    def _bytes(cls, value: object) -> object:
        return as_bytes(value)


def validated(**given: Any) -> Settings:
    """The settings from keyword arguments; None leaves one at its default.

    Raises:
        ConfigError: One line for each setting that is wrong.
    """
    try:
        return Settings.model_validate({name: value for name, value in given.items() if value is not None})
    except ValidationError as error:
        problems = [f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors()]
        raise ConfigError(problems, hint="docs/configuration.md describes each setting") from error
