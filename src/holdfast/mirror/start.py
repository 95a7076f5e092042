"""The process through which a start looks at its mirror, claims its run there, and pulls: it alone opens the store.

It reads requests from its input, one JSON object a line, and writes for each any number of lines with `progress`, and
one with `done` or `error`. When its input ends, the training is gone, and it ends too.
"""

import json
import os
import queue
import sys
import threading
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

from holdfast.errors import HoldfastError
from holdfast.mirror.seen import Remote, Seen
from holdfast.remote import terms
from holdfast.remote.catalog import RemoteCatalog, RemoteEntry
from holdfast.remote.download import download
from holdfast.remote.keys import CheckpointKey
from holdfast.remote.listing import Listing, listing_of
from holdfast.remote.object_store import ObjectStore
from holdfast.remote.opening import open_store, require_usable
from holdfast.store.folder import Folder
from holdfast.store.retention import has_label, slots_held

_GONE = 1
# More lines than that are no progress to anybody.
_TELL_SECONDS = 0.25


def main() -> None:
    """Serves one start, until its input ends."""
    output = os.fdopen(os.dup(sys.stdout.fileno()), "w", encoding="utf-8")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())  # whatever a library prints is no answer
    requests: queue.SimpleQueue[str] = queue.SimpleQueue()
    threading.Thread(target=_read, args=(requests,), daemon=True).start()
    calls = StartCalls(lambda size: _write(output, progress=size))
    while True:
        request = json.loads(requests.get())
        try:
            done = getattr(calls, request.pop("verb"))(**request)
        except (HoldfastError, OSError) as error:
            _write(output, error=_in_words(error))
        except Exception as error:  # noqa: BLE001 - whoever asked hears of it, and it is shown in full
            traceback.print_exc()
            _write(output, error={"kind": "MirrorError", "message": f"{type(error).__name__}: {error}"})
        else:
            _write(output, done=done)


class StartCalls:
    """The calls of one start.

    Args:
        progress: Hears of the bytes that have arrived.
    """

    def __init__(self, progress: Callable[[int], None]) -> None:
        self._progress = progress
        self._store: ObjectStore | None = None
        self._catalog: RemoteCatalog
        self._root: Folder | None = None
        self._listing: Listing | None = None
        self._arrived = 0
        self._told_at = 0.0

    def open(self, url: str, endpoint: str | None, region: str | None, fd: int, path: str) -> None:
        """Opens the store and tries it, and takes the run directory, which this process was given open."""
        self._root = Folder(fd, Path(path))
        self._store = open_store(url, endpoint, region)
        self._catalog = RemoteCatalog(self._store)
        require_usable(self._store)

    def look(self, run: str, token: str) -> dict[str, Any]:
        """Returns what a start sees, as `Seen.as_json` has it: of the run that the place belongs to, or of its own."""
        store = self._opened()
        owner = terms.owner_of(store)
        if owner is None:
            terms.require_nobodys(store, run)
        run = owner or run
        self._listing = listing = listing_of(store, run)
        newest, claim = 0, None
        for number in sorted({*listing.terms, *(each.key.term for each in listing.checkpoints)}, reverse=True):
            claim = terms.claim_of(store, run, number)
            if claim is None or claim.token != token:  # its own claims stand in nobody's way
                newest = number
                break
        entries = self._catalog.entries(listing)
        slots = slots_held([each.entry for each in entries])
        published = [_described(each, is_named=has_label(each.entry) or each.entry.path in slots) for each in entries]
        seen = Seen(
            owner=owner,
            newest=newest,
            host=claim.host if claim is not None and newest else "",
            parent=claim.parent if claim is not None and newest else None,
            is_claim_known=claim is not None and newest > 0,
            published=tuple(published),
            pins=tuple(sorted(listing.pins)),
            asked=tuple(sorted(listing.asked)),
        )
        return seen.as_json()

    def claim(self, run: str, token: str, host: str, parent: str | None, least: int) -> dict[str, Any]:
        """Makes the place the run's own, and claims the run by what was seen last; returns a `Claimed`."""
        store = self._opened()
        assert self._listing is not None
        terms.take_place(store, run)
        claim = terms.Claim(run, token, host, parent, time.time())
        return terms.claim(store, claim, self._listing, least)._asdict()

    def pull(self, key: list[Any]) -> str:
        """Brings a checkpoint into the run directory; returns its name there."""
        assert self._root is not None
        self._arrived = 0
        return download(self._opened(), CheckpointKey(*key), self._root, self._arrive).name

    def _arrive(self, size: int) -> None:
        self._arrived += size
        if (now := time.monotonic()) - self._told_at >= _TELL_SECONDS:
            self._told_at = now
            self._progress(self._arrived)

    def _opened(self) -> ObjectStore:
        assert self._store is not None
        return self._store


def _described(listed: RemoteEntry, *, is_named: bool) -> Remote:
    manifest = listed.entry.manifest
    if manifest is None:
        return Remote(listed.key, problem=listed.entry.problem or "damaged")
    return Remote(listed.key, manifest.step, manifest.size, manifest.layout, is_named=is_named)


def _read(requests: "queue.SimpleQueue[str]") -> None:
    for line in sys.stdin:
        requests.put(line)
    os._exit(_GONE)  # in the middle of whatever it is: what is half-done here is nothing


def _write(output: Any, **content: Any) -> None:
    output.write(json.dumps(content) + "\n")
    output.flush()


def _in_words(error: HoldfastError | OSError) -> dict[str, Any]:
    if isinstance(error, OSError):
        return {"kind": "OSError", "message": str(error)}
    problems = getattr(error, "problems", [])
    return {"kind": type(error).__name__, "message": str(error), "hint": error.hint, "problems": list(problems)}
