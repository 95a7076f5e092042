"""What is measured on a GPU runs dry without one, and keeps what it has found when a part fails; its page says that."""

import ast
import importlib.util
import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from benchmarks import results
from benchmarks.gpu import goals, marked, page, parts, proof, registering, shadow, table
from benchmarks.gpu.bench import MIB, Bench
from benchmarks.gpu.copying import CopyAndWrite
from benchmarks.gpu.locked import HostMemory
from benchmarks.gpu.report import Keeper
from benchmarks.gpu.shadow import Toy, different
from benchmarks.gpu.training import Training
from benchmarks.measure import finish

# What the project declares, beside the standard library and itself: a machine with a GPU need not have more.
DECLARED = {"torch", "numpy", "safetensors", "xxhash", "psutil", "pydantic", "yaml", "typer", "pytest"}
OURS = {"holdfast", "helpers", "benchmarks", "faults"}


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench("cpu", tmp_path, tmp_path / "findings")


def findings(bench: Bench) -> list[dict[str, Any]]:
    return [json.loads(line) for line in bench.into.read_text().splitlines()]


def imported(path: Path) -> set[str]:
    """Returns the packages that a file imports when it is loaded."""
    names: set[str] = set()
    for node in ast.parse(path.read_text()).body:
        if isinstance(node, ast.Import):
            names |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names.add(node.module.split(".")[0])
    return names


def test_files_of_tests_that_need_a_card_import_nothing_that_is_not_declared() -> None:
    files = marked.files()
    assert len(files) > 3
    tests = Path(__file__).parent
    # What pytest loads with them, and this folder's own measurements.
    others = [tests / "conftest.py", *(tests.parent / "benchmarks" / "gpu").glob("*.py")]
    for path in (*files, *others):
        assert imported(path) <= DECLARED | OURS | set(sys.stdlib_module_names), path


def test_memory_that_a_driver_has_locked_is_never_made_twice_at_the_same_addresses() -> None:
    addresses = [HostMemory(MIB, "cpu").tensor.data_ptr() for _ in range(3)]
    assert len(set(addresses)) == 3


@pytest.mark.parametrize("changed", ["0.weight", None])
def test_a_tensor_that_a_checkpoint_has_otherwise_is_named(bench: Bench, changed: str | None) -> None:
    toy = Toy.make("cpu", MIB, 64)
    toy.advance()
    shadowed = shadow.Shadowed(toy, bench.folder / "run")
    with shadow.card_of_paper(bench), shadowed.opened():
        toy.advance()
        shadowed.ckpt.step()
        checkpoint = Path(shadowed.ckpt.save(wait=True).wait().path)
    truth = {name: tensor.detach().clone() for name, tensor in toy.tensors().items()}
    if changed is not None:
        truth[f"model {changed}"].view(-1)[0] += 1
    assert different(checkpoint, truth) == ([] if changed is None else [f"model {changed}"])
    assert different(checkpoint, {"model absent": torch.zeros(1)}) == ["model absent (not there)"]


