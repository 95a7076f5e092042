"""The settings that ask for saves and keep them: the one place of their types, defaults, checks and meaning.

`TrainConfig` inherits them as keys of the YAML, `attach` takes them as `SettingsKwargs`, and `Checkpointer`, which also
takes arbitrary names, lists them with the types of `SettingsKwargs` and the values of `DEFAULTS`. Tests compare all of
these with each other and with `docs/configuration.md`.
"""

import re
from collections.abc import Iterable, Mapping
from typing import Annotated, Any, Literal, TypedDict, TypeVar, Unpack

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, field_validator

from holdfast.errors import ConfigError
from holdfast.store import names
from holdfast.wording import Loc, describe, dotted

Model = TypeVar("Model", bound=BaseModel)

_UNITS = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "t": 10**12, "ki": 2**10, "mi": 2**20, "gi": 2**30, "ti": 2**40}
_BYTES = re.compile(r"(\d+(?:\.\d+)?)\s*([kmgt]?i?)b?")


def _as_bytes(value: object) -> object:
    """Returns a number of bytes for text like `2GB` or `512 MiB`; anything else as it is."""
    size = _BYTES.fullmatch(value.strip().lower()) if isinstance(value, str) else None
    return int(float(size[1]) * _UNITS[size[2]]) if size else value


Priority = Literal["normal", "low", "idle"]
ResumeSettings = Literal["follow", "keep"]


class DynamicCheckpoint(BaseModel):
    """On-demand saving through a trigger file: the block `dynamic_checkpoint` of a configuration."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    enabled: bool = False
    """Looks at the trigger file. Signals and commands work either way."""

    check_interval: int = Field(default=100, ge=0)
    """Looks at the trigger file every N optimizer steps. 0 looks all the time and serves at the next boundary."""

    trigger_file_path: str = "axolotl_checkpoint.save"
    """The name of the trigger file inside `output_dir`."""

    keep: int | None = Field(default=None, ge=1)
    """The number of on-demand checkpoints that are kept; the oldest go first. Unset keeps all of them."""

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


class SaveSettings(BaseModel):
    """The settings of a training's saves, apart from the trigger file."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    save_minutes: Annotated[float, Field(gt=0)] | None = None
    """Saves when so many minutes have passed since the last save."""

    save_on_exception: bool = True
    """Saves the last boundary before an exception ends the training."""

    stop_grace_seconds: Annotated[float, Field(gt=0)] = 25.0
    """The time from a stop to the end of the process at the latest, even when the loop does not come back."""

    rank_timeout_seconds: Annotated[float, Field(gt=0)] = 30.0
    """The time for which a rank that is not heard of is waited for, before a save is given up without it."""

    staging_memory: Annotated[Annotated[int, Field(ge=0)] | None, BeforeValidator(_as_bytes)] = None
    """The most host memory that snapshots may use: bytes, or text like `2GB`. Unset: a quarter of what is available."""

    save_rate_limit: Annotated[Annotated[int, Field(ge=1)] | None, BeforeValidator(_as_bytes)] = None
    """The most bytes a second that saves write, or text like `500MB`. Unset: as many as the disk takes.

    Training that waits for a save, and a stop, do not wait for the limit.
    """

    save_io_priority: Priority = "normal"
    """The priority of saves at the disk, as `ionice` has it.

    `low` is the last of its best-effort class, `idle` its idle class. It works where writes pass the page cache by and
    the disk's scheduler knows priorities (BFQ does).
    """

    resume_settings: ResumeSettings = "follow"
    """The settings that a resume goes on with, where those of the training have changed since the save.

    `follow` takes the new ones, `keep` those of the checkpoint where that can be done. A line names each change.
    """

    mirror: Annotated[str, Field(min_length=1)] | None = None
    """The place beyond this disk to which checkpoints are sent while training goes on, and from which a start in an
    empty `output_dir` goes on: `s3://BUCKET/PREFIX`, `gs://`, `az://`, or `file://` and a directory. One run each.
    """

    mirror_keep: Annotated[int, Field(ge=1)] = 3
    """The number of scheduled checkpoints that are kept in the mirror; the oldest go first."""

    mirror_endpoint: Annotated[str, Field(min_length=1)] | None = None
    """The address of a server that speaks the mirror's protocol and is none of the cloud's own: `https://HOST:PORT`."""

    mirror_region: Annotated[str, Field(min_length=1)] | None = None
    """The region of the mirror's bucket, where neither the environment nor a profile has it."""


class Settings(SaveSettings):
    """The settings of a training's saves, whatever asks for them."""

    dynamic_checkpoint: DynamicCheckpoint = DynamicCheckpoint(enabled=True, check_interval=0)
    """The trigger file. Unset, it is on and served at once; in a configuration's YAML it is off."""


DEFAULTS = Settings()
"""The settings of a training that sets none."""


WITHOUT_MIRROR = {name: getattr(DEFAULTS, name) for name in SaveSettings.model_fields if name.startswith("mirror")}
"""The settings that have a training send nothing."""


class SettingsKwargs(TypedDict, total=False):
    """The settings as keyword arguments of Python. `Settings` says what each means."""

    dynamic_checkpoint: Mapping[str, Any] | None
    save_minutes: float | None
    save_on_exception: bool
    stop_grace_seconds: float
    rank_timeout_seconds: float
    staging_memory: int | str | None
    save_rate_limit: int | str | None
    save_io_priority: Priority
    resume_settings: ResumeSettings
    mirror: str | None
    mirror_keep: int
    mirror_endpoint: str | None
    mirror_region: str | None


def validated(**settings: Unpack[SettingsKwargs]) -> Settings:
    """Returns the settings that keyword arguments give; None leaves one at its default.

    Raises:
        ConfigError: One line for each setting that is wrong.
    """
    values = {name: value for name, value in settings.items() if value is not None}
    if isinstance(block := values.get("dynamic_checkpoint"), Mapping):
        values["dynamic_checkpoint"] = dict(block)
    return checked(Settings, values, strict=True)


def checked(model: type[Model], values: Mapping[str, Any], *, strict: bool = False) -> Model:
    """Returns the settings that keys and values give.

    Args:
        model: The settings that there are.
        values: What is given, by key.
        strict: Converts no value. Otherwise what another reader of the same file would convert is converted.

    Raises:
        ConfigError: One line for each setting that is wrong.
    """
    try:
        return model.model_validate(values, strict=strict)
    except ValidationError as error:
        problems = [
            f"{dotted(details['loc'])}: {describe(details, _keys_at(model, details['loc']), present=True)}"
            for details in error.errors()
        ]
        raise ConfigError(problems, hint="docs/configuration.md describes each setting") from None


def _keys_at(model: type[BaseModel], loc: Loc) -> Iterable[str]:
    """Returns the keys that there are at a location, beside the last one of it."""
    for key in loc[:-1]:
        part = model.model_fields[str(key)].annotation if key in model.model_fields else None
        if not (isinstance(part, type) and issubclass(part, BaseModel)):
            return ()
        model = part
    return model.model_fields
