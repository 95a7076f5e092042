"""A Trainer's position in its data: the epoch, and how much of it was taken, where the number of steps does not tell.

A Trainer divides its steps by those of an epoch. That is wrong in a second pass through a stream, after an epoch that
was cut short, and once batches have had another size. The checkpoint's boundary says the epoch and the batches of it
(`docs/format.md`). An epoch that was begun with batches of another size, or by another number of processes, is gone on
with in its own order: the loader's sampler gives what is left of it, behind as many places as the Trainer skips.
Read against transformers 5.23.
"""

import itertools
import logging
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import transformers
from transformers import Trainer

from holdfast.capture import boundary
from holdfast.engine.engine import Engine
from holdfast.errors import UnsupportedError
from holdfast.integrations.trainer.contract import SEEN
from holdfast.integrations.trainer.counters import reading_boundary
from holdfast.integrations.trainer.data import why_not_watched
from holdfast.integrations.trainer.position import TrainerPosition, decode
from holdfast.state.data import loader, order
from holdfast.state.data.inner import InnerState
from holdfast.state.data.order import DRAWN, Order
from holdfast.state.data.partition import Partition, partition_of
from holdfast.state.data.skip import SkippingLoader
from holdfast.state.rng import state as rng_state
from holdfast.state.rng.state import RngRecord

_REPLACED = ("set_initial_training_values", "_init_training_state", "_run_epoch")


class _Values(NamedTuple):
    """The output of a Trainer's `set_initial_training_values`."""

    epochs: int
    updates: int
    examples: int
    samples: int
    total_batch: int
    batches: int
    max_steps: int


class _Rest(NamedTuple):
    """The rest of the first epoch, as the Trainer goes through it."""

    epoch: int
    skipped: int
    """The batches that the Trainer skips in it, of which `virtual` stand for what was passed in batches of old."""
    virtual: int
    batches: int
    """Those of the epoch, the skipped ones among them."""
    updates: int
    places: Sequence[int] | None
    """The places that the sampler gives; None where its own are right."""


