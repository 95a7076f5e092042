"""The benchmark measures what it says, and its page says what it measured. How fast anything is, is not tested here."""

import importlib
import json
import math
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from benchmarks import (
    bucket_server,
    first_step,
    goals,
    loop,
    mirror_transfers,
    page,
    peers,
    plot,
    results,
    save,
    states,
    trace,
    turns,
)
from benchmarks.measure import bytes_on_disk, load_once, load_twice, save_once
from benchmarks.memory import Peak
from benchmarks.ours import Native
from benchmarks.peers.safetensors_file import SafetensorsFile
from benchmarks.peers.torch_save import TorchSave
from benchmarks.plan import Plan
from benchmarks.quiet import quiet
from benchmarks.rounds import Rounds, measure_size, new_directory
from benchmarks.states import State
from benchmarks.triggers import BOUNDARY, BROADCAST, DOOR, STAT

from helpers.full import in_full
from helpers.object_servers import needs

INSTALLED_HERE = ["hf", "torch", "safetensors", "dcp", "dcp_async", "accelerate"]


def small(device: str = "cpu") -> State:
    return states.gpt2(device, layers=1, width=64, words=500)


def small_adapters(device: str = "cpu") -> State:
    return states.lora(device, layers=1, width=64, words=500)


@pytest.mark.parametrize("make", [small, pytest.param(small_adapters, marks=in_full("the whole model"))])
def test_every_saver_brings_the_same_bytes_back_and_fills_its_columns(make: Any, tmp_path: Path) -> None:
    found, missing = peers.found(INSTALLED_HERE)
    with quiet():
        state = make()
        rounds = Rounds(state, tmp_path, Plan(found), None)
        measured = rounds.measure(1)
        rounds.close()
    assert not missing
    assert measured["bytes"] == state.size == sum(tensor.nbytes for _, tensor in state.tensors())
    assert set(measured["savers"]) == set(turns.OURS) | set(found)
    for name, columns in measured["savers"].items():
        at_once, ours = name.endswith("at_once"), name in turns.OURS
        expected = {"stall", "durable", "memory", "disk"}
        expected |= set() if at_once else {"cold", "warm"}
        expected |= {"safe"} if at_once or not ours else set()
        assert set(columns) == expected, name
        assert all(len(values) == 1 and all(map(math.isfinite, values)) for values in columns.values()), name
        for stall, safe, durable in zip(
            columns["stall"], columns.get("safe", columns["stall"]), columns["durable"], strict=True
        ):
            # What a Trainer takes anyway is taken off `attach`'s stall.
            assert 0 <= stall <= durable and (name == "attach_at_once" or stall <= safe) and safe <= durable, name
        assert min(columns["disk"]) >= measured["bytes"] * 0.95, name
    assert all(seconds > 0 for what in ("raw", "raw read", "copy") for seconds in measured[what])


def test_training_does_not_stand_still_for_the_write(tmp_path: Path) -> None:
    state, stalls, writes = states.sized(0.05), [], []
    with Native(state, tmp_path) as saver:
        for number in range(4):
            _, seconds = save_once(saver, number)
            stalls.append(seconds["stall"])
            writes.append(seconds["durable"])
    assert min(stalls) < min(writes) / 2


class Forgetful(TorchSave):
    """Brings the moments back, and not the model."""

    def load(self, path: Path) -> None:
        self.state.optimizer.load_state_dict(torch.load(path, weights_only=True)["optimizer"])


def test_a_saver_that_forgets_something_is_found_out(tmp_path: Path) -> None:
    state = small()
    expected = state.digests()
    saver = Forgetful(state, tmp_path)
    path, _ = save_once(saver, 1)
    with pytest.raises(AssertionError, match=r"came back otherwise: \d+ of \d+ tensors, \['model\."):
        load_twice(state, lambda path: load_once(saver, path), path, expected)


def test_bytes_on_disk_are_those_of_all_files(tmp_path: Path) -> None:
    (tmp_path / "inner").mkdir()
    (tmp_path / "inner" / "file").write_bytes(bytes(1_000_000))
    (tmp_path / "file").write_bytes(bytes(2_000_000))
    assert 3_000_000 <= bytes_on_disk(tmp_path) < 3_100_000


def test_memory_that_is_taken_and_given_back_is_seen() -> None:
    with Peak() as peak:
        taken = torch.ones(64_000_000)  # so much that what else a process gives back meanwhile does not count
        peak._look()
        del taken
    assert 200_000_000 < peak.extra < 400_000_000


