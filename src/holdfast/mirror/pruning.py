"""`holdfast prune --mirror`: the rule of the command, for the checkpoints of the run in its mirror."""

from collections.abc import Iterator

from holdfast.errors import ConfigError, MirrorTakenError
from holdfast.mirror.address import Address, address_of
from holdfast.mirror.run_there import RunThere, look
from holdfast.remote import retention, terms
from holdfast.remote.keys import CheckpointKey
from holdfast.run.directory import RunDirectory
from holdfast.run.needed import identity_of, needed
from holdfast.store import catalog, pins
from holdfast.store import terms as local_terms
from holdfast.store.retention import RetentionPolicy, Verdict


class MirrorPruning:
    """One look at the mirror of a run directory, and the deletions that follow.

    Args:
        directory: The run directory, in which the run's newest term was claimed: another start's checkpoints are its.
        policy: The rules.
        endpoint: The server; None: as it is known here.
        region: The bucket's region; None: as it is known here.

    Raises:
        ConfigError: The run has had no mirror here.
        MirrorTakenError: It belongs to another run, or another start has the run.
        MirrorError: It cannot be looked at.
    """

    def __init__(
        self, directory: RunDirectory, policy: RetentionPolicy, endpoint: str | None, region: str | None
    ) -> None:
        entries = catalog.entries(directory.folder)
        run = identity_of(directory, entries)
        place = address_of(directory, run)
        if place is None:
            raise ConfigError([f"--mirror: the run in {directory.root} has had no mirror"], hint="leave --mirror out")
        self._place = Address(place.url, endpoint or place.endpoint, region or place.region)
        self._claimed = local_terms.last(local_terms.claimed(directory.control), run, place.url)
        self._policy = policy
        self._control = directory.control
        paths = needed(directory, entries)
        self._needed = {each.manifest.attempt for each in entries if each.path in paths and each.manifest is not None}
        self._asked = pins.asked_for(directory.control)
        self.there = self._look(run)

    def _look(self, run: str) -> RunThere:
        there = look(*self._place)
        if there.run != run:
            raise MirrorTakenError(f"{there.store.url} has the checkpoints of run {there.run}, and this is run {run}")
        retention.require_claim(there.store, run, self._claimed)
        return there

    def judge(self) -> list[tuple[CheckpointKey, Verdict]]:
        """Returns a verdict on each checkpoint that is there."""
        there = self.there
        claim = terms.claim_of(there.store, there.run, self._claimed) if self._claimed else None
        parents = {claim.parent} if claim is not None and claim.parent is not None else set()
        protected = {*self._needed, *parents, *there.catalog.references(there.checkpoints)}
        asked = self._asked | there.listing.asked
        pinned = there.listing.pins | pins.pinned(self._control)  # what is pinned here comes there with the next start
        return retention.judge(there.checkpoints, pinned, self._policy, asked, protected)

    def delete(self, agreed: set[str]) -> Iterator[str]:
        """Deletes what was agreed to and still may go, oldest first. Yields the attempts.

        Raises:
            MirrorError: The place does not answer, or another start has taken the run over; what is left can be
                deleted the next time.
        """
        self.there = there = self._look(self.there.run)

        def check() -> None:
            retention.require_claim(there.store, there.run, self._claimed)

        for key, verdict in reversed(self.judge()):
            may_go = verdict.kept is None and key.attempt in agreed
            if may_go and retention.delete(there.store, key, check):
                yield key.attempt
