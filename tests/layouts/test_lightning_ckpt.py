"""A Lightning training's checkpoint, exported, in the hands of plain Lightning."""

from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("lightning", reason="Lightning is not installed")

from helpers.small_lightning import Ask, Fit, TwoOptimizers, callbacks, fit, weights
from holdfast.layouts.export import export

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning")


@pytest.mark.parametrize(
    ("kind", "settings"),
    [
        (Fit, {"callbacks": lambda: [callbacks.EarlyStopping("train_epoch", patience=5)]}),
        (TwoOptimizers, {}),
        (Fit, {"callbacks": lambda: [callbacks.StochasticWeightAveraging(swa_lrs=5e-3, swa_epoch_start=1)]}),
    ],
    ids=["with a schedule", "with two optimizers", "with SWA"],
)
def test_plain_lightning_loads_what_is_exported_and_trains_on(
    kind: type[Fit], settings: dict[str, Any], tmp_path: Path
) -> None:
    def run(out: str, module: Fit, **how: Any) -> Any:
        own = {key: make() for key, make in settings.items()}
        return fit(tmp_path / out, module, max_epochs=3, **own, **how)

    run("out", kind(width=9, ask=Ask(9)))
    checkpoint = next((tmp_path / "out").glob("checkpoint-*"))
    written = export(checkpoint, tmp_path / "exported")
    assert sorted(path.name for path in written) == ["model.ckpt", "model.safetensors"]
    path = tmp_path / "exported" / "model.ckpt"
    content = torch.load(path, weights_only=True)
    assert content["hyper_parameters"]["width"] == 9
    loaded = kind.load_from_checkpoint(path)
    assert loaded.net[0].out_features == 9
    # The same optimizers and schedules from there on; the batches are others, as Lightning has it.
    plain = run("plain", other := kind(width=9), plain=True, resume=str(path))
    assert plain.global_step == (42 if kind is TwoOptimizers else 21)
    assert weights(other) != weights(loaded)
    steps = [state["state"][0]["step"].item() for state in content["optimizer_states"] if "step" in state["state"][0]]
    assert steps == [content["global_step"] // len(content["optimizer_states"])]  # of Adam; SGD counts none


def test_a_checkpoint_at_an_epochs_end_goes_on_in_plain_lightning_as_in_ours(tmp_path: Path) -> None:
    class Calm(Fit):
        """Draws nothing, and its data comes in order."""

        def __init__(self, **arguments: Any) -> None:
            super().__init__(**arguments)
            self.net[1] = torch.nn.Identity()

        def on_train_epoch_start(self) -> None:
            """Draws nothing."""

    points: Any = [(torch.full((4,), i / 7), torch.tensor(i / 3)) for i in range(12)]
    data: Any = torch.utils.data.DataLoader(points, batch_size=4)
    fit(tmp_path / "out", Calm(), data, max_epochs=1, ours={"save_steps": 3}, limit_val_batches=0)
    export(tmp_path / "out" / "checkpoint-3", tmp_path / "exported")
    settings: dict[str, Any] = {"max_epochs": 3, "limit_val_batches": 0}
    fit(tmp_path / "whole", whole := Calm(), data, plain=True, **settings)
    fit(tmp_path / "plain", plain := Calm(), data, plain=True, resume=str(tmp_path / "exported/model.ckpt"), **settings)
    assert weights(plain) == weights(whole)
