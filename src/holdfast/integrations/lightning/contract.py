"""The names of Lightning that are not public and that this uses: what each is for, and what is lost without it.

All were seen in Lightning 2.6.6 (`lightning.pytorch` and `pytorch_lightning` alike). `attach` looks for each before
anything is trained: one without a lesser promise leads to a refusal, never to an AttributeError in a step.
"""

from typing import Any, NamedTuple

SEEN = "2.6.6"


class Name(NamedTuple):
    """One name that is not public.

    Args:
        path: Its path from a trainer.
        use: What it is for.
        without: What is lost without it, as a line says it; empty where nothing can be promised.
    """

    path: str
    use: str
    without: str = ""


_METRICS = "the means that are logged at an epoch's end, and who goes by them, may differ after a resume"

NAMES = (
    Name("fit_loop.run", "goes on in the middle of an epoch"),
    Name("fit_loop.reset", "the same"),
    Name("fit_loop.on_run_start", "the same"),
    Name("fit_loop.on_advance_start", "the same"),
    Name("fit_loop.advance", "the same"),
    Name("fit_loop.on_advance_end", "the boundary at the end of an epoch"),
    Name("fit_loop.on_iteration_done", "goes on in the middle of an epoch"),
    Name("fit_loop.on_run_end", "the end of training, before hooks that move the weights once more"),
    Name("fit_loop.done", "tells if there is more to train"),
    Name("fit_loop.setup_data", "the loaders, before anything is iterated"),
    Name("fit_loop.epoch_progress", "tells samplers their epoch"),
    Name("fit_loop._last_train_dl_reload_epoch", "the epoch that the loaders were made for"),
    Name("fit_loop.epoch_loop.val_loop._last_val_dl_reload_epoch", "the same, of a validation"),
    Name("fit_loop.load_state_dict", "the progress of the loops"),
    Name("fit_loop._combined_loader", "the loaders that are followed"),
    Name("fit_loop._load_combined_loader_states", "the moment before they are iterated"),
    Name("fit_loop._restarting", "keeps Lightning's own way to restart off, which repeats and leaves out steps"),
    Name("fit_loop._loaded_from_state_dict", "the same"),
    Name("fit_loop._resuming_from_checkpoint", "the same"),
    Name("fit_loop.epoch_loop.run", "goes on in the middle of an epoch"),
    Name("fit_loop.epoch_loop.done", "the same"),
    Name("fit_loop.epoch_loop.advance", "the boundary after an update"),
    Name("fit_loop.epoch_loop.on_advance_end", "the boundary after a validation"),
    Name("fit_loop.epoch_loop.on_iteration_done", "goes on in the middle of an epoch"),
    Name("fit_loop.epoch_loop.batch_progress", "the same"),
    Name("fit_loop.epoch_loop._batches_that_stepped", "the step under which loggers are told"),
    Name("fit_loop.epoch_loop._should_check_val_fx", "the boundary before a validation"),
    Name("_checkpoint_connector._select_ckpt_path", "keeps Lightning from loading another checkpoint over ours"),
    Name("_signal_connector.register_signal_handlers", "signals are Holdfast's while it trains"),
    Name("fit_loop.epoch_loop._results", "the metrics of an epoch", _METRICS),
    Name("_logger_connector._first_loop_iter", "the same", _METRICS),
    Name("_logger_connector._current_fx", "the same", _METRICS),
    Name("_logger_connector._progress_bar_metrics", "the same", _METRICS),
    Name("_logger_connector._logged_metrics", "the same", _METRICS),
    Name("_logger_connector._callback_metrics", "the same", _METRICS),
)
"""On a trainer. On what it holds: `_iterator`, `_flattened` of a CombinedLoader; `_Metadata`, `_Sync`, `_ResultMetric`
and their fields, of a metric (`logger_connector/result.py`)."""


def missing(trainer: Any) -> list[Name]:
    """Returns those that a trainer does not have."""
    return [name for name in NAMES if not _has(trainer, name.path)]


def _has(value: Any, path: str) -> bool:
    *way, last = path.split(".")
    for name in way:
        value = getattr(value, name, None)
    # `done` is a property that says so when it is asked.
    return value is not None and (last in vars(value) or hasattr(type(value), last))