def test_lost_time_is_what_a_block_takes_beyond_its_neighbours() -> None:
    blocks = loop.Blocks()
    blocks.plain, blocks.saving = [1.0, 2.0, 1.0], [(3, 5.0), (4, 6.5)]
    assert blocks.lost() == [0.5, 0.5]


@pytest.mark.parametrize("way", ["native", "attached", "peer"])
def test_a_block_with_a_save_stands_between_two_without(way: str, tmp_path: Path) -> None:
    state = small()
    before = state.digests()
    with quiet():
        if way == "native":
            blocks = loop.native(state, tmp_path, 2)
        elif way == "attached":
            blocks = loop.attached(state, tmp_path, 2)
        else:
            blocks = loop.with_saver(state, SafetensorsFile(state, tmp_path), 1, 2)
    assert len(blocks.plain) == 3 and len(blocks.saving) == 2
    assert all(seconds > 0 for seconds in blocks.plain)
    assert all(steps >= 3 and seconds > 0 for steps, seconds in blocks.saving)
    assert set(before.values()).isdisjoint(state.digests().values())  # it did train
    assert any(tmp_path.iterdir())


@pytest.mark.parametrize("way", ["attached", "peer"])
def test_a_saver_whose_blocks_take_long_has_fewer(way: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loop, "_SECONDS", 0.0)
    state = small()
    with quiet():
        if way == "attached":
            blocks = loop.attached(state, tmp_path, 3)
        else:
            blocks = loop.with_saver(state, SafetensorsFile(state, tmp_path), 1, 3)
    assert len(blocks.plain) == 2 and len(blocks.saving) == 1 and len(blocks.lost()) == 1


@in_full("it is a measurement, which nothing decides by")
def test_a_new_process_says_what_the_time_until_its_first_step_was_spent_on(tmp_path: Path) -> None:
    state = small()
    paths = first_step.saved(state, tmp_path)
    expected = float(state.forward_backward())
    begun = time.perf_counter()
    seconds, loss = first_step.resumed(state, "native", paths["native"])
    whole = time.perf_counter() - begun
    assert list(seconds) == [
        "interpreter and torch",
        "holdfast",
        "transformers",
        "model and optimizer",
        "opening the run",
        "reading",
        "first step",
    ]
    assert min(seconds.values()) > 0 and sum(seconds.values()) < whole
    assert loss == pytest.approx(expected, abs=1e-4)
    assert loss != pytest.approx(
        float(states.fresh_gpt2("cpu", 1, 64, 500, seed=1).forward_backward()), abs=1e-4
    )  # what it had before it resumed


@in_full("it is a measurement, which nothing decides by")
def test_what_a_run_has_measured_survives_its_interruption(tmp_path: Path) -> None:
    said: list[str] = []

    def interrupt(text: str) -> None:
        said.append(text)
        if "training with a save" in text:
            raise KeyboardInterrupt

    plan = Plan(peers.found(["safetensors"])[0], rounds=1, warm=False, states={"gpt2": small})
    kept = tmp_path / "unfinished.json"
    with pytest.raises(KeyboardInterrupt):
        save.run(tmp_path, plan, interrupt, kept)
    assert str(kept) in said[-1]
    found = results.read(kept)
    assert set(found["states"]["gpt2"]["savers"]) == {*turns.OURS, "SafetensorsFile"}
    assert "lost" not in found


def test_a_peer_that_is_not_installed_is_left_out_with_a_word(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "benchmarks.peers.lightning_io", raising=False)
    monkeypatch.setitem(sys.modules, "lightning.pytorch", None)
    found, missing = peers.found(["torch", "lightning"])
    assert list(found) == ["TorchSave"]
    assert missing == ["lightning: left out, lightning.pytorch is not installed (pip install -e '.[bench]')"]


def test_a_trace_of_a_save_goes_from_the_trigger_file_to_the_commit_and_one_of_a_resume_is_of_that_alone(
    tmp_path: Path,
) -> None:
    saved, resumed = trace.save(tmp_path / "run"), trace.resume(tmp_path / "run")
    assert {"doors/trigger_file.py", "loop/checkpointer.py", "engine/save.py", "store/commit.py"} <= saved.files
    assert ("engine/save.py", "store/commit.py") in saved.calls.keys() - saved.not_imported.keys()
    assert saved.upwards.keys() <= saved.calls.keys()
    assert resumed.deepest[0].endswith("Checkpointer.resume")
    assert "loop/restore.py" in resumed.files
    assert not {"doors/trigger_file.py", "engine/save.py"} & resumed.files  # the threads of the run go on meanwhile