class EpochAccounting:
    """Keeps a Trainer's position in its data, and has a resumed one go on from it, as long as the context is open.

    Args:
        trainer: The trainer, before `train`.
        engine: An open engine.
    """

    def __init__(self, trainer: Trainer, engine: Engine) -> None:
        self._trainer = trainer
        self._engine = engine
        self._own = [getattr(trainer, name) for name in _REPLACED]
        self._loader: Any = None
        self._values: _Values | None = None
        self._rest: _Rest | None = None
        self._settings: dict[str, int] = {}
        self._order: Order | None = None
        self._order_of_rest: Order | None = None
        self._shift = 0
        self._epoch = 0
        self._first_step = 0
        self._begin_state: RngRecord | None = None
        self.inner = InnerState(None)
        """The generators and states inside the loader."""
        self._inner_begin: Mapping[str, Any] = {}
        self._then: TrainerPosition | None = None
        self.goes_on = True
        """False where the loader goes through the epoch otherwise than it did: nothing that it drew is drawn again."""

    @property
    def is_resumed(self) -> bool:
        """True where the data goes on from a checkpoint that says where it was."""
        return self._rest is not None

    def __enter__(self) -> "EpochAccounting":
        for name, replacement in zip(_REPLACED, (self._reckon, self._begin, self._run_epoch), strict=True):
            setattr(self._trainer, name, replacement)
        return self

    def __exit__(self, *exception: object) -> None:
        for name in _REPLACED:
            delattr(self._trainer, name)

    def record(self) -> TrainerPosition | None:
        """Returns the position, as of now."""
        if self._values is None:
            return None
        accumulate, rest = self._trainer.args.gradient_accumulation_steps, self._rest
        in_rest = rest is not None and rest.epoch == self._epoch
        batches = (self._trainer.state.global_step - self._first_step) * accumulate
        known = self._order_of_rest if in_rest else self._order
        size = loader.batches(self._loader)
        if in_rest and rest is not None:
            size = rest.batches - rest.virtual
        epoch = self._epoch
        if size is not None and batches >= size:
            epoch, batches, known = epoch + 1, 0, self._order
        begin = self._begin_state if epoch == self._epoch and batches else None
        position = TrainerPosition(epoch, batches, accumulate, self._shift, known, self._settings, begin)
        if self.inner:
            position = position._replace(inner=self.inner.record(), inner_begin=self._inner_begin)
        return position

    def end_epoch(self) -> None:
        """Notes that nothing is left of the epoch: all that belongs to its end is done.

        A resume that has still to end an epoch does so when it has begun the next, of which no step is taken then.
        """
        if self._first_step != self._trainer.state.global_step:
            self._epoch += 1
            self._first_step = self._trainer.state.global_step

    def is_beyond_division(self, position: TrainerPosition) -> bool:
        """Tells if a Trainer that divides the steps by those of an epoch goes on with something else."""
        values, step = self._values, self._trainer.state.global_step
        if values is None:
            return False
        passed = position.order.passed if position.order is not None else 0
        plain = step // values.updates * values.updates + position.batches // position.accumulate
        return bool(
            position.inner or passed or position.shift or step // values.updates != position.epoch or plain != step
        )

    def _reckon(self, args: Any, dataloader: Any) -> tuple[Any, ...]:
        """Replaces what a Trainer reckons before it begins: how many epochs, and steps, there are."""
        own: tuple[Any, ...] = tuple(self._own[0](args, dataloader))
        if len(own) != len(_Values._fields):
            raise UnsupportedError(
                f"transformers {transformers.__version__} reckons {len(own)} numbers before a training, and"
                f" {len(_Values._fields)} are known",
                hint=f"Holdfast was run with transformers {SEEN['transformers']}",
            )
        values = _Values(*own)
        self._loader, self._values, self._rest, self._shift = dataloader, values, None, 0
        self._order = self._order_of_rest = order.order_of(dataloader)
        self._settings = _settings(dataloader, self._engine.world_size)
        self._epoch = self._first_step = 0
        self._begin_state = self._then = None
        # accelerate, which a Trainer has prepare its own loader, shuffles by a seed and the number of the epoch.
        # Another sampler, as TRL's that repeats its prompts, draws from a generator of its own, epoch after epoch.
        is_seeded = loader.is_prepared(dataloader) and self._order is not None
        self.inner = InnerState(dataloader, with_known=not is_seeded)
        self.goes_on = True
        chosen = self._engine.origin.chosen
        if chosen is None or chosen.manifest is None or args.ignore_data_skip:
            return values
        entry = (boundary.of_rank(chosen.manifest.boundary, self._engine.rank) or chosen.manifest.boundary).get("data")
        if entry is None:
            return values
        with reading_boundary(chosen.path):
            then = decode(entry)
        self._begin_state, self._then = then.begin, then
        for line in self.inner.differences(then.inner):
            self._engine.log.announce(line, logging.WARNING)
        self._values = self._resumed(then, chosen.manifest.step, values)
        return self._values

    def _begin(self, *arguments: Any) -> tuple[int, int]:
        """Replaces what a Trainer divides: the epoch of a resume, and the batches to skip in it."""
        own: tuple[int, int] = self._own[1](*arguments)
        if (rest := self._rest) is not None:
            args = self._trainer.args
            self._trainer.state.train_batch_size = getattr(self._trainer, "_train_batch_size", args.train_batch_size)
            own = rest.epoch, rest.skipped
        self._note(own[0], own[1])
        return own

    def _run_epoch(self, **arguments: Any) -> None:
        """Replaces a pass over the data: the first of a resume goes through what is left."""
        epoch = arguments["epoch"]
        rest = self._rest if self._rest is not None and self._rest.epoch == epoch else None
        skipped = arguments["steps_trained_in_current_epoch"] if epoch == arguments["epochs_trained"] else 0
        checkpoint = arguments["resume_from_checkpoint"]
        if checkpoint is not None and not skipped and 0 < epoch <= arguments["epochs_trained"] + 1:
            self._be_used()
        self._note(epoch, skipped)
        if skipped and self._then is not None:
            self._inner_begin = self._then.inner_begin
            self.inner.begin(self._inner_begin)
        elif self.inner:
            if self._then is not None:
                self.inner.begin(self._then.inner)
                self._then = self._then._replace(inner={})
            self._inner_begin = self.inner.record()
        if skipped:
            if self._begin_state is not None:
                self._begin_state.restore()
        elif why_not_watched(loader.base(self._loader)):
            if epoch == arguments["epochs_trained"]:
                self._trainer._load_rng_state(checkpoint)
            self._begin_state = rng_state.record()
        if rest is None:
            self._own[2](**arguments)
            return
        arguments.update(steps_in_epoch=rest.batches, num_update_steps_per_epoch=rest.updates)
        if rest.places is None:
            self._own[2](**arguments)
            return
        batches = loader.batch_sampler(self._loader)
        sampler, batches.sampler = batches.sampler, _Places(rest.places)
        try:
            self._own[2](**arguments)
        finally:
            batches.sampler = sampler

    @property
    def inner_ahead(self) -> Mapping[str, Any]:
        """The states inside the loader from which a resume fetches the batch that was ahead."""
        return {} if self._then is None else self._then.inner_ahead

    def arrive(self) -> None:
        """Puts what is inside the loader where it was at the boundary that training goes on from."""
        if self._then is not None:
            lines = self.inner.arrive(self._then.inner, made_again=self.goes_on)
            for line in lines:
                self._engine.log.announce(line, logging.WARNING)
            self._then = self._then._replace(inner={})

    def _note(self, epoch: int, skipped: int) -> None:
        """Notes that the Trainer is in an epoch of which it has skipped some batches."""
        virtual = self._rest.virtual if self._rest is not None and self._rest.epoch == epoch else 0
        self._epoch = epoch
        updates = (skipped - virtual) // self._trainer.args.gradient_accumulation_steps
        self._first_step = self._trainer.state.global_step - updates

    def _be_used(self) -> None:
        """Has the loader draw as one that has been through an epoch: no seed for workers that it would have kept."""
        own = loader.base(self._loader)
        if getattr(own, "_initial_iter_for_state_dict", False):
            # torchdata's has an iterator already, since accelerate asked it for its state, and would draw no seed.
            own._initial_iter_for_state_dict = False
        if loader.is_plain(own) and own.persistent_workers and own._iterator is None:
            random = rng_state.record(loader.generators(own))
            SkippingLoader(own).start_workers()
            random.restore(loader.generators(own))

    def _resumed(self, then: TrainerPosition, step: int, values: _Values) -> _Values:
        """Finds the place where a checkpoint left the data, and reckons how long the training is from there."""
        accumulate, now = self._trainer.args.gradient_accumulation_steps, self._settings
        same = {name: then.loader.get(name) == now.get(name) for name in ("batch_size", "processes", "samples")}
        unchanged_order = then.order is None or then.order.passed or _maker(then.order) == _maker(self._order)
        at_beginning = not then.batches and not (then.order is not None and then.order.passed)
        self._shift = then.shift if then.shift and all(same.values()) else 0
        if not same["samples"]:
            self._rest = self._whole(then.epoch, values)
            anew = "" if at_beginning else f": epoch {then.epoch} begins anew"
            self._say(
                f"the data set has {now.get('samples', 0):,} samples and had {then.loader.get('samples', 0):,}{anew}"
            )
            self.goes_on &= at_beginning
        elif at_beginning:
            self._rest = self._whole(then.epoch, values)
        elif same["batch_size"] and same["processes"] and unchanged_order and then.accumulate == accumulate:
            self._rest = self._unchanged(then, values)
        else:
            self._rest = self._shared_out(then, values)
            self.goes_on = False
        unchanged = all(same.values()) and then.accumulate == accumulate
        return self._lengthened(values, step, unchanged=unchanged)

    def _lengthened(self, values: _Values, step: int, *, unchanged: bool) -> _Values:
        """Returns the values with the end where it is now: what is left of the epoch, and the epochs after it."""
        args, rest = self._trainer.args, self._rest
        assert rest is not None
        accumulate = args.gradient_accumulation_steps
        done = rest.skipped // accumulate
        if args.max_steps > 0:
            left = max(0, values.max_steps - step - (rest.updates - done))
            epochs = max(values.epochs, rest.epoch + 1 + -(-left // values.updates))
            return values._replace(epochs=epochs)
        if not unchanged:
            whole = args.num_train_epochs - rest.epoch
            of_this = rest.updates - done if whole >= 1 else max(0, math.ceil(whole * rest.updates) - done)
            end = step + of_this + max(0, math.ceil((whole - 1) * values.updates))
            self._shift = end - values.max_steps
        return values._replace(max_steps=values.max_steps + self._shift)

    def _whole(self, epoch: int, values: _Values) -> _Rest:
        return _Rest(epoch, 0, 0, values.batches, values.updates, None)

    def _unchanged(self, then: TrainerPosition, values: _Values) -> _Rest:
        if then.order is None or not then.order.passed:
            return _Rest(then.epoch, then.batches, 0, values.batches, values.updates, None)
        partition = partition_of(self._loader)
        if partition is None or self._order is None:
            raise self._cannot_share_out(then)
        return self._after(then.epoch, then.order, then.batches, partition)

    def _shared_out(self, then: TrainerPosition, values: _Values) -> _Rest:
        """Has the rest of an epoch go on in batches of another size, or in another number of processes."""
        partition, known = partition_of(self._loader), then.order
        if not loader.can_skip(self._loader) and (skipped := self._of_a_stream(then)) is not None:
            return _Rest(then.epoch, skipped, 0, values.batches, values.updates, None)
        if known is None or known.kind == DRAWN or partition is None or known.samples != partition.samples:
            raise self._cannot_share_out(then)
        passed = known.taken(then.batches)
        left = known.samples - passed
        if not partition.batches(left):
            self._say(f"no batch was left of epoch {then.epoch} for batches of {partition.batch}")
            return self._whole(then.epoch + 1, values)
        self._say(_shared_out(then.epoch, left, known.samples, partition))
        known = known._replace(total=known.samples, passed=passed, processes=partition.processes, batch=partition.batch)
        return self._after(then.epoch, known, 0, partition)

    def _after(self, epoch: int, known: Order, consumed: int, partition: Partition) -> _Rest:
        """Returns the rest of an epoch of which some places were passed, and some batches taken since."""
        accumulate = self._trainer.args.gradient_accumulation_steps
        at_once = partition.batch * partition.processes
        virtual = known.passed // (at_once * accumulate) * accumulate
        places = known.known_places(epoch)
        before = list(itertools.islice(itertools.cycle(places), virtual * at_once))
        left = partition.batches(len(places) - known.passed)
        self._order_of_rest = known
        updates = virtual // accumulate + -(-left // accumulate)
        return _Rest(epoch, virtual + consumed, virtual, virtual + left, updates, before + places[known.passed :])

    def _of_a_stream(self, then: TrainerPosition) -> int | None:
        """Returns the batches of now that are as many samples as those of then; None where none are."""
        batch, processes = self._settings.get("batch_size"), self._settings["processes"]
        if not batch or then.loader.get("processes") != processes or self._settings.get("num_workers"):
            return None
        samples = then.batches * then.loader.get("batch_size", 0)
        batches, over = divmod(samples, batch)
        return None if over or batches % self._trainer.args.gradient_accumulation_steps else batches

    def _cannot_share_out(self, then: TrainerPosition) -> UnsupportedError:
        source = loader.sampler(self._loader) if loader.can_skip(self._loader) else self._loader.dataset
        size, processes = then.loader.get("batch_size", "?"), then.loader.get("processes", "?")
        return UnsupportedError(
            f"data: the checkpoint is in the middle of epoch {then.epoch}, in batches of {size} and {processes}"
            f" process{'es' * (processes != 1)}, accumulated {then.accumulate} times, and the order of a"
            f" {type(source).__name__} cannot be computed again for others",
            hint="resume with those, or from a checkpoint of an epoch's end; ignore_data_skip=True begins it anew",
        )

    def _say(self, line: str) -> None:
        self._engine.log.announce(f"data: {line}", logging.WARNING)


class _Places:
    """A sampler that gives these places."""

    def __init__(self, places: Sequence[int]) -> None:
        self._places = places

    def __iter__(self) -> Iterator[int]:
        return iter(self._places)

    def __len__(self) -> int:
        return len(self._places)


def _maker(known: Order | None) -> tuple[Any, ...] | None:
    return None if known is None else (known.kind, known.seed, known.generator)


def _settings(data: Any, processes: int) -> dict[str, int]:
    own = {name: value for name, value in loader.settings(data).items() if name in ("num_workers", "samples")}
    partition = partition_of(data)
    size = partition.batch if partition is not None else getattr(data, "batch_size", None)
    if size is None:
        size = getattr(loader.batch_sampler(data), "batch_size", None)
    return {**own, "processes": processes, **({"batch_size": size} if isinstance(size, int) else {})}


def _shared_out(epoch: int, left: int, samples: int, partition: Partition) -> str:
    line = f"the {left:,} of {samples:,} samples that are left of epoch {epoch} go on in their order"
    line += f", in batches of {partition.batch}"
    if partition.processes > 1:
        line += f" of {partition.processes} processes"
    if repeated := partition.repeated(left):
        line += f"; {repeated} come twice, so that all processes have as many"
    if cut_off := left - partition.covered(left):
        line += f"; {cut_off} are cut off, too few for a batch"
    return line
