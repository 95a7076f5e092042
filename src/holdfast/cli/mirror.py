"""`holdfast mirror check URL`: try a mirror before a training needs it."""

from typing import Annotated

import typer

from holdfast.cli.output import as_json, size, tell
from holdfast.cli.there import Endpoint, Region, require_address
from holdfast.mirror.run_there import split
from holdfast.remote import terms
from holdfast.remote.catalog import RemoteCatalog
from holdfast.remote.listing import listing_of
from holdfast.remote.location import location_of
from holdfast.remote.opening import open_store, require_usable
from holdfast.text import shown

_RULES = {
    "s3": "a lifecycle rule with AbortIncompleteMultipartUpload, DaysAfterInitiation: 7",
    "gs": "a lifecycle rule with the action AbortIncompleteMultipartUpload and age: 7",
    "az": "nothing: Azure removes blocks that were never committed after seven days",
    "file": "nothing: the next writer removes what one has left",
}


def check(
    url: Annotated[str, typer.Argument(metavar="URL", help="The mirror, as mirror: has it.")],
    endpoint: Endpoint = None,
    region: Region = None,
    json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Try all that a training asks of a mirror, and tell whose it is and which lifecycle rule it needs."""
    require_address(url)
    place, _ = split(url)
    store = open_store(place, endpoint, region)
    require_usable(store)
    rule = _RULES[location_of(place).scheme]
    run = terms.owner_of(store)
    listing = None if run is None else listing_of(store, run)
    entries = [] if listing is None else [each.entry for each in RemoteCatalog(store).entries(listing)]
    whole = [entry for entry in entries if entry.manifest is not None]
    stored = sum(entry.manifest.size for entry in whole if entry.manifest is not None)
    newest_term = 0 if listing is None else listing.newest_term
    claim = None if run is None else terms.claim_of(store, run, newest_term)
    if json:
        facts = {"run": run, "term": newest_term, "host": None if claim is None else claim.host}
        contents = {"checkpoints": len(entries), "bytes": stored, "newest_step": whole[0].step if whole else None}
        as_json({"url": store.url, "usable": True, **facts, **contents, "lifecycle_rule": rule})
        return
    tell(f"{store.url} can be used: objects are put, put where none is, read, listed and deleted")
    if run is None:
        tell("it belongs to no run yet: the first that is started with it takes it")
    else:
        last = f", last started on {shown(claim.host)} (term {newest_term})" if claim is not None else ""
        tell(f"it belongs to run {run}{last}")
        newest = f", the newest of step {whole[0].step}" if whole else ""
        tell(f"it has {len(entries)} checkpoints, {size(stored)}{newest}")
    tell(f"for unfinished uploads it needs {rule}")
