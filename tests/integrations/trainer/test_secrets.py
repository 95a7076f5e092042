import collections
import copy
import dataclasses
import functools
import pickle
import threading
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from safetensors.torch import load_file
from transformers import Trainer, TrainingArguments

import holdfast
from holdfast.integrations.trainer.secrets import pickled_blank
from holdfast.state.secrets import is_secret

SECRET = "canary"


@dataclasses.dataclass
class Arguments(TrainingArguments):  # type: ignore[misc]
    tracker_api_key: str = SECRET


class SavesModelItself(Trainer):  # type: ignore[misc]
    """Has an override that asks for an argument and remembers something, as subclasses do."""

    saves = 0

    def _save(self, output_dir: str | None = None, state_dict: dict[str, Any] | None = None) -> None:
        assert self.args.tracker_api_key == SECRET
        super()._save(output_dir, state_dict)
        self.saves += 1


def arguments(root: Path, **settings: Any) -> Arguments:
    return Arguments(str(root / "out"), hub_token=SECRET, use_cpu=True, report_to="none", **settings)


@pytest.mark.parametrize("protocol", range(2, pickle.HIGHEST_PROTOCOL + 1))
def test_an_alias_has_its_secrets_and_is_pickled_without_as_are_its_copies(tmp_path: Path, protocol: int) -> None:
    args = arguments(tmp_path)
    alias = pickled_blank(args)
    args.push_to_hub = True  # after the alias was made
    assert isinstance(alias, Arguments) and pickled_blank(alias) is alias
    for writer in (alias, copy.copy(alias), copy.deepcopy(alias)):
        assert writer.hub_token == writer.tracker_api_key == SECRET
        text = pickle.dumps(writer, protocol)
        assert SECRET.encode() not in text
        read = pickle.loads(text)
        assert type(read) is Arguments and read.push_to_hub
        assert read.hub_token is None and read.tracker_api_key is None
        assert {**args.to_dict(), **{name: None for name in args.to_dict() if is_secret(name)}} == {
            name: None if is_secret(name) else value for name, value in read.to_dict().items()
        }


def test_the_users_arguments_stay_as_they_are_and_what_is_set_on_them_holds(tmp_path: Path) -> None:
    args = arguments(tmp_path)
    before = dict(vars(args))
    trainer = holdfast.attach(Trainer(torch.nn.Linear(1, 1), args))
    assert type(args) is Arguments and vars(args) == before
    assert pickle.loads(pickle.dumps(args)).hub_token == SECRET
    args.learning_rate = 7.0
    trainer.args.max_steps = 5
    assert trainer.args.learning_rate == 7.0 and args.max_steps == 5


class Point(NamedTuple):
    password: str | None
    x: int


class Slotted:
    __slots__ = ("api_key", "size")

    def __init__(self, api_key: str, size: int) -> None:
        self.api_key, self.size = api_key, size


def vars_of(value: Slotted) -> dict[str, Any]:
    return {name: getattr(value, name) for name in value.__slots__}


class Awkward:
    """Neither copied nor pickled, as what has a lock is not."""

    def __reduce_ex__(self, protocol: Any) -> Any:
        raise TypeError("cannot be pickled")


class Keyed(dict[str, Any]):
    passphrase = ""


@dataclasses.dataclass(slots=True)
class InSlots(Arguments):
    bearer: str = SECRET
    size: int = 3


class Frozen(NamedTuple):
    inner: Any


@dataclasses.dataclass(frozen=True, slots=True)
class Sealed:
    """It is pickled as the list of its values, without their names."""

    token: str | None
    size: int
    inner: Any = None


def nested() -> dict[str, Any]:
    slotted, keyed = Slotted(SECRET, 3), Keyed(apikey=SECRET, size=2)
    keyed.passphrase = SECRET
    config = types.SimpleNamespace(hub_auth=SECRET, rate=0.5, slotted=slotted)
    config.itself = config
    values: dict[str, Any] = {
        "init": {"token": SECRET, "size": 1},
        "list": [{"accessKey": SECRET.encode()}, (Point(SECRET, 1), Frozen({"passwd": SECRET}))],
        "config": config,
        "keyed": keyed,
        "ordered": collections.OrderedDict(credentials=[SECRET, 1]),
        "call": functools.partial(print, auth=SECRET, end=""),
        "bearer": config,
        "sealed": Sealed(SECRET, 3, {"passwd": SECRET}),
        "lock": threading.Lock(),
        "awkward": Awkward(),
        "tensor": torch.ones(2),
        "kind": torch.float16,
        "path": Path("here"),
        "pad_token": "<pad>",
    }
    values["itself"] = values
    return values


