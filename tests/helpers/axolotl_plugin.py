"""A plugin of Axolotl for the tests: what they need of its trainings, by Axolotl's own hooks."""

from typing import Any, ClassVar

import torch
from axolotl.integrations.base import BasePlugin
from transformers import TrainerCallback

from field.program import hold


class ForTests(BasePlugin):  # type: ignore[misc]
    """Seeds the adapters, which Axolotl does not, has training stand still, and keeps the trainer."""

    trainer: ClassVar[Any] = None

    def pre_model_load(self, cfg: Any) -> None:
        torch.manual_seed(5)

    def get_training_args(self, cfg: Any) -> dict[str, Any]:
        return {"use_cpu": True}  # or the second process is given a device cpu:1, onto which torch loads nothing

    def add_callbacks_post_trainer(self, cfg: Any, trainer: Any) -> list[Any]:
        return [Hold()]

    def post_trainer_create(self, cfg: Any, trainer: Any) -> None:
        ForTests.trainer = trainer


class Hold(TrainerCallback):  # type: ignore[misc]
    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        hold(state.global_step)
