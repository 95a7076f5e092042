"""The journal of a run: `events.jsonl`, one JSON object a line, only ever appended to."""

import json
import threading
import time
from pathlib import Path
from typing import Any

from holdfast.store import files


class Journal:
    """Writes events. It is a record for people and scripts; nothing of Holdfast decides by it."""

    def __init__(self, path: Path, run: str) -> None:
        self._path = path
        self._run = run
        self._lock = threading.Lock()

    def write(self, event: str, **details: Any) -> None:
        """Adds one event, with the time and the run."""
        line = json.dumps({"at": round(time.time(), 3), "run": self._run, "event": event, **details})
        with self._lock:
            files.append(self._path, line.encode() + b"\n")
