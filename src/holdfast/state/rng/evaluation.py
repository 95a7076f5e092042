"""An evaluation that leaves no trace in the training."""

from collections.abc import Iterator
from contextlib import contextmanager

from holdfast.state.rng import state as rng_state


@contextmanager
def evaluation() -> Iterator[None]:
    """Isolates the random state of an evaluation, so that evaluating never changes the training.

        with holdfast.evaluation():
            accuracy = evaluate(model, validation_loader)

    What is drawn inside from the global generators of Python, numpy, torch and CUDA is undone when it is left, also by
    an exception. Generators of your own are yours.
    """
    recorded = rng_state.record()
    try:
        yield
    finally:
        recorded.restore()
