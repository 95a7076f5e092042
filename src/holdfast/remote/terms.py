"""The claim of a run: which run a place belongs to, and which start has it now.

A start claims the number after the greatest, with the one verb that decides among several. No clock, and nothing that
runs out: a machine that was thought lost and comes back writes under a smaller number, and is never the newest. A start
chooses first what it goes on from, since its claim says that. So it looks once more when it has the number, and chooses
again where anything is new, or its choice is being deleted. What was told to be mirrored before its claim it goes on
from, or from something newer; and what it goes on from is deleted by no start before it (`remote/retention.py`).
"""

import json
from dataclasses import asdict, dataclass
from itertools import islice
from typing import NamedTuple

from holdfast.errors import AbsentError, MirrorAccessError, MirrorTakenError
from holdfast.remote import keys
from holdfast.remote.listing import Listing, listing_of
from holdfast.remote.object_store import ObjectStore, read
from holdfast.store import names
from holdfast.store.manifest import strict_json
from holdfast.text import quoted

_MOST_BYTES = 64 << 10
# Of a place that has so much and is no run's, more need not be looked at.
_MOST_LOOKED_AT = 10_000


@dataclass(frozen=True)
class Claim:
    """One start of a run, as it says so in the mirror.

    Args:
        run: The identity of the run.
        token: The identity of the start, by which it knows its own claim again.
        host: Its host, for people to read.
        parent: The attempt that it goes on from; None where it begins anew.
        at: The time there, in seconds since the epoch. Nothing decides by it.
    """

    run: str
    token: str
    host: str
    parent: str | None
    at: float

    def encode(self) -> bytes:
        """Returns the bytes of its object."""
        return json.dumps(asdict(self), sort_keys=True).encode()


def owner_of(store: ObjectStore) -> str | None:
    """Returns the identity of the run that a place belongs to; None where it belongs to none yet.

    Raises:
        MirrorAccessError: What has that name there is nothing that Holdfast wrote.
    """
    try:
        text = read(store, keys.OWNER, _MOST_BYTES).decode("ascii", "replace").strip()
    except AbsentError:
        return None
    except ValueError as error:
        raise _no_owner(store, str(error)) from error
    if not names.is_token(text):
        raise _no_owner(store, f"it says {quoted(text)}")
    return text


def require_nobodys(store: ObjectStore, run: str) -> None:
    """Checks that a place of no run is not one whose owner's name was lost: a run would begin anew beside another.

    What has that name is the oldest object there, and the first that a rule of a bucket deletes by its age.

    Raises:
        MirrorAccessError: There are checkpoints of another run.
    """
    try:
        items = list(islice(store.listed(), _MOST_LOOKED_AT))
    except MirrorAccessError:  # a directory has others' things in it that nobody may look at; ours are beside them
        return
    for file in map(keys.file_of, (item.key for item in items)):
        if file is not None and file[0].run != run:
            raise MirrorAccessError(
                f"{store.url} has checkpoints of run {file[0].run}, and no object {keys.OWNER} that says so: it was"
                " deleted",
                hint="does a rule of the bucket delete what is old? Switch it off there, and put an object"
                f" {keys.OWNER} there that says {file[0].run}; or give a prefix of its own",
            )


def take_place(store: ObjectStore, run: str) -> None:
    """Makes a place the run's own, where it belongs to none.

    Raises:
        MirrorTakenError: It belongs to another.
    """
    if not store.put_absent(keys.OWNER, run.encode() + b"\n") and (owner := owner_of(store)) != run:
        raise MirrorTakenError(
            f"{store.url} has the checkpoints of run {owner}, and this is run {run}",
            hint="give each run a mirror of its own; to go on with that run, start in an empty output_dir with"
            " resume_from_checkpoint: auto",
        )


class Claimed(NamedTuple):
    """The outcome of a claim.

    Args:
        term: The number of the term; None where another start was quicker.
        is_current: True where what the start has seen is all that there was to be seen when it had claimed its term.
            Else it is to look again, choose again, and claim once more.
    """

    term: int | None
    is_current: bool


def claim(store: ObjectStore, claim: Claim, seen: Listing, least: int = 1) -> Claimed:
    """Claims a run for a start: the number after the greatest.

    Args:
        store: The place.
        claim: The start.
        seen: The listing by which it has chosen what it goes on from.
        least: The least number that it may be: the start's own disk may have later ones, of another mirror.

    Raises:
        MirrorAccessError: No number is left.
    """
    number = max(seen.newest_term + 1, least)
    if number >= names.NUMBERS_END:
        raise MirrorAccessError(
            f"{store.url} has the term {seen.newest_term:,}, and no greater one is left: somebody made it up"
        )
    if not store.put_absent(keys.term(claim.run, number), claim.encode()):
        return Claimed(None, is_current=False)
    now = listing_of(store, claim.run)
    is_newest = now.terms == (*seen.terms, number)
    published_since = {each.key for each in now.published} - {each.key for each in seen.published}
    deleted_since = now.doomed - seen.doomed
    return Claimed(number, is_newest and not published_since and claim.parent not in deleted_since)


def claim_of(store: ObjectStore, run: str, number: int) -> Claim | None:
    """Reads one term; None where nothing of that number is to be understood."""
    try:
        content = strict_json(read(store, keys.term(run, number), _MOST_BYTES))
        claim = Claim(**content) if isinstance(content, dict) else None
    except (AbsentError, ValueError, TypeError):
        return None
    if claim is None or claim.run != run or not isinstance(claim.host, str):
        return None
    return claim if claim.parent is None or names.is_token(claim.parent) else None


def taken_over(store: ObjectStore, run: str, newest: int, claimed: int) -> MirrorTakenError:
    """Returns the error for a start that does not have the run any more.

    Args:
        store: The place.
        run: The identity of the run.
        newest: The newest term there.
        claimed: The term that the start has claimed.
    """
    later = claim_of(store, run, newest)
    by = f"a later start on {quoted(later.host)}" if later is not None else "a later start"
    return MirrorTakenError(f"{store.url} was taken over by {by} (term {newest}, and this is term {claimed})")


def _no_owner(store: ObjectStore, problem: str) -> MirrorAccessError:
    return MirrorAccessError(
        f"{store.url} has an object {keys.OWNER} that is none of Holdfast's: {problem}",
        hint="give a prefix of its own",
    )
