"""The random generators: what is recorded, and that it comes back bit for bit."""

import json
import random
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.random.mtrand import get_bit_generator, set_bit_generator

from holdfast.errors import CheckpointError
from holdfast.state.rng import state as rng_state
from holdfast.state.rng.mt19937 import Mt19937State, NumpyReader, PythonReader


@pytest.fixture(autouse=True)
def seeded() -> Iterator[None]:
    before = random.getstate(), get_bit_generator(), torch.get_rng_state()
    random.seed(1)
    np.random.seed(1)
    torch.manual_seed(1)
    yield
    set_bit_generator(before[1])
    random.setstate(before[0])
    torch.set_rng_state(before[2])


def drawn(*generators: torch.Generator) -> list[Any]:
    """Numbers from every generator: an odd number of normal ones, so that each has half a pair in store."""
    return [
        random.random(),
        random.gauss(0, 1),
        np.random.random(),
        np.random.standard_normal(),
        torch.rand(3).tolist(),
        torch.randn(1).tolist(),
        *(torch.rand(3, generator=generator).tolist() for generator in generators),
    ]


def through_json(tree: Any) -> Any:
    return json.loads(json.dumps(tree, allow_nan=False))


@pytest.mark.parametrize("draws", [0, 1, 2, 700])
def test_what_was_recorded_comes_back(draws: int) -> None:
    own = torch.Generator().manual_seed(5)
    for _ in range(draws):
        drawn(own)
    recorded = rng_state.record({"own": own})
    expected = [drawn(own) for _ in range(3)]

    assert recorded.restore({"own": own}) == []
    assert [drawn(own) for _ in range(3)] == expected

    tree = through_json(recorded.encode())
    assert rng_state.restore(tree, {"own": own}) == []
    assert [drawn(own) for _ in range(3)] == expected
    assert rng_state.decode(tree).encode() == tree


def test_recording_draws_nothing_and_later_draws_do_not_show() -> None:
    expected = drawn(), drawn()
    random.seed(1)
    np.random.seed(1)
    torch.manual_seed(1)
    assert drawn() == expected[0]
    recorded = rng_state.record()
    then = recorded.encode()
    assert drawn() == expected[1]
    assert recorded.encode() == then


