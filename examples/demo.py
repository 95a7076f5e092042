"""Trains, asks for a save, kills the process, resumes, and compares with a run that was never interrupted.

Launch: make demo. Exits non-zero if the two runs differ in anything.
"""

import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
CONFIG = Path("examples/quickstart.yml")
INTERRUPTED = Path("outputs/demo/interrupted")
UNINTERRUPTED = Path("outputs/demo/uninterrupted")
TRIGGER = "axolotl_checkpoint.save"

ASK_AT_STEP = 30
STEPS_BEFORE_THE_KILL = 3
LIMIT_SECONDS = 170.0


class Training:
    """A `holdfast train` of its own process, whose output is shown as it comes."""

    def __init__(self, output_dir: Path, *options: str) -> None:
        self.output_dir = output_dir
        self.begun = time.monotonic()
        arguments = ["train", str(CONFIG), "--set", f"output_dir={output_dir}", *options]
        print(f"\n$ holdfast {' '.join(arguments)}", flush=True)
        command = [sys.executable, "-m", "holdfast", *arguments]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        self._show = threading.Thread(target=self._copy_output, daemon=True)
        self._show.start()

    def wait_for(self, condition: Callable[[], Any], what: str) -> Any:
        """Waits until the condition gives something true, while the training is alive."""
        while not (value := condition()):
            if self.process.poll() is not None:
                sys.exit(f"the training ended with {self.process.returncode} while the demo waited for {what}")
            if time.monotonic() - self.begun > LIMIT_SECONDS:
                self.process.kill()
                sys.exit(f"the demo waited too long for {what}")
            time.sleep(0.02)
        return value

    def step(self) -> int:
        """Returns the step that the training is at, as `holdfast status` would tell it."""
        try:
            return int(json.loads((self.output_dir / ".holdfast/status.json").read_text())["step"])
        except (OSError, ValueError):
            return 0

    def finish(self) -> float:
        """Waits for the end, which must be a good one; returns the seconds that it took."""
        code = self.process.wait()
        self._show.join()
        if code != 0:
            sys.exit(f"the training ended with {code}")
        return time.monotonic() - self.begun

    def _copy_output(self) -> None:
        assert self.process.stdout
        for line in self.process.stdout:
            print(f"  | {line}", end="", flush=True)


def main() -> None:
    """Runs the demo."""
    os.chdir(ROOT)
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    subprocess.run([sys.executable, "examples/make_data.py"], check=True)
    shutil.rmtree("outputs/demo", ignore_errors=True)

    training = Training(INTERRUPTED)
    training.wait_for(lambda: training.step() >= ASK_AT_STEP, f"step {ASK_AT_STEP}")
    print(f"\n$ touch {INTERRUPTED / TRIGGER}", flush=True)
    asked = time.monotonic()
    (INTERRUPTED / TRIGGER).touch()
    saved = training.wait_for(lambda: answer(INTERRUPTED), "the answer")
    answered = time.monotonic() - asked
    at_answer = training.step()
    training.wait_for(lambda: training.step() >= at_answer + STEPS_BEFORE_THE_KILL, "a few steps more")
    killed_at = training.step()
    print(f"\n$ kill -KILL {training.process.pid}", flush=True)
    training.process.send_signal(signal.SIGKILL)
    training.process.wait()

    Training(INTERRUPTED, "--resume", "auto").finish()
    seconds = Training(UNINTERRUPTED).finish()
    sys.exit(report(saved, answered, killed_at, seconds))


def answer(run: Path) -> dict[str, Any] | None:
    """Returns the answer to whoever touched the trigger file, if there is one already."""
    saved = (event for event in events(run) if event["event"] == "saved" and "trigger_file" in event["doors"])
    return next(saved, None)


def events(run: Path) -> list[dict[str, Any]]:
    """Returns what the journal of a run has, the oldest first; nothing where there is none yet."""
    journal = run / "events.jsonl"
    return [json.loads(line) for line in journal.read_text().splitlines()] if journal.exists() else []


def report(saved: dict[str, Any], answered: float, killed_at: int, seconds: float) -> int:
    """Prints the table; returns 0 if both runs ended the same."""
    steps, losses, digests = zip(*map(outcome, (INTERRUPTED, UNINTERRUPTED)), strict=True)
    same = steps[0] == steps[1] and losses[0] == losses[1] and digests[0] == digests[1]
    rows = [
        ("steps", *map(str, steps)),
        ("asked for a save at step", str(saved["step"]), "-"),
        ("  saved in", f"{saved['seconds']:.2f} s, {saved['bytes'] / 1e6:.1f} MB", "-"),
        ("  from touch to answer", f"{answered:.2f} s", "-"),
        ("killed at step", str(killed_at), "-"),
        ("first logged loss", *(f"{loss[0]:.6f}" for loss in losses)),
        ("last logged loss", *(f"{loss[-1]:.6f}" for loss in losses)),
        ("logged losses", *(f"{len(loss)}, sha256 {sha(repr(loss).encode())[:16]}" for loss in losses)),
        ("model.safetensors sha256", *(digest[:32] for digest in digests)),
    ]
    print(f"\n{'':26}{'killed and resumed':36}never interrupted")
    for name, left, right in rows:
        print(f"{name:26}{left:36}{right}")
    print(f"\nAn uninterrupted run took {seconds:.0f} s, start to end.")
    print("EQUAL: the same losses and the same model, byte for byte." if same else "DIFFERENT: this is a bug.")
    return 0 if same else 1


def outcome(run: Path) -> tuple[int, list[float], str]:
    """Returns what a finished run came to: its steps, every loss that it logged, the sha256 of its model."""
    last = max(run.glob("checkpoint-*/trainer_state.json"), key=lambda path: int(path.parent.name.split("-")[1]))
    state = json.loads(last.read_text())
    losses = [entry[key] for entry in state["log_history"] for key in ("loss", "eval_loss") if key in entry]
    return state["global_step"], losses, sha((run / "model.safetensors").read_bytes())


def sha(data: bytes) -> str:
    """Returns the sha256 of some bytes."""
    return hashlib.sha256(data).hexdigest()


if __name__ == "__main__":
    main()
