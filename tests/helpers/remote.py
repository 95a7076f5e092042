"""What tests of a mirror share: the starts of a run there."""

import uuid

from helpers.support import RUN
from holdfast.remote import terms
from holdfast.remote.listing import listing_of
from holdfast.remote.object_store import ObjectStore
from holdfast.remote.terms import Claim


def a_claim(parent: str | None = None, host: str = "a host") -> Claim:
    """The claim of a start, like no other."""
    return Claim(RUN, uuid.uuid4().hex, host, parent, 1.0)


def start(store: ObjectStore, parent: str | None = None, host: str = "a host") -> int:
    """Claims the run for a start with which nothing else goes on; gives its term."""
    claimed = terms.claim(store, a_claim(parent, host), listing_of(store, RUN))
    assert claimed.term is not None and claimed.is_current
    return claimed.term
