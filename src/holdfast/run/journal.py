"""The journal of a run: `events.jsonl`, one JSON object a line, only ever appended to."""

import json
import os
import threading
import time
from pathlib import Path
from typing import Any

from holdfast.store import files


class Journal:
    """Writes events. It is a record for people: nothing decides by it, and training does not fail by it."""

    def __init__(self, path: Path, run: str) -> None:
        self._path = path
        self._run = run
        self._lock = threading.Lock()
        self._is_ended = False
        self._whole = False  # whether the file is known to end with a whole line

    def write(self, event: str, **details: Any) -> None:
        """Adds one event, with the time and the run. A disk that does not take it is no reason to stop.

        After "end" comes nothing: who reads how a run ended reads its last line.
        """
        line = json.dumps({"at": round(time.time(), 3), "run": self._run, "event": event, **details})
        with self._lock:
            if self._is_ended:
                return
            self._is_ended = event == "end"
            try:
                mend = b"\n" if not self._whole and self._torn() else b""
                files.append(self._path, mend + line.encode() + b"\n")
                self._whole = True
            except OSError:
                self._whole = False

    def _torn(self) -> bool:
        """Tells whether a crash or a full disk cut the last line off."""
        try:
            with files.open_regular(self._path) as fd:
                size = os.fstat(fd).st_size
                return size > 0 and os.pread(fd, 1, size - 1) != b"\n"
        except FileNotFoundError:
            return False
