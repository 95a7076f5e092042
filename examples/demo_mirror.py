"""Trains with a mirror, kills the training and removes its disk, goes on from the mirror, and compares.

Launch: make demo-mirror. The mirror is a bucket of moto, a server of S3's protocol on this machine. Exits non-zero if
the run ends otherwise than one that was never interrupted.
"""

import http.client
import importlib.util
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

from demo import ROOT, Training, events, outcome, sha

FIRST, SECOND, WHOLE = (Path("outputs/demo-mirror") / name for name in ("first-machine", "second-machine", "whole"))
BUCKET = "demo"
STEPS = ("--set", "max_steps=40", "--set", "save_steps=10")
MIRRORED = 20
STEPS_BEFORE_THE_KILL = 3
LIMIT_SECONDS = 60.0
NEEDED = ("moto", "flask", "flask_cors", "obstore", "botocore")
SAID = Path("outputs/demo-mirror/server.log")


def main() -> None:
    """Runs the demo."""
    os.chdir(ROOT)
    if missing := [name for name in NEEDED if importlib.util.find_spec(name) is None]:
        sys.exit(
            f"this demo needs {', '.join(missing)}: `make demo-mirror` installs all of it;"
            " here it is: pip install '.[remote]' 'moto[s3]' flask flask-cors"
        )
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    os.environ.update(AWS_ACCESS_KEY_ID="demo", AWS_SECRET_ACCESS_KEY="demo", AWS_REGION="us-east-1")
    subprocess.run([sys.executable, "examples/make_data.py"], check=True)
    shutil.rmtree("outputs/demo-mirror", ignore_errors=True)
    SAID.parent.mkdir(parents=True)
    port = free_port()
    with SAID.open("w") as said:
        command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
        server = subprocess.Popen(command, stdout=said, stderr=said)
    try:
        make_bucket(server, port)
        code = run(f"http://127.0.0.1:{port}")
    finally:
        server.kill()
        server.wait()
    sys.exit(code)


def run(endpoint: str) -> int:
    """Trains on one machine, loses it, and goes on on another; returns 0 if nothing is different for that."""
    mirror = ("--set", f"mirror=s3://{BUCKET}/run", "--set", f"mirror_endpoint={endpoint}")
    training = Training(FIRST, *STEPS, *mirror)
    training.wait_for(lambda: mirrored(FIRST) >= MIRRORED, f"step {MIRRORED} to be mirrored")
    at_step = training.step()
    training.wait_for(lambda: training.step() >= at_step + STEPS_BEFORE_THE_KILL, "a few steps more")
    there, killed_at = mirrored(FIRST), training.step()
    print(f"\n$ kill -KILL {training.process.pid}; rm -rf {FIRST}", flush=True)
    training.process.send_signal(signal.SIGKILL)
    training.process.wait()
    shutil.rmtree(FIRST)

    Training(SECOND, *STEPS, *mirror, "--resume", "auto").finish()
    Training(WHOLE, *STEPS).finish()
    return report(there, killed_at)


def mirrored(run: Path) -> int:
    """Returns the newest step that the journal of a run says is in the mirror; 0 for none."""
    return max((event["step"] for event in events(run) if event["event"] == "mirrored"), default=0)


def report(there: int, killed_at: int) -> int:
    """Prints the table; returns 0 if both runs ended the same."""
    steps, losses, digests = zip(*map(outcome, (SECOND, WHOLE)), strict=True)
    same = steps[0] == steps[1] and losses[0] == losses[1] and digests[0] == digests[1]
    (pulled,) = (event for event in events(SECOND) if event["event"] == "pulled")
    rows = [
        ("steps", *map(str, steps)),
        ("killed at step", str(killed_at), "-"),
        ("mirrored by then up to step", str(there), "-"),
        ("pulled by the second machine", f"step {pulled['step']}, {pulled['bytes'] / 1e6:.1f} MB", "-"),
        ("last logged loss", *(f"{loss[-1]:.6f}" for loss in losses)),
        ("logged losses", *(f"{len(loss)}, sha256 {sha(repr(loss).encode())[:16]}" for loss in losses)),
        ("model.safetensors sha256", *(digest[:32] for digest in digests)),
    ]
    print(f"\n{'':30}{'machine and disk gone':36}never interrupted")
    for name, left, right in rows:
        print(f"{name:30}{left:36}{right}")
    print("\nEQUAL: the same losses and the same model, byte for byte." if same else "\nDIFFERENT: this is a bug.")
    return 0 if same else 1


def free_port() -> int:
    """Returns a port that nobody listens at."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def make_bucket(server: "subprocess.Popen[bytes]", port: int) -> None:
    """Makes the bucket, as soon as the server is there."""
    end = time.monotonic() + LIMIT_SECONDS
    while True:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
        try:
            connection.request("PUT", f"/{BUCKET}")
            connection.getresponse().read()
            return
        except OSError:
            if server.poll() is not None:
                sys.exit(f"moto's server ended with {server.returncode}; {SAID} has what it said")
            if time.monotonic() > end:
                sys.exit(f"moto's server does not answer; {SAID} has what it said")
            time.sleep(0.1)
        finally:
            connection.close()


if __name__ == "__main__":
    main()
