"""`holdfast unpin CHECKPOINT...`: let retention have these again."""

from holdfast.cli.output import as_json, tell
from holdfast.cli.pin import Checkpoints, Json, in_their_runs
from holdfast.store import pins


def unpin(checkpoints: Checkpoints, json: Json = False) -> None:
    """Take pins away: the checkpoints are kept or deleted as the others are."""
    meant = in_their_runs(checkpoints)
    for path, attempt, directory in meant:
        had = pins.unpin(directory.control, attempt)
        if not json:
            tell(f"{path.name}: " + ("no longer pinned" if had else "was not pinned"))
    if json:
        as_json({"checkpoints": [{"path": str(path), "pinned": False} for path, *_ in meant]})
