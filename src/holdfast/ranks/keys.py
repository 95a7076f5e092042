"""The keys of the store that ranks meet at while they train."""


def call_key(number: int) -> str:
    """Returns where the coordinator calls for an agreement."""
    return f"call/{number}"


def offer_key(number: int, rank: int) -> str:
    """Returns where a rank puts its offer."""
    return f"offer/{number}/{rank}"


def decision_key(number: int) -> str:
    """Returns where the decision of an agreement is claimed: a key that is written once."""
    return f"decision/{number}"


def stage_key(number: int) -> str:
    """Returns where ranks learn which directory they write into, or that there is none."""
    return f"stage/{number}"


def difference_key(number: int, rank: int) -> str:
    """Returns where a rank puts what it holds otherwise than rank 0."""
    return f"difference/{number}/{rank}"


def settled_key(number: int) -> str:
    """Returns where ranks learn what is whose, or that nothing will be written."""
    return f"settled/{number}"


def record_key(number: int, rank: int) -> str:
    """Returns where a rank puts its record."""
    return f"record/{number}/{rank}"


def outcome_key(number: int) -> str:
    """Returns where ranks learn what became of a save."""
    return f"outcome/{number}"


def ended_key(rank: int) -> str:
    """Returns where a rank says that it knows of the end."""
    return f"ended/{rank}"


def beat_key(rank: int) -> str:
    """Returns where a rank puts its heartbeats."""
    return f"beat/{rank}"


def begun_key(rank: int) -> str:
    """Returns where a rank says that it has loaded what it resumes from."""
    return f"begun/{rank}"


def done_key(rank: int) -> str:
    """Returns where a rank says that it is done with its training."""
    return f"done/{rank}"
