"""A Trainer in `holdfast drill`: it writes into the rehearsal's directory, and tells no tracker and no hub of it."""

from transformers import Trainer
from transformers.integrations import INTEGRATION_TO_CALLBACK

from holdfast.run import rehearsal


def rehearse(trainer: Trainer) -> None:
    """Points a trainer at the directory of a rehearsal, and takes its trackers and its hub away."""
    plan = rehearsal.current()
    if plan is None:
        return
    trainer.args.output_dir = plan.output_dir
    trainer.args.report_to = []
    trainer.args.push_to_hub = False
    for tracker in INTEGRATION_TO_CALLBACK.values():
        while trainer.pop_callback(tracker) is not None:
            pass
