"""The settings that ask for saves and keep them, validated. `docs/configuration.md` describes each for a user."""

from pydantic import BaseModel, ConfigDict, Field, field_validator

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
