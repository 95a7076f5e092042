"""A process that has just begun, goes on from a checkpoint, and makes one step. `first_step` launches it.

Prints seconds by what they were spent on, and the loss of the step. Nothing is imported before its turn.
"""

import json
import sys
import time
from importlib import import_module
from pathlib import Path


class Clock:
    """Parts of the time since a moment, one after the other.

    Args:
        begun: The moment. Monotonic clocks of processes agree.
    """

    def __init__(self, begun: float) -> None:
        self._last = begun
        self.seconds: dict[str, float] = {}
        """Seconds by part."""

    def end(self, part: str) -> None:
        """What was done since the last end was this part."""
        now = time.perf_counter()
        self.seconds[part] = now - self._last
        self._last = now


def main() -> None:
    """Resumes and makes a step."""
    begun, way, path, device, *shape = sys.argv[1:]
    clock = Clock(float(begun))
    import torch

    clock.end("interpreter and torch")
    if way == "native":
        from holdfast import Checkpointer

        clock.end("holdfast")
    import_module("transformers.models.gpt2.modeling_gpt2")
    clock.end("transformers")
    from benchmarks import states

    layers, width, words = map(int, shape)
    # Of another seed: a checkpoint that does not come back is seen in the loss.
    state = states.fresh_gpt2(device, layers, width, words, seed=1)
    state.settle()
    clock.end("model and optimizer")
    if way == "native":
        with Checkpointer(
            Path(path).parent,
            say=_silent,
            model=state.model,
            optimizer=state.optimizer,
            scheduler=state.scheduler,
        ) as checkpointer:
            clock.end("opening the run")
            checkpointer.resume()
            state.settle()
            clock.end("reading")
            loss = state.forward_backward()
            state.update()
            checkpointer.step()
            state.settle()
            clock.end("first step")
    else:
        found = torch.load(path, weights_only=True)
        state.model.load_state_dict(found["model"])
        state.optimizer.load_state_dict(found["optimizer"])
        state.settle()
        clock.end("reading")
        loss = state.forward_backward()
        state.update()
        state.settle()
        clock.end("first step")
    print(json.dumps({"seconds": clock.seconds, "loss": float(loss)}))


def _silent(text: str) -> None:
    pass


if __name__ == "__main__":
    main()
