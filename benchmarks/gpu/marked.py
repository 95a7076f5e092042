"""Every test that needs a CUDA device, by its mark, with the pytest that the machine has and no plugin of it."""

import re
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from xml.etree import ElementTree

from benchmarks.gpu.bench import Bench

_ROOT = Path(__file__).parents[2]
_MARK = re.compile(r"pytest\.mark\.cuda\b")
_CONFIGURATION = Path(__file__).with_name("pytest.ini")


def files() -> list[Path]:
    """Returns the files that have such tests. The others are not loaded: what they import need not be there."""
    return [path for path in sorted((_ROOT / "tests").rglob("test_*.py")) if _MARK.search(path.read_text())]


def run(bench: Bench) -> None:
    """Runs them, and adds one finding for each that failed."""
    if find_spec("pytest") is None:
        bench.leave_out("tests marked cuda", "pytest is not installed here: pip install pytest")
        return
    chosen = [str(path) for path in files()]
    report = bench.folder / "junit.xml"
    command = [sys.executable, "-m", "pytest", "-q", "-c", str(_CONFIGURATION), "--rootdir", str(_ROOT)]
    command += ["-p", "no:cacheprovider", "--continue-on-collection-errors", "-m", "cuda", f"--junitxml={report}"]
    ended = subprocess.run([*command, *chosen], cwd=_ROOT, capture_output=True, text=True, check=False)
    if not report.is_file():
        bench.add(
            "tests marked cuda", False, f"pytest ended with {ended.returncode}: {_last(ended.stdout, ended.stderr)}"
        )
        return
    _tell(bench, ElementTree.parse(report).getroot(), len(chosen))


def _tell(bench: Bench, root: ElementTree.Element, files: int) -> None:
    counted = {"passed": 0, "skipped": 0, "failed": 0}
    for test in root.iter("testcase"):
        name = f"{test.get('classname')}::{test.get('name')}"
        trouble = next((test.find(kind) for kind in ("failure", "error") if test.find(kind) is not None), None)
        if trouble is not None:
            counted["failed"] += 1
            bench.add(f"test {name}", False, (trouble.get("message") or "failed").splitlines()[0][:300])
        elif test.find("skipped") is not None:
            counted["skipped"] += 1
        else:
            counted["passed"] += 1
    text = ", ".join(f"{number} {what}" for what, number in counted.items())
    is_good = not counted["failed"] and (counted["passed"] > 0 or bench.is_dry)
    bench.add("tests marked cuda", is_good, f"{text}, in {files} files", **counted)


def _last(*texts: str) -> str:
    lines = [line for text in texts for line in text.splitlines() if line.strip()]
    return lines[-1][:300] if lines else "it said nothing"
