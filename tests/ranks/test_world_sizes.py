"""Another number of ranks goes on: with the same tensors, and with each sample of the epoch once."""

import re
from pathlib import Path

from helpers.full import FULL
from ranks.conftest import Ranks
from ranks.loop import SAMPLES

# Kind, ranks, and the step that they end at. A rank takes 2 samples a step: 16, 24, 30, 42, and with step 11 all 48.
# `make test` goes through three of these: 16, 20, and with step 11 all 48.
LONG = (("ddp", 4, 2), ("fsdp", 2, 4), ("alone", 1, 7), ("fsdp", 3, 9), ("ddp", 2, 12))
CHAIN = LONG if FULL else (("ddp", 4, 2), ("alone", 1, 4), ("fsdp", 2, 12))
LAST_OF_EPOCH = 11


def seen(folder: Path, first: int, last: int) -> list[int]:
    """The samples of some steps, of all ranks."""
    lines = [line.split() for file in folder.glob("seen-*.txt") for line in file.read_text().splitlines()]
    return sorted(int(one) for _, step, *ids in lines if first <= int(step) <= last for one in ids)


def told(output: str, what: str) -> set[str]:
    """What the ranks told of all their tensors together."""
    return set(re.findall(rf"rank \d {what} with (\w+)", output))


def test_fault_44_in_other_numbers_of_ranks_the_tensors_are_the_same_and_no_sample_is_twice_or_lost(
    ranks: Ranks,
) -> None:
    """A run of four ranks is resumed in two, then one, then three."""
    left: set[str] = set()
    for kind, size, until in CHAIN:
        job = ranks.start(size, kind=kind, until=until, settings={"save_steps": until})
        assert job.wait() == [0] * size, job.output
        begun = told(job.output, "begins")
        assert len(begun) == 1, job.output
        if left:
            assert begun == left
            (notice,) = re.findall(r"\d processes saved it and \d go on.*", job.output)
            assert "the same, bit for bit; the rest of the epoch is shared out anew; random numbers" in notice
            assert "data: " not in job.output
        left = told(job.output, "leaves")
        assert ranks.manifest(until)["world_size"] == size
    assert seen(ranks.folder, 1, LAST_OF_EPOCH) == list(range(SAMPLES))
    assert len(set(seen(ranks.folder, LAST_OF_EPOCH + 1, 12))) == 4
