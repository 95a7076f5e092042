import subprocess
import sys
from pathlib import Path

DEMO = Path(__file__).parents[2] / "examples" / "demo_mirror.py"


def test_without_its_server_it_says_at_once_and_in_one_line_what_to_install() -> None:
    """`-S`: an environment in which nothing is installed."""
    done = subprocess.run([sys.executable, "-S", str(DEMO)], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout) == (1, "")
    (line,) = done.stderr.splitlines()
    assert line.startswith("this demo needs moto, ") and "pip install '.[remote]'" in line