def test_what_only_copies_and_writes_writes_every_byte(bench: Bench) -> None:
    training = Training.make(bench)
    saver = CopyAndWrite(training, bench.folder)
    path = saver.save(0)
    expected = [tensor.detach().contiguous().view(-1).view(torch.uint8).clone() for _, tensor in training.tensors()]
    saver.gate()
    training.forward_backward()
    training.update()
    finish(saver, path)
    written, offset = path.read_bytes(), 0
    for data in expected:
        assert written[offset : offset + data.numel()] == data.numpy().tobytes()
        offset += -(-data.numel() // 4096) * 4096
    assert offset == len(written)


def test_a_part_that_fails_hangs_or_lacks_something_leaves_what_it_found_and_the_next_goes_on(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(bench: Bench) -> None:
        bench.add("before", True, "measured")
        raise ValueError("the card is on fire")

    def lack(bench: Bench) -> None:
        import torch_checkpointing_of_nobody  # type: ignore[import-not-found]  # noqa: F401

    monkeypatch.setattr(registering, "run", fail)
    with pytest.raises(ValueError, match="on fire"):
        parts.run_one("registering", bench)
    monkeypatch.setattr(registering, "run", lack)
    parts.run_one("registering", bench)
    assert [(finding["name"], finding["passed"]) for finding in findings(bench)] == [
        ("before", True),
        ("registering", False),
        ("registering", None),
    ]
    assert "torch_checkpointing_of_nobody is not installed" in findings(bench)[2]["text"]
    monkeypatch.setattr(parts, "_DRY_SECONDS", 0)
    running = parts.Running("proofs", parts.CHECK["proofs"], "cpu", bench.folder)
    running.wait()
    keeper = Keeper("check", "cpu", bench.folder)
    keeper.take("registering", 1.0, bench.into)
    keeper.take("proofs", 1.0, running.into)
    assert keeper.end(2.0) == 1
    said = capsys.readouterr().out
    assert "FAIL  registering: failed: ValueError: the card is on fire" in said
    assert "FAIL  proofs: not over after 0 s" in said
    assert said.rstrip().endswith("2 FAILED, 1 not run")
    assert set(results.read(keeper.path)["parts"]) == {"registering", "proofs"}


def test_a_saver_of_others_that_fails_is_a_figure_and_no_failure_of_ours(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(bench: Bench) -> None:
        raise KeyError("exp_avg")

    monkeypatch.setattr(table, "dcp", fail)
    with pytest.raises(KeyError):
        parts.run_one("dcp", bench)
    assert [(finding["passed"], finding["text"]) for finding in findings(bench)] == [
        (None, "failed: KeyError: 'exp_avg'")
    ]


def test_parts_that_measure_no_time_run_beside_each_other_and_all_others_alone() -> None:
    groups = parts.in_order(parts.CHECK)
    assert ["variants", "proofs", "tests"] in groups
    assert [name for group in groups for name in group] == list(parts.CHECK)
    assert all(len(group) == 1 for group in parts.in_order(parts.TABLE))


def test_a_machine_that_lacks_what_is_declared_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    assert parts.missing() == []
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "xxhash" else object())
    assert parts.missing() == ["xxhash"]


@pytest.fixture
def result() -> dict[str, Any]:
    """A machine's figures, made up but for their form."""

    def save(number: int, saver: str, steps: str = "0.1", **figures: float) -> dict[str, Any]:
        values = {"lost": 0.3, "worst": 0.14, "durable": 6.0, "longer": 1.01, **figures}
        return {"name": f"13 {saver}, steps of {steps} s, save {number}", "passed": None, "text": "", "figures": values}

    floor = {"floor": 0.124, "durable": 5.8}
    native = [
        save(1, "native", lost=0.6),
        save(2, "native"),
        {
            "name": "13 native, steps of 0.1 s, the floor of this machine",
            "passed": None,
            "text": "12 | 54",
            "figures": floor,
        },
        {"name": "13 native, steps of 0.1 s, memory", "passed": None, "text": "", "figures": {"taken": 12e9}},
        {"name": "3 hiccups", "passed": False, "text": "longest step 1 s", "figures": {}},
    ]
    others = [save(1, "torch_checkpointing"), save(2, "torch_checkpointing", lost=0.5, worst=0.18)]
    long = [save(2, "native", "0.5", worst=0.02)]
    long = [save(1, "native", "0.5"), *long]
    as_parts = {"native": native, "torch_checkpointing": others, "native-long": long}
    return {
        "date": "2026-01-01",
        "device": "a-card",
        "parts": {name: {"seconds": 1, "commit": "abc", "findings": found} for name, found in as_parts.items()},
    }


def test_a_goal_is_reached_or_not(result: dict[str, Any]) -> None:
    reached = {goal.text: goal.reached for goal in goals.of(result)}
    assert reached == {
        "worst step over usual": True,
        "training time lost / torch_checkpointing": False,
        "worst step over usual / torch_checkpointing": True,
        "the first save / the second, lost": False,
        "the first save / the second, durable": True,
        "time to durable / raw direct write": True,
        "steps of 0.5 s: worst step over usual": False,
        "steps of 0.5 s: steps during the write / usual": True,
    }
    assert goals.of({"parts": {}}) == []


def test_the_page_shows_what_its_file_holds_and_says_so_when_it_does_not(
    result: dict[str, Any], tmp_path: Path
) -> None:
    shown = tmp_path / "docs" / "page.md"
    shown.parent.mkdir()
    shown.write_text(
        "# Before\n\n<!-- measured on a GPU: nothing yet -->\n<!-- end of what was measured on a GPU -->\n\nAfter.\n"
    )
    page.write(page=shown)
    assert page.NOTHING in shown.read_text() and page.differs(shown) == ""
    path = tmp_path / "results" / "2026-01-01-a-card.json"
    results.put(result, path)
    page.write(path, shown)
    text = shown.read_text()
    assert "| holdfast, native | 0.3 [0.6] | 0.14 [0.14] | 6 [6] | 12000 |" in text
    assert "| 3 hiccups | longest step 1 s | **fail** |" in text and "**not reached**" in text
    assert text.startswith("# Before\n") and text.endswith("\nAfter.\n") and page.differs(shown) == ""
    result["parts"]["native"]["findings"][1]["figures"]["lost"] = 0.2
    results.put(result, path)
    assert "differs" in page.differs(shown)
    page.write(page=shown)
    assert page.differs(shown) == ""


def test_the_page_in_docs_shows_the_figures_that_it_names() -> None:
    assert page.differs() == ""


def test_every_proof_has_a_training_of_its_own() -> None:
    assert len(set(proof.VARIANTS.values())) == len(proof.VARIANTS)