def copies_memory(reader: PythonReader | NumpyReader) -> bool:
    """Tells if a reader does without the getter."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(type(reader), "read_slowly", lambda self: None)
        return reader.read() is not None


def test_the_copies_of_memory_are_what_the_getters_give() -> None:
    python, numpy = PythonReader(), NumpyReader()
    assert copies_memory(python) and copies_memory(numpy)
    for _ in range(1300):
        random.gauss(0, 1)
        np.random.standard_normal()
        assert python.read() == python.read_slowly()
        assert numpy.read() == numpy.read_slowly()


@pytest.mark.parametrize("find", ["_offset_in_python", "_offset_of_numpy_gauss"])
@pytest.mark.parametrize("offset", [None, 0, 8])
def test_readers_use_the_getters_where_memory_is_not_as_expected(
    find: str, offset: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn()
    monkeypatch.setattr(f"holdfast.state.rng.mt19937.{find}", lambda: offset)
    reader = PythonReader() if find == "_offset_in_python" else NumpyReader()
    assert not copies_memory(reader)
    assert reader.read() == (PythonReader() if find == "_offset_in_python" else NumpyReader()).read_slowly()


@pytest.mark.parametrize("name", ["PCG64", "PCG64DXSM", "Philox", "SFC64", "MT19937"])
def test_another_bit_generator_of_numpy(name: str) -> None:
    set_bit_generator(getattr(np.random, name)(3))
    np.random.standard_normal()
    np.random.randint(0, 9, dtype=np.uint32)
    tree = through_json(rng_state.record().encode())
    expected = np.random.standard_normal(5).tolist()
    rng_state.restore(tree)
    assert np.random.standard_normal(5).tolist() == expected


def test_a_state_of_another_bit_generator_is_refused_before_anything_is_changed() -> None:
    tree = rng_state.record().encode()
    set_bit_generator(np.random.PCG64(3))
    drawn()
    before = rng_state.record().encode()
    with pytest.raises(CheckpointError, match=r"numpy.random is a MT19937, and this process's a PCG64"):
        rng_state.restore(tree)
    assert rng_state.record().encode() == before


def test_generators_that_come_and_go_are_told() -> None:
    tree = rng_state.record({"gone": torch.Generator()}).encode()
    assert rng_state.restore(tree, {"new": torch.Generator()}) == [
        "the checkpoint has no state of generator 'new'",
        "there is no generator 'gone' any more",
    ]


def test_cuda_states_of_another_machine_are_told() -> None:
    devices = torch.cuda.device_count()
    tree = rng_state.record().encode() | {"cuda": ["00" * 16] * (devices + 2)}
    [notice] = rng_state.restore(tree)
    assert notice == f"the checkpoint has {devices + 2} CUDA generators and this machine {devices}"


def test_recording_does_not_initialize_cuda() -> None:
    script = (
        "import torch; from holdfast.state.rng import state as r; "
        "r.restore(r.record().encode()); print(torch.cuda.is_initialized())"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False"]


@pytest.mark.cuda
def test_cuda_generators() -> None:
    own = torch.Generator("cuda").manual_seed(3)

    def on_device() -> list[Any]:
        return [torch.rand(5, device="cuda").tolist(), torch.rand(5, device="cuda", generator=own).tolist()]

    on_device()
    recorded = rng_state.record({"own": own})
    expected = on_device()
    assert recorded.restore({"own": own}) == []
    assert on_device() == expected
    assert rng_state.restore(through_json(recorded.encode()), {"own": own}) == []
    assert on_device() == expected
    assert torch.equal(recorded.as_transformers()["cuda"], recorded.cuda[torch.cuda.current_device()])
    with pytest.raises(CheckpointError, match=r"'own' has 16 bytes, and the generator itself"):
        recorded.restore({"own": torch.Generator()})


def changed(path: str, change: Callable[[Any], Any]) -> Callable[[dict[str, Any]], None]:
    *above, last = path.split(".")

    def apply(tree: dict[str, Any]) -> None:
        for key in above:
            tree = tree[key]
        tree[last] = change(tree[last])

    return apply


def bytes_at(offset: int, new: bytes) -> Callable[[str], str]:
    return lambda text: text[: 2 * offset] + new.hex() + text[2 * (offset + len(new)) :]


def without(key: str) -> Callable[[dict[str, Any]], Any]:
    return lambda tree: tree.pop(key)


DAMAGES: dict[str, Callable[[dict[str, Any]], Any]] = {
    **{f"no {key}": without(key) for key in ("python", "numpy", "cpu", "cuda", "generators")},
    "python is a list": changed("python", lambda _: []),
    "key is no text": changed("python.key", lambda _: 5),
    "key is no hex": changed("numpy.key", lambda text: "zz" + text[2:]),
    "key is short": changed("python.key", lambda text: text[2:]),
    "python's position is past the end": changed("python.position", lambda _: 625),
    "numpy's position is past the end": changed("numpy.position", lambda _: 625),
    "the position is before the beginning": changed("numpy.position", lambda _: -1),
    "the position is a truth": changed("numpy.position", lambda _: True),
    "gauss is no float": changed("numpy.gauss", lambda _: "1.x"),
    "gauss is a number": changed("python.gauss", lambda _: 1.5),
    "cpu is short": changed("cpu", lambda text: text[:-2]),
    "cpu is of a device": changed("cpu", lambda _: "00" * 16),
    "cpu was never seeded": changed("cpu", bytes_at(12, bytes(4))),
    "cpu points past the end": changed("cpu", bytes_at(8, (600).to_bytes(4, "little") + b"\1\0\0\0\x60\2")),
    "a device's is of the cpu": lambda tree: tree["cuda"].append(tree["cpu"]),
    "a device's is no number": lambda tree: tree["cuda"].append(1),
    "a device's offset is odd": lambda tree: tree["cuda"].append("01" * 16),
    "a generator's is short": lambda tree: tree["generators"].update(own="00" * 8),
    "an unknown bit generator": changed("numpy", lambda _: {"bit_generator": "os"}),
    "a bit generator without a state": changed("numpy", lambda _: {"bit_generator": "PCG64"}),
    "a list of texts": changed("numpy", lambda _: {"bit_generator": "SFC64", "state": {"state": ["x"]}}),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_what_is_no_state_is_refused_and_nothing_is_changed(damage: str) -> None:
    own = torch.Generator().manual_seed(5)
    tree = rng_state.record({"own": own}).encode()
    drawn(own)
    before = rng_state.record({"own": own}).encode()
    DAMAGES[damage](tree)
    with pytest.raises(CheckpointError, match=r"^the checkpoint's random state: ") as caught:
        rng_state.restore(tree, {"own": own})
    assert caught.value.hint
    assert rng_state.record({"own": own}).encode() == before


def test_a_philox_that_points_past_its_buffer_is_refused() -> None:
    set_bit_generator(np.random.Philox(3))
    tree = rng_state.record().encode()
    tree["numpy"]["buffer_pos"] = 5
    with pytest.raises(CheckpointError, match="buffer_pos is not between 0 and 4"):
        rng_state.restore(tree)


@pytest.mark.parametrize("draws", [1, 2])
def test_a_trainer_takes_it_for_its_own(draws: int, tmp_path: Path) -> None:
    from transformers.trainer_pt_utils import safe_globals

    for _ in range(draws):
        drawn()
    ours = rng_state.record().as_transformers()
    theirs: dict[str, Any] = {
        "python": random.getstate(),
        "numpy": np.random.get_state(),
        "cpu": torch.random.get_rng_state(),
    }
    expected = drawn()
    assert ours["python"] == theirs["python"]
    for mine, other in zip(ours["numpy"], theirs["numpy"], strict=True):
        assert (type(mine), str(getattr(mine, "dtype", ""))) == (type(other), str(getattr(other, "dtype", "")))
        assert np.array_equal(mine, other)
    assert torch.equal(ours["cpu"], theirs["cpu"])

    torch.save(ours, tmp_path / "rng_state.pth")
    with safe_globals():
        loaded = torch.load(tmp_path / "rng_state.pth", weights_only=True)
    random.setstate(loaded["python"])
    np.random.set_state(loaded["numpy"])
    torch.random.set_rng_state(loaded["cpu"])
    assert drawn() == expected


def test_states_are_the_same_on_machines_of_either_byte_order() -> None:
    key = np.arange(624, dtype=np.uint32)
    tree = rng_state.record()._replace(python=Mt19937State(key.tobytes(), 3, None)).encode()
    assert tree["python"]["key"][:24] == "00000000" + "01000000" + "02000000"
