"""Items 1 and 7: a checkpoint is bit-equal to the state at the call, and where a rule is left out that is seen."""

import shutil
from contextlib import nullcontext
from unittest import mock

from benchmarks.gpu import shadow
from benchmarks.gpu.bench import GB, MIB, Bench
from benchmarks.gpu.card import Card, training_stream
from benchmarks.gpu.shadow import Shadowed, Toy

_SAVES = 2
_MOST_SAVES = 40


def run(bench: Bench) -> None:
    """Saves one after the other, in each way to train."""
    card = Card(bench.device)
    size = bench.size(2 * GB, 8 * MIB)
    width = bench.size(2048, 256)
    saves = bench.size(_SAVES, 1)
    with shadow.card_of_paper(bench):
        for default in (True, False):
            for reads_loss in (False, True):
                toy = Toy.make(bench.device, size, width, fused=not bench.is_dry)
                with training_stream(card, default=default):
                    outcome = shadow.run(bench, "run", toy, saves, reads_loss=reads_loss)
                stream = "the default stream" if default else "another stream"
                name = f"1 bit-equal, {stream}{', .item() in every step' if reads_loss else ''}"
                bench.add(name, outcome.is_good, outcome.text(), saves=outcome.saved, capture=outcome.capture)
                del toy
    _see_the_mutant(bench, size, width)


def _see_the_mutant(bench: Bench, size: int, width: int) -> None:
    toy = Toy.make(bench.device, size, width, fused=not bench.is_dry)
    shadowed = Shadowed(toy, bench.folder / "mutant")
    outcome = shadowed.outcome
    noticed = False
    with shadow.card_of_paper(bench), _hold_that_does_nothing(bench), shadowed.opened():
        # The update races with the copies: it need not win the first time.
        while outcome.saved < _MOST_SAVES and not (outcome.wrong or outcome.failed or noticed):
            shadowed.reach(toy.advance())
            noticed = shadowed.ckpt._engine.run.status.now.capture != "live"
    shutil.rmtree(bench.folder / "mutant")
    how = f"{len(outcome.wrong)} wrong by the comparison, of {outcome.saved} saves"
    if noticed or outcome.failed:
        how += f"; the save itself has noticed: {outcome.capture} {' '.join(outcome.failed)}"
    seen = bool(outcome.wrong or outcome.failed or noticed)
    bench.add("7 a mutant (no update waits for the reads) is seen", seen, how[:300])


def _hold_that_does_nothing(bench: Bench) -> "mock._patch[object] | nullcontext[None]":
    if bench.is_dry:
        from helpers.paper import Paper

        return mock.patch.object(Paper, "hold", _nothing)
    from holdfast.devices.cuda import Cuda

    return mock.patch.object(Cuda, "hold", _nothing)


def _nothing(*arguments: object) -> None:
    pass
