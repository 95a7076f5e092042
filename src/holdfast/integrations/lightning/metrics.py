"""The metrics that Lightning adds up over an epoch, and the last of each that callbacks and schedules go by.

Lightning's own checkpoints have none of it: after a resume in the middle of an epoch the mean that is logged at its end
would be that of its rest, and an EarlyStopping on it would decide otherwise. Read against Lightning 2.6.
"""

import importlib
from collections.abc import Mapping
from typing import Any

import torch

_REDUCTIONS: dict[str, Any] = {
    "torch.mean": torch.mean, "torch.sum": torch.sum, "torch.max": torch.max, "torch.min": torch.min,
    "sum": sum, "max": max, "min": min,
}  # fmt: skip
_SHOWN = ("_progress_bar_metrics", "_logged_metrics", "_callback_metrics")
_META = (
    "fx", "name", "prog_bar", "logger", "on_step", "on_epoch", "enable_graph", "add_dataloader_idx", "dataloader_idx",
    "metric_attribute",
)  # fmt: skip
_TENSORS = ("value", "cumulated_batch_size", "_forward_cache", "_computed")


class Metrics:
    """The metrics of a trainer's epoch.

    Args:
        trainer: The trainer.
        package: The name of the package that the trainer is of.
    """

    def __init__(self, trainer: Any, package: str) -> None:
        self._trainer = trainer
        self._package = package

    def record(self) -> dict[str, Any]:
        """Returns them as plain values and tensors, which are not copied."""
        connector = self._trainer._logger_connector
        results = self._trainer.fit_loop.epoch_loop._results
        return {
            "epoch": {key: _recorded(metric) for key, metric in list(results.items())},
            "shown": {name: dict(getattr(connector, name)) for name in _SHOWN},
            "first": connector._first_loop_iter,
            "hook": connector._current_fx,
        }

    def restore(self, recorded: Mapping[str, Any]) -> None:
        """Puts them back. Those that are metrics of the module's own are there already, and are found there."""
        connector, strategy = self._trainer._logger_connector, self._trainer.strategy
        results = self._trainer.fit_loop.epoch_loop._results
        kinds = importlib.import_module(f"{self._package}.trainer.connectors.logger_connector.result")
        results.clear()
        for key, entry in recorded["epoch"].items():
            meta = kinds._Metadata(**entry["meta"], reduce_fx=_REDUCTIONS[entry["reduction"]])
            meta.sync = kinds._Sync(
                _should=entry["synchronized"], fn=strategy.reduce, rank_zero_only=entry["rank_zero_only"]
            )
            metric = kinds._ResultMetric(meta, entry["is_tensor"])
            if not entry["is_tensor"]:
                metric.value = _own_metric(self._trainer.lightning_module, entry["meta"]["metric_attribute"])
                if metric.value is None:
                    continue
            for name, value in entry["state"].items():
                setattr(metric, name, value)
            results[key] = metric
        for name in _SHOWN:
            setattr(connector, name, dict(recorded["shown"][name]))
        connector._first_loop_iter, connector._current_fx = recorded["first"], recorded["hook"]


def _recorded(metric: Any) -> dict[str, Any]:
    meta, state = metric.meta, vars(metric)
    tensors = {name: state[name] for name in _TENSORS if isinstance(state.get(name), torch.Tensor)}
    return {
        "meta": {name: getattr(meta, name) for name in _META},
        "reduction": next(name for name, function in _REDUCTIONS.items() if function is meta.reduce_fx),
        "synchronized": meta.sync.should,
        "rank_zero_only": meta.sync.rank_zero_only,
        "is_tensor": metric.is_tensor,
        "state": {**tensors, "has_reset": metric.has_reset, "_update_count": metric._update_count},
    }


def _own_metric(module: Any, path: str | None) -> Any:
    """Returns the module's own metric by the path that Lightning has noted."""
    for name in (path or "").split("."):
        module = getattr(module, name, None)
    return module
