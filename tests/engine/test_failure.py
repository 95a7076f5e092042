from pathlib import Path

import pytest
import torch

from helpers.loops import Loop
from helpers.paper import CardLostError, Paper, taken_for_cards
from helpers.trainings import events

# Whether an event is over may be asked: the answer is that it is lost.
TOUCHES = ("lane", "mark", "hold", "follow", "copy", "enqueue", "event", "wait", "register", "free_bytes")


def fails(loop: Loop, error: Exception, paper: Paper, *, saves: bool = False) -> list[str]:
    """Trains up to step 4 and raises an error there. Returns what is asked of the cards from then on."""
    touched: list[str] = []
    with pytest.raises(type(error)) as raised, loop.ckpt:
        for batch in loop.ckpt.batches(until=9):
            if loop.ckpt.step_count == 4:
                for name in TOUCHES:
                    setattr(paper, name, lambda *args, name=name: touched.append(name))
                raise error
            loop.update(batch)
            if saves and loop.ckpt.step_count == 2:
                loop.ckpt.save(wait=True)
    assert raised.value is error
    return touched


def caused_by_loss() -> Exception:
    error = RuntimeError("the step has failed")
    error.__cause__ = CardLostError("no answer")
    return error


@pytest.mark.parametrize("error", [CardLostError("no answer"), caused_by_loss()], ids=["itself", "its cause"])
def test_no_save_precedes_the_loss_of_a_card_which_is_not_touched_again_and_a_line_says_what_there_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    paper = taken_for_cards(monkeypatch, Paper("eager", in_step=True))
    loop, name = Loop(tmp_path / "run"), type(error).__name__
    assert fails(loop, error, paper, saves=True) == []
    assert [event["step"] for event in events(tmp_path / "run", "saved")] == [2]
    (line,) = (line for line in loop.said if line.startswith(name))
    said = f"{name}: the device is lost, and with it what came since, which is not saved; the last checkpoint is "
    assert line == f"{said}{tmp_path / 'run' / 'checkpoint-2'}"


def test_memory_of_a_card_that_has_run_out_is_no_loss_of_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    taken_for_cards(monkeypatch, Paper("eager", in_step=True))
    loop = Loop(tmp_path / "run")
    fails(loop, torch.OutOfMemoryError("CUDA out of memory"), Paper("eager"))
    assert [event["step"] for event in events(tmp_path / "run", "saved")] == [4]
    assert not any("is lost" in line for line in loop.said)