@pytest.mark.parametrize("protocol", range(2, pickle.HIGHEST_PROTOCOL + 1))
def test_security_s25_what_is_inside_of_arguments_is_pickled_without_secrets(tmp_path: Path, protocol: int) -> None:
    """Secrets in dictionaries, lists, named tuples, slots, attributes, partial calls, and what leads back to itself."""
    values = nested()
    args = arguments(tmp_path)
    args.accelerator_config = values
    text = pickle.dumps(pickled_blank(args), protocol)
    assert SECRET.encode() not in text
    read = pickle.loads(text).accelerator_config
    assert read["init"] == {"token": None, "size": 1} and read["itself"] is read
    assert read["list"] == [{"accessKey": None}, (Point(None, 1), Frozen({"passwd": None}))]
    config = read["config"]
    assert (config.hub_auth, config.rate, config.itself) == (None, 0.5, config)
    assert type(config.slotted) is Slotted and vars_of(config.slotted) == {"api_key": None, "size": 3}
    assert type(read["keyed"]) is Keyed and read["keyed"] == {"apikey": None, "size": 2}
    assert read["keyed"].passphrase is None and read["ordered"] == {"credentials": [None, 1]}
    assert read["call"].keywords == {"auth": None, "end": ""} and read["call"].func is print
    assert read["bearer"] is None, "nothing tells what is inside of an object"
    assert read["sealed"] == Sealed(None, 3, {"passwd": None})
    assert read["lock"] is None and read["awkward"] is None, "a save must not fail by what nobody reads"
    assert read["tensor"].tolist() == [1.0, 1.0] and read["kind"] is torch.float16
    assert (read["path"], read["pad_token"]) == (Path("here"), "<pad>")
    assert values["init"]["token"] == values["config"].slotted.api_key == values["keyed"]["apikey"] == SECRET


def test_security_s25_arguments_in_slots_are_there_and_pickled_without_secrets(tmp_path: Path) -> None:
    """A subclass that keeps its arguments in slots."""
    args = InSlots(str(tmp_path / "out"), hub_token=SECRET, use_cpu=True, report_to="none")
    for alias in (pickled_blank(args), copy.copy(pickled_blank(args)), copy.deepcopy(pickled_blank(args))):
        assert (alias.bearer, alias.size, alias.hub_token) == (SECRET, 3, SECRET)
        text = pickle.dumps(alias)
        assert SECRET.encode() not in text
        read = pickle.loads(text)
        assert type(read) is InSlots and read.size == 3 and read.bearer is read.hub_token is None


def saved_by_itself(trainer: Trainer, folder: Path) -> None:
    trainer.save_model(str(folder))


def saved_by_a_copy(trainer: Trainer, folder: Path) -> None:
    copy.copy(trainer).save_model(str(folder))


def saved_through_a_writer_of_the_users(trainer: Trainer, folder: Path) -> None:
    trainer._save = types.MethodType(type(trainer)._save, trainer)
    trainer.save_model(str(folder))


def pickled_as_it_is(trainer: Trainer, folder: Path) -> None:
    folder.mkdir()
    torch.save(trainer.args, folder / "training_args.bin")


@pytest.mark.parametrize(
    "saved", [saved_by_itself, saved_by_a_copy, saved_through_a_writer_of_the_users, pickled_as_it_is]
)
def test_whatever_writes_the_arguments_writes_them_without_secrets_and_finds_them(
    tmp_path: Path, saved: Callable[[Trainer, Path], None]
) -> None:
    trainer = holdfast.attach(SavesModelItself(torch.nn.Linear(1, 1), arguments(tmp_path)))
    saved(trainer, tmp_path / "model")
    written = tmp_path / "model" / "training_args.bin"
    assert SECRET.encode() not in written.read_bytes()
    read = torch.load(written, weights_only=False)
    assert type(read) is Arguments and read.output_dir == trainer.args.output_dir and read.hub_token is None


def test_a_copy_of_a_trainer_saves_its_own_model_and_a_writer_keeps_what_it_has_set(tmp_path: Path) -> None:
    trainer = holdfast.attach(SavesModelItself(torch.nn.Linear(1, 1), arguments(tmp_path)))
    other = copy.copy(trainer)
    other.model = torch.nn.Linear(2, 2)
    other.save_model(str(tmp_path / "model"))
    assert load_file(tmp_path / "model" / "model.safetensors")["weight"].shape == (2, 2)
    assert other.saves == 1 and trainer.saves == 0