def test_a_trace_tells_calls_that_imports_do_not_show_and_looks_through_what_is_not_ours(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = tmp_path / "traced"
    package.mkdir()
    (package / "__init__.py").write_text("from traced.low import work")
    (package / "low.py").write_text("def work(call): return [*map(call, [1]), *sorted([2], key=call)]")
    (package / "top.py").write_text(
        "from traced import work\nfrom traced import other\n"
        "def back(number): return number\n"
        "def run(): return work(back) + other.work()\n"
    )
    (package / "other.py").write_text(
        "from functools import reduce\nwork = lambda: reduce(lambda x, y: x + leaf(y), [2], [])\n"
        "def leaf(y):\n    import traced.leaf\n    return traced.leaf.of(y)\n"
    )
    (package / "leaf.py").write_text("def of(y): return [y]")
    monkeypatch.syspath_prepend(str(tmp_path))
    top = importlib.import_module("traced.top")
    recorder = trace.Recorder(package)
    with recorder.installed():
        top.run()  # is not recorded, and imports what is imported late
        recorder.recording = True
        assert top.run() == [1, 2, 2]
        recorder.recording = False
    seen = recorder.trace()
    assert seen.files == {"top.py", "low.py", "other.py", "leaf.py"}
    assert set(seen.calls) == {
        ("top.py", "low.py"),  # imported, by way of the package
        ("low.py", "top.py"),  # called back, through what Python brings
        ("top.py", "other.py"),
        ("other.py", "leaf.py"),  # imported inside a function
    }
    assert seen.not_imported == seen.upwards == {("low.py", "top.py"): {"back"}}
    assert [line.rsplit(".")[-1] for line in seen.deepest] == [
        "py  run",
        "py  <lambda>",
        "<lambda>",
        "py  leaf",
        "py  of",
    ]


@pytest.fixture(scope="module")
def result(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """A run's figures, made up but for their form."""
    figures = {"stall": [0.001], "safe": [0.1], "durable": [0.5], "memory": [3e7], "disk": [1.5e9]}
    figures |= {"cold": [0.7], "warm": [0.3]}
    slow = {column: [10 * value for value in values] for column, values in figures.items()}
    savers = dict.fromkeys(turns.OURS, figures) | {"TrainerSave": slow, "DcpAsync": slow}
    state = {"bytes": 1_500_000_000, "raw": [0.45], "raw read": [0.4], "copy": [0.12], "savers": savers}
    return {
        "date": "2026-01-01",
        "host": {
            "class": "here",
            "cores": 2,
            "memory in GiB": 24,
            "file system": "ext4",
            "device": "cpu",
            "kernel": "6",
            "python": "3.11",
        },
        "versions": {"torch": "2.13"},
        "missing": ["lightning: left out"],
        "titles": {**turns.OURS, "TrainerSave": "the Trainer", "DcpAsync": "async_save"},
        "states": {"gpt2": state, "lora": state},
        "lost": {"step": [0.7], "savers": {"native": [0.08], "attach": [0.2], "TrainerSave": [2.0], "DcpAsync": [1.0]}},
        "first_step": {
            "native": {
                "cold": {"holdfast": [0.5, 0.5, 0.5], "reading": [1.0, 2.0, 3.0]},
                "warm": {"holdfast": [0.5, 0.5, 0.5], "reading": [0.7, 0.8, 0.9]},
            },
            "torch": {"cold": {"reading": [2.5, 2.5, 2.5]}, "warm": {"reading": [1.5, 1.5, 1.5]}},
        },
        "sizes": {
            str(size): {
                "bytes": int(size * 1e9),
                "raw": [size / 2],
                "stall": [0.001],
                "safe": [size],
                "durable": [size],
            }
            for size in (0.1, 0.5, 1.5, 4.0)
        },
        "triggers": {DOOR: [5e-8], BOUNDARY: [1e-4], STAT: [2e-6], BROADCAST: [1e-3]},
        "latencies": {"trigger file": [0.1, 0.2]},
    }


def test_a_goal_is_reached_or_not(result: dict[str, Any]) -> None:
    found = {goal.text: goal for goal in goals.of(result)}
    assert found["time to durable, attach / Trainer's own and a sync"].value == pytest.approx(0.1)
    assert found["time to durable, attach / Trainer's own and a sync"].reached
    assert found["training time lost, native / Trainer's own"].reached
    assert not found["training time lost, attach / Trainer's own"].reached
    assert found["bytes a second to durable, native / raw direct write"].reached
    assert found["the look at the doors"].reached and not found["a boundary"].reached
    assert found["a further gigabyte, at the largest size / at the smaller ones"].value == pytest.approx(1.0)


def test_time_that_grows_faster_than_the_state_is_seen(result: dict[str, Any]) -> None:
    large = {**result["sizes"]["4.0"], "durable": [8.0]}
    found = goals.of({**result, "sizes": {**result["sizes"], "4.0": large}})
    assert not next(goal for goal in found if goal.text.startswith("a further gigabyte")).reached


def test_the_page_shows_what_its_file_holds_and_says_so_when_it_does_not(
    result: dict[str, Any], tmp_path: Path
) -> None:
    shown = tmp_path / "docs" / "page.md"
    shown.parent.mkdir()
    shown.write_text("# Before\n\n<!-- figures of nothing yet -->\n<!-- end of figures -->\n\nAfter.\n")
    path = results.write(result, tmp_path / "results")
    assert results.write(result, tmp_path / "results") != path  # a second run of a day does not replace the first
    path.with_suffix(".png").touch()
    page.write(path, path.with_suffix(".png"), shown)
    assert page.differs(shown) == ""
    assert shown.read_text().startswith("# Before\n") and shown.read_text().endswith("\nAfter.\n")
    assert page.named(shown).samefile(path)
    changed = json.loads(path.read_text())
    changed["states"]["gpt2"]["savers"]["native"]["durable"] = [0.4]
    path.write_text(json.dumps(changed))
    assert "differs" in page.differs(shown)
    path.with_suffix(".png").unlink()
    assert "is not there" in page.differs(shown)


def test_a_first_step_is_shown_by_parts_and_in_all(result: dict[str, Any]) -> None:
    lines = page.tables(result).splitlines()
    assert (
        "| spent on, s | holdfast, native, cold | holdfast, native, warm | torch.load, cold | torch.load, warm |"
        in lines
    )
    assert "| holdfast | 0.5 | 0.5 |  |  |" in lines
    assert "| reading | 2 (1 to 3) | 0.8 (0.7 to 0.9) | 2.5 | 1.5 |" in lines
    assert "| in all | 2.5 (1.5 to 3.5) | 1.3 (1.2 to 1.4) | 2.5 | 1.5 |" in lines


def test_the_plot_can_be_drawn(result: dict[str, Any], tmp_path: Path) -> None:
    pytest.importorskip("matplotlib", reason="matplotlib is not installed (pip install -e '.[bench]')")
    plot.draw(result, tmp_path / "plot.png")
    assert (tmp_path / "plot.png").read_bytes().startswith(b"\x89PNG")


def test_sizes_are_measured_with_ours_alone(tmp_path: Path) -> None:
    found = measure_size(states.sized(0.03), new_directory(tmp_path / "sized"), Plan({}, rounds=1), None)
    assert 0.02e9 < found["bytes"] < 0.04e9
    assert all(found[column][0] >= 0 for column in ("raw", "stall", "durable", "safe"))


def test_the_page_in_docs_shows_the_figures_that_it_names() -> None:
    assert page.differs() == ""


@needs("obstore")
def test_a_mirror_is_measured_beside_obstore_alone_with_a_server_that_gives_back_what_it_was_given(
    tmp_path: Path,
) -> None:
    with bucket_server.serving() as port:
        bucket_server.tell(port, forget=1)
        measured = mirror_transfers.measured(port, tmp_path, (9 << 20) + 5, 2)
        kept = mirror_transfers.memory(port, tmp_path, "pull", 9 << 20)
    assert 0 < kept["idle"] < kept["most"]
    for what in ("upload", "pull"):
        for way in mirror_transfers.WAYS:
            figures = measured[what][way]
            assert len(figures["seconds"]) == len(figures["processor"]) == 2, (what, way)
            assert all(value > 0 for values in figures.values() for value in values), (what, way)
