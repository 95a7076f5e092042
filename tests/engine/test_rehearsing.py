"""The digests that a rehearsed program leaves: of state, and of nothing that a clock decides."""

import json
from typing import Any

from holdfast.engine.rehearsing import digests_of_file


def test_the_moment_at_which_the_save_of_the_best_was_complete_is_no_state() -> None:
    def of(**state: Any) -> dict[str, str]:
        return digests_of_file("trainer_state.json", [json.dumps({"log_history": [], **state}).encode()])

    before = of(best_global_step=3, best_model_checkpoint=None)
    assert before == of(best_global_step=3, best_model_checkpoint="out/checkpoint-3")
    assert before != of(best_global_step=6, best_model_checkpoint=None)
