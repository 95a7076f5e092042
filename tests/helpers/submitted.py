"""A job for submitit: a loop that stands after a step of its first start, and says where each start begins."""

import time
from pathlib import Path
from typing import Any

from submitit.helpers import DelayedSubmission

from helpers.loops import Loop

STANDS_AFTER = 3


class Job:
    """A training in `folder`, which submitit starts again after a preemption."""

    def __init__(self, folder: str, starts: int = 1) -> None:
        self.folder = folder
        self.starts = starts

    def __call__(self) -> dict[str, Any]:
        folder = Path(self.folder)
        loop = Loop(folder / "run", say=lambda text: print(text, flush=True))
        loop.model.register_forward_pre_hook(lambda *_: self._stand(loop))
        with loop.ckpt:
            begun = loop.ckpt.resume()
            for batch in loop.ckpt.batches(until=8):
                loop.update(batch)
        return {"begun": begun, "ended": loop.ckpt.step_count, "starts": self.starts}

    def checkpoint(self) -> DelayedSubmission:
        """Returns what is started next; called by submitit's own handler."""
        saved = sorted(path.name for path in Path(self.folder, "run").glob("checkpoint-*"))
        Path(self.folder, "requeued").write_text(" ".join(saved))
        return DelayedSubmission(Job(self.folder, self.starts + 1))

    def _stand(self, loop: Loop) -> None:
        if self.starts == 1 and loop.ckpt.step_count == STANDS_AFTER:
            Path(self.folder, "stands").touch()
            while True:
                time.sleep(1)
