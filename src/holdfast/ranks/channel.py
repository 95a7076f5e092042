"""The channel of ranks to each other, over the store that torch.distributed already runs.

Every thread talks through a client of its own: a wait stalls whoever else uses the same one (seen: 2.8 s).
"""

import itertools
import json
import queue
import socket
import threading
from collections.abc import Callable, Sequence
from contextlib import suppress
from datetime import timedelta
from typing import Any

from holdfast.errors import HoldfastError, RanksError
from holdfast.ranks.agreement import Claim, Decision, Get, Operation, Present, Put, Steps

# A wait that only the end of the training ends. The store must be given some number.
_FOR_EVER = timedelta(days=365)
_LOOK_SECONDS = 0.02
# What ranks compare comes within milliseconds, and gates are shut meanwhile.
_FIRST_LOOK_SECONDS = 0.001
# An agreement has ended, one way or the other, after this many times the limit of a silent rank.
_PATIENCE = 3.0
# A server that is there takes a connection in this time, the look-up of its name included.
_CONNECTED_SECONDS = 10.0

_trainings = itertools.count()

_Agreements = queue.SimpleQueue[tuple[Steps, queue.SimpleQueue[Decision | RanksError]]]


class Channel:
    """One training's place in the store, as one rank sees it.

    Args:
        store: The store of torch.distributed, or anything like it.
        rank: The rank of this process.
        size: The number of ranks.
        seconds: The time that a silent rank is waited for.
    """

    def __init__(self, store: Any, rank: int, size: int, seconds: float) -> None:
        from torch.distributed.distributed_c10d import PrefixStore

        self.rank = rank
        self.size = size
        self.seconds = seconds
        # Ranks make their trainings in the same order, so that the number tells the same one everywhere.
        self._store: Any = PrefixStore(f"holdfast/{next(_trainings)}", store)
        self._clients = threading.local()
        self._gone: RanksError | None = None
        self._agreements: _Agreements | None = None

    @property
    def others(self) -> range:
        """The ranks besides the coordinator, which is rank 0."""
        return range(1, self.size)

    def put(self, key: str, content: Any) -> None:
        """Puts something under a key.

        Raises:
            RanksError: The store is gone.
        """
        self._with_client(lambda client: client.set(key, json.dumps(content)), f"tell {key}")

    def get(self, key: str, seconds: float | None = None) -> Any:
        """Waits for what another rank puts under a key.

        Args:
            key: The key.
            seconds: The longest time to wait; None waits until the training ends.

        Raises:
            RanksError: The time is up, or the store is gone.
        """
        texts = self._wait((key,), seconds)
        if texts is None:
            raise RanksError(
                f"rank {self.rank} on {socket.gethostname()} waited {seconds:g} s for {key!r}, in vain",
                hint="the rank that should have told it has stopped or is cut off",
            )
        return json.loads(texts[0])

    def there(self, keys: Sequence[str]) -> list[str]:
        """Returns which of the keys are there, without waiting."""
        present: list[str] = self._with_client(lambda client: [key for key in keys if client.check([key])], "look")
        return present

    def all_there(self, keys: Sequence[str]) -> bool:
        """Tells whether all of the keys are there, without waiting."""
        return not keys or self._with_client(lambda client: bool(client.check(list(keys))), "look")

    def all(self, keys: Sequence[str]) -> list[Any]:
        """Returns what was put under keys that are all there."""
        if not keys:
            return []
        return [json.loads(text) for text in self._with_client(lambda client: client.multi_get(list(keys)), "read")]

    def wait_for_all(self, keys: Sequence[str], check: Callable[[], None]) -> list[Any]:
        """Waits for what several ranks put under keys.

        Args:
            keys: The keys.
            check: Called again and again; raises when there is nothing to wait for any more.
        """
        pause, seconds = threading.Event(), _FIRST_LOOK_SECONDS
        while not self.all_there(keys):
            check()
            pause.wait(seconds)
            seconds = min(2 * seconds, _LOOK_SECONDS)
        return self.all(keys)

    def forget(self, keys: Sequence[str]) -> None:
        """Deletes keys."""
        self._with_client(lambda client: [client.delete_key(key) for key in keys], "forget")

    def agree(self, steps: Steps) -> Decision:
        """Runs one side of an agreement.

        Raises:
            RanksError: The store is gone, or does not answer: a cut network holds a call for much longer than it was
                told to wait (seen), and training stands at its gate meanwhile.
        """
        ended: queue.SimpleQueue[Decision | RanksError] = queue.SimpleQueue()
        if self._agreements is None:
            self.prepare()
        assert self._agreements is not None
        self._agreements.put((steps, ended))
        try:
            outcome = ended.get(timeout=_PATIENCE * self.seconds)
        except queue.Empty:
            self._agreements = None  # its thread may hang for minutes
            raise RanksError(
                f"rank {self.rank}: the store of torch.distributed has not answered for {_PATIENCE * self.seconds:g} s",
                hint="is the network between the ranks cut?",
            ) from None
        if isinstance(outcome, RanksError):
            raise outcome
        return outcome

    def prepare(self) -> None:
        """Connects the thread that agrees, before anybody waits: to look a host's name up may take 5 s (seen)."""
        agreements: _Agreements = queue.SimpleQueue()
        self._agreements = agreements
        threading.Thread(target=self._keep_agreeing, args=(agreements,), name="holdfast-agree", daemon=True).start()

    def _keep_agreeing(self, agreements: "_Agreements") -> None:
        with suppress(RanksError):  # whoever agrees hears of it
            self.there(())
        while True:
            steps, ended = agreements.get()
            try:
                ended.put(self._run(steps))
            except RanksError as error:
                ended.put(error)

    def _run(self, steps: Steps) -> Decision:
        result: Any = None
        while True:
            try:
                operation = steps.send(result)
            except StopIteration as end:
                decision: Decision = end.value
                return decision
            result = self._do(operation)

    def _do(self, operation: Operation) -> Any:
        match operation:
            case Put(key, value):
                return self._with_client(lambda client: client.set(key, value), f"tell {key}")
            case Get(keys, seconds):
                return self._wait(keys, seconds)
            case Present(keys):
                return self.there(keys)
            case Claim(key, value):
                won = self._with_client(lambda client: client.compare_set(key, "", value), f"claim {key}")
                return won.decode()

    def _wait(self, keys: Sequence[str], seconds: float | None) -> list[str] | None:
        from torch.distributed import DistStoreError

        limit = _FOR_EVER if seconds is None else timedelta(seconds=seconds)

        def wait(client: Any) -> list[str] | None:
            try:
                client.wait(list(keys), limit)
            except DistStoreError:
                return None
            return [text.decode() for text in client.multi_get(list(keys))]

        texts: list[str] | None = self._with_client(wait, f"wait for {', '.join(keys[:3])}")
        return texts

    def _with_client(self, use: Callable[[Any], Any], what: str) -> Any:
        if self._gone is not None:  # to look for it again would take minutes, and torch itself does not
            raise self._gone
        client = getattr(self._clients, "own", None)
        try:
            if client is None:
                client = self._clients.own = self._connected()
            return use(client)
        except HoldfastError:
            raise
        except RuntimeError as error:  # torch's errors of networks and stores are of this kind
            self._gone = RanksError(
                f"rank {self.rank} on {socket.gethostname()} cannot {what}: the store of torch.distributed is gone"
                f" ({str(error).splitlines()[0] if str(error) else type(error).__name__})",
                hint="the rank or the agent that serves it has ended",
            )
            raise self._gone from error

    def _connected(self) -> Any:
        """Returns a client of this thread's own. torch would try for minutes to reach a server that is gone (seen)."""
        made: queue.SimpleQueue[Any] = queue.SimpleQueue()

        def connect() -> None:
            try:
                made.put(self._store.clone())
            except RuntimeError as error:
                made.put(error)

        threading.Thread(target=connect, name="holdfast-connect", daemon=True).start()
        try:
            client = made.get(timeout=_CONNECTED_SECONDS)
        except queue.Empty:
            raise RuntimeError(f"no connection within {_CONNECTED_SECONDS:g} s") from None
        if isinstance(client, RuntimeError):
            raise client
        return client


def joined(seconds: float) -> Channel | None:
    """Returns this process's place among the ranks; None where it trains alone.

    Args:
        seconds: The time that a silent rank is waited for.

    Raises:
        RanksError: The launcher started several processes, and torch.distributed does not run yet.
    """
    import torch.distributed as dist

    from holdfast.ranks.launcher import world_size

    if not (dist.is_available() and dist.is_initialized()):
        if world_size() > 1:
            raise RanksError(
                f"the launcher started {world_size()} processes, and torch.distributed is not initialized",
                hint="call torch.distributed.init_process_group() before the Checkpointer is made",
            )
        return None
    if dist.get_world_size() == 1:
        return None
    store = dist.distributed_c10d._get_default_store()
    return Channel(store, dist.get_rank(), dist.get_world_size(), seconds)
