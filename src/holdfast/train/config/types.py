"""The kinds of values that keys take. Each refuses in words that a user understands."""

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, WithJsonSchema

from holdfast.train.config import choices
from holdfast.wording import shown


class Fields(BaseModel):
    """A group of keys: no others, no change once read, and no value taken for another kind of value."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)


def as_number(value: Any) -> Any:
    """Returns the number that text says; anything else as it is, to be refused in its turn."""
    # YAML 1.1 reads 2e-4 as text; only 2.0e-4 is a number to it.
    try:
        return float(value) if isinstance(value, str) else value
    except ValueError:
        raise ValueError(f"expected a number, found {shown(value)}") from None


def as_tuple(value: Any) -> Any:
    """Returns a list as the tuple that a frozen model holds; anything else as it is, to be refused in its turn."""
    return tuple(value) if isinstance(value, list) else value


def _item_or_items(value: Any) -> Any:
    return (value,) if isinstance(value, str) else as_tuple(value)


def _text_or_texts(value: Any) -> Any:
    items = as_tuple(value)
    texts = items if isinstance(items, tuple) else (items,)
    if not all(isinstance(text, str) for text in texts):
        raise ValueError(f"expected text or a list of text, found {shown(value)}")
    if not all(texts) or not texts:
        raise ValueError("must not be empty")
    return items


def _auto_or_bool(value: Any) -> Any:
    if isinstance(value, bool) or value == "auto":
        return value
    raise ValueError(f"expected auto, true or false, found {shown(value)}")


def _offload_or_bool(value: Any) -> Any:
    if isinstance(value, bool) or value == "offload":
        return value
    raise ValueError(f"expected true, false or offload, found {shown(value)}")


def _no_is_a_word(value: Any) -> Any:
    # YAML 1.1 reads a bare no as false.
    return "no" if value is False else value


def _steps(value: Any) -> Any:
    number = as_number(value)
    if isinstance(number, int | float) and not isinstance(number, bool):
        if 0 < number < 1:
            return float(number)
        if number >= 1 and number == int(min(number, 2**63)):
            return int(number)
    raise ValueError(f"expected a whole number of steps, or a share of the run below 1, found {shown(value)}")


def _share_or_count(value: float) -> float:
    if value > 1 and not value.is_integer():
        raise ValueError(f"expected a share of the data below 1, or a whole number of examples, found {shown(value)}")
    return value


def _resume(value: Any) -> Any:
    if isinstance(value, bool) or (isinstance(value, str) and value):
        return home_expanded(value) if isinstance(value, str) else value
    raise ValueError(f"expected auto, local, true, false or the path of a checkpoint, found {shown(value)}")


def home_expanded(path: str) -> str:
    """Returns a path with a leading `~` replaced by the home directory that it stands for; any other as it is."""
    try:
        return str(Path(path).expanduser()) if path.startswith("~") else path
    except RuntimeError:
        raise ValueError(f"there is no home directory for {shown(path)}") from None


Text = Annotated[str, Field(min_length=1)]
PathText = Annotated[str, Field(min_length=1), AfterValidator(home_expanded)]
Texts = Annotated[tuple[Text, ...], BeforeValidator(as_tuple)]
OneOrMoreTexts = Annotated[
    tuple[Text, ...],
    Field(min_length=1),
    BeforeValidator(_item_or_items),
    WithJsonSchema({"words": "text, or list of text"}),
]
TextOrTexts = Annotated[
    str | tuple[str, ...],
    BeforeValidator(_text_or_texts),
    WithJsonSchema({"words": "text, or list of text"}),
]

Count = Annotated[int, Field(ge=1)]
CountOrZero = Annotated[int, Field(ge=0)]
Positive = Annotated[float, Field(gt=0), BeforeValidator(as_number)]
PositiveOrZero = Annotated[float, Field(ge=0), BeforeValidator(as_number)]
Share = Annotated[float, Field(ge=0, lt=1), BeforeValidator(as_number)]
Steps = Annotated[
    int | float, BeforeValidator(_steps), WithJsonSchema({"words": "whole number ≥ 1, or share of the run < 1"})
]
ShareOrCount = Annotated[
    float,
    Field(ge=0),
    AfterValidator(_share_or_count),
    BeforeValidator(as_number),
    WithJsonSchema({"words": "share of the data < 1, or whole number of examples"}),
]

AutoOrBool = Annotated[bool | Literal["auto"], BeforeValidator(_auto_or_bool)]
OffloadOrBool = Annotated[bool | Literal["offload"], BeforeValidator(_offload_or_bool)]
Strategy = Annotated[Literal["no", "steps", "epoch"], BeforeValidator(_no_is_a_word)]
Optimizer = Annotated[str, AfterValidator(choices.optimizer)]
Scheduler = Annotated[str, AfterValidator(choices.scheduler)]
Resume = Annotated[
    bool | str, BeforeValidator(_resume), WithJsonSchema({"words": "`auto`, `local`, true, false or path"})
]
