"""One rank's shards alone hold NaN: the checkpoint that all ranks write says so."""

import json

from helpers.trainings import events
from ranks.conftest import Ranks


def test_fault_45_what_one_rank_alone_holds_is_named_for_all(ranks: Ranks) -> None:
    """NaN in the gradients of rank 1's shards."""
    job = ranks.start(kind="fsdp", until=4, diverges=[1, 3], settings={"save_steps": 2})
    assert job.wait() == [0, 0], job.output
    found = {step: json.loads((ranks.run / f"checkpoint-{step}" / "MANIFEST.json").read_text()) for step in (2, 4)}
    parameters = ["model.0.bias", "model.0.weight"]  # the last layer has one row, which is rank 0's
    moments = [f"optimizer.{name}/{moment}" for name in parameters for moment in ("exp_avg", "exp_avg_sq")]
    expected = [*parameters, *moments]
    assert "not_finite" not in found[2] and found[4]["not_finite"] == expected
    assert [event.get("not_finite") for event in events(ranks.run, "saved")] == [None, expected]
