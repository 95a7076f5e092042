"""Builds what is released, and uses it as somebody does who has nothing but that: `make dist`.

The wheel goes alone into a fresh environment, without any extra and then with each. There every module of it is
imported, and a training is asked, stopped and resumed with every verb, and compared with one that was left alone.
"""

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
import time
import tomllib
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import holdfast
from tools import notes

# The server of a mirror's bucket is the one that the tests have.
sys.path.append(str(Path(__file__).parents[1] / "tests"))
from helpers.object_servers import BUCKET, S3_ENVIRONMENT, moto

ROOT = Path(__file__).parents[1]
DIST = ROOT / "dist"
PROGRAMS = Path(__file__).parent / "programs"
ALONE, LOWEST = "alone", "lowest"
"""The environments without an extra: with the newest versions that we know, and with the lowest that are declared."""

# For what this repository does: nobody installs these to train.
_OF_THE_REPOSITORY = {"bench", "dev", "servers", "trainers"}
_LIMIT_SECONDS = 120.0
_SHOWN = (
    *("torch", "numpy", "safetensors", "pydantic", "typer", "rich"),
    *("transformers", "trl", "lightning", "obstore", "botocore"),
)
# What may fail to be imported without its extra.
_OF_EXTRAS = ("holdfast.integrations.", "holdfast.train.")

_IMPORTS = """
import importlib, json, pkgutil, sys, holdfast
assert "site-packages" in holdfast.__file__, holdfast.__file__
lacking = {}
for module in pkgutil.walk_packages(holdfast.__path__, "holdfast.", onerror=lambda name: None):
    if module.name != "holdfast.__main__":
        try:
            importlib.import_module(module.name)
        except ModuleNotFoundError as error:
            lacking[module.name] = error.name
print(json.dumps(lacking))
"""
_VERSIONS = """
import importlib.metadata, json
print(json.dumps({each.name: each.version for each in importlib.metadata.distributions()}))
"""
_ASKS = """
import sys, holdfast
assert holdfast.status(sys.argv[1])["alive"]
assert holdfast.save(sys.argv[1], "from Python", wait=True, timeout=60).answer.saved
assert "torch" not in sys.modules
"""


class ReleaseError(Exception):
    """What was built does not do what it should."""


def build() -> tuple[Path, Path]:
    """Builds source distribution and wheel, the wheel from what the former holds, and looks into both."""
    shutil.rmtree(DIST, ignore_errors=True)
    _run([sys.executable, "-m", "build", "--no-isolation", "--outdir", str(DIST), str(ROOT)])
    (wheel,), (source,) = DIST.glob("*.whl"), DIST.glob("*.tar.gz")
    with zipfile.ZipFile(wheel) as archive:
        files = archive.namelist()
        (metadata,) = (name for name in files if name.endswith(".dist-info/METADATA"))
        version = re.search(r"^Version: (.+)$", archive.read(metadata).decode(), re.MULTILINE)
    with tarfile.open(source) as unpacked:
        sources = {name.partition("/")[2] for name in unpacked.getnames()}
    _require(version is not None and version[1] == holdfast.__version__, f"{wheel.name} is not {holdfast.__version__}")
    _require("holdfast/py.typed" in files, "the wheel lacks py.typed")
    _require(any(name.endswith("/LICENSE") for name in files), "the wheel lacks its license")
    foreign = [name for name in files if not name.startswith(("holdfast/", "holdfast_torch-"))]
    _require(not foreign, f"the wheel has what is not its own: {foreign}")
    missing = {"pyproject.toml", "README.md", "CHANGELOG.md", "constraints.txt", "Makefile"} - sources
    _require(not missing, f"the source distribution lacks {sorted(missing)}")
    return source, wheel


def extras() -> list[str]:
    """Returns the extras that somebody installs to train."""
    declared = _project()["optional-dependencies"]
    return [name for name in declared if name not in _OF_THE_REPOSITORY]


def lowest() -> list[str]:
    """Returns the lowest version that is declared of each dependency, as pip wants it."""
    bounds = [re.fullmatch(r"([A-Za-z0-9._-]+)>=([0-9.]+)(?:,.*)?", each) for each in _project()["dependencies"]]
    return [f"{bound[1]}=={bound[2]}" for bound in bounds if bound is not None]


class Machine:
    """A fresh environment with the wheel in it, in a directory of its own.

    Args:
        folder: The directory.
        python: The Python that it is made with.
        torch: A version of torch other than that of constraints.txt.
    """

    def __init__(self, folder: Path, python: str, torch: str | None) -> None:
        self.folder = folder
        self._bin = folder / "env" / "bin"
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "HOLDFAST"))}
        self.environment = {**kept, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
        self._torch = torch
        _run([python, "-m", "venv", str(folder / "env")])

    def install(self, wheel: Path, name: str) -> None:
        """Installs the wheel, with an extra or the lowest versions."""
        constraints = (ROOT / "constraints.txt").read_text().splitlines()
        if name == LOWEST:
            bounds = lowest()
            theirs = {each.partition("==")[0].lower() for each in bounds} | {"pydantic_core", "click", "rich"}
            constraints = [line for line in constraints if line.partition("==")[0].lower() not in theirs]
            torch = [line for line in (ROOT / "constraints.txt").read_text().splitlines() if line.startswith("torch==")]
            constraints += [each for each in bounds if not each.startswith("torch==")] + torch
        if self._torch is not None:
            constraints = [line for line in constraints if not line.startswith("torch==")] + [f"torch=={self._torch}"]
        file = self.folder / "constraints.txt"
        file.write_text("\n".join(constraints) + "\n")
        wanted = f"{wheel}[{name}]" if name in extras() else str(wheel)
        pip = [str(self._bin / "python"), "-m", "pip", "install", "--quiet", "--disable-pip-version-check", wanted]
        _run(pip, env={**os.environ, "PIP_CONSTRAINT": str(file)})

    def python(self, *arguments: str, code: int = 0) -> str:
        """Runs Python there."""
        command = [str(self._bin / "python"), "-P", *arguments]
        return _run(command, env=self.environment, cwd=self.folder, code=code)

    def holdfast(self, *arguments: str, code: int = 0) -> str:
        """Runs a verb there."""
        return _run([str(self._bin / "holdfast"), *arguments], env=self.environment, cwd=self.folder, code=code)

    def start(self, program: Path, run: str, steps: int) -> "subprocess.Popen[str]":
        """Starts a training there."""
        return subprocess.Popen(
            [str(self._bin / "python"), "-P", str(program), run, str(steps)],
            env=self.environment,
            cwd=self.folder,
            stdout=(self.folder / f"{run}.log").open("a"),
            stderr=subprocess.STDOUT,
            text=True,
        )

    def train(self, program: Path, run: str, steps: int) -> str:
        """Trains there to a step; returns what it ended with."""
        return _digest(self.python(str(program), run, str(steps)))

    def versions(self) -> str:
        """Returns the versions of what is there."""
        listed = json.loads(self.python("-c", _VERSIONS).splitlines()[-1])
        there = [f"{name} {listed[name]}" for name in _SHOWN if name in listed]
        return ", ".join([self.python("--version").strip(), *there])


def use(machine: Machine, name: str) -> None:
    """Does with the wheel what people do.

    Raises:
        ReleaseError: Something does not work.
    """
    lacking: dict[str, str] = json.loads(machine.python("-c", _IMPORTS).splitlines()[-1])
    surprising = {module: name for module, name in lacking.items() if not module.startswith(_OF_EXTRAS)}
    _require(not surprising, f"modules need what is not declared: {surprising}")
    _require(holdfast.__version__ in machine.holdfast("--version"), "holdfast --version is of another version")
    _refuses_without_extras(machine, name)
    _trains(machine, PROGRAMS / "loop.py")
    if name == "remote":
        _outlives_its_disk(machine, PROGRAMS / "with_remote.py")
    elif (program := PROGRAMS / f"with_{name}.py").exists():
        _trains(machine, program)
    if name == "trl":
        _runs_the_quickstart(machine)
    elif name == ALONE:
        machine.holdfast(
            "drill", "--steps", "12", "--", str(machine._bin / "python"), str(PROGRAMS / "loop.py"), "d", "12"
        )


def _refuses_without_extras(machine: Machine, name: str) -> None:
    if name in (ALONE, LOWEST):
        (machine.folder / "x").mkdir()
        (machine.folder / "x.jsonl").write_text('{"text": "a"}\n')
        data = "datasets: [{path: ./x.jsonl, type: completion}]"
        (machine.folder / "config.yml").write_text(f"base_model: ./x\n{data}\nlearning_rate: 0.1\n")
        said = machine.holdfast("train", "config.yml", code=2)
        _require("holdfast-torch[trl]" in said, f"holdfast train does not say what it needs: {said}")
        needed = "holdfast-torch[remote]"
        said = machine.holdfast("mirror", "check", f"s3://{BUCKET}/run", code=2)
        _require(needed in said, f"holdfast mirror check does not say what it needs: {said}")
        said = machine.python(str(PROGRAMS / "with_remote.py"), "refused", "9", code=1).rstrip()
        _require(said.endswith(f"'{needed}'"), f"a loop with a mirror does not say what it needs: {said}")


def _outlives_its_disk(machine: Machine, program: Path) -> None:
    """Trains with a mirror in a bucket, removes the run directory, goes on from the mirror, and compares."""
    with moto() as port:
        machine.environment |= S3_ENVIRONMENT | {"AWS_ENDPOINT_URL": f"http://127.0.0.1:{port}"}
        last, run = _trains(machine, program), program.stem
        url = f"s3://{BUCKET}/{run}"
        machine.holdfast("mirror", "check", url)
        machine.holdfast("list", url)
        machine.holdfast("verify", url)
        machine.holdfast("pull", url, "pulled")
        machine.holdfast("verify", "pulled")
        machine.holdfast("push", run)
        shutil.rmtree(machine.folder / run)
        elsewhere, alone = (machine.train(program, name, last + 20) for name in (run, f"{run}-alone"))
        journal = (machine.folder / run / "events.jsonl").read_text()
    _require('"pulled"' in journal, f"{program.name}: with its disk gone, it pulls nothing from its mirror")
    _require(elsewhere == alone, f"{program.name}: from its mirror it ends otherwise than from its disk")


def _trains(machine: Machine, program: Path) -> int:
    """Asks, looks, stops, resumes, and compares; returns the step that it came to."""
    run = program.stem
    training = machine.start(program, run, 1_000_000)
    try:
        _wait(lambda: _status(machine, run).get("step", 0) > 3, training, machine.folder / f"{run}.log")
        machine.holdfast("save", run, "--wait", "--label", "first")
        machine.python("-c", _ASKS, run)
        checkpoints = [
            Path(each["path"]) for each in json.loads(machine.holdfast("list", run, "--json"))["checkpoints"]
        ]
        first, second = checkpoints[-1], checkpoints[0]
        machine.holdfast("inspect", str(first))
        machine.holdfast("diff", str(first), str(first))
        machine.holdfast("diff", str(first), str(second), code=1)
        machine.holdfast("pin", str(first))
        machine.holdfast("prune", run, "--keep-last", "1", "--labelled", "--yes")
        machine.holdfast("unpin", str(first))
        machine.holdfast("export", str(first), f"{run}-weights")
        machine.holdfast("verify", run)
        machine.holdfast("stop", run, "--wait")
        code = training.wait(_LIMIT_SECONDS)
    finally:
        training.kill()
    _require(code == 75, f"a stopped training ended with {code}, and not with 75")
    machine.holdfast("status", run, "--outcome", code=75)
    last: int = _status(machine, run)["last_checkpoint"]["step"] + 20
    resumed = machine.train(program, run, last)
    alone = machine.train(program, f"{run}-alone", last)
    _require(resumed == alone, f"{program.name}: stopped and resumed, it ends otherwise than left alone at step {last}")
    return last


def _runs_the_quickstart(machine: Machine) -> None:
    shutil.copytree(
        ROOT / "examples", machine.folder / "examples", ignore=shutil.ignore_patterns("data", "__pycache__")
    )
    machine.python("examples/make_data.py")
    machine.holdfast("train", "examples/quickstart.yml", "--set", "max_steps=12", "--set", "save_steps=6")
    machine.holdfast("verify", "outputs/quickstart")


def _status(machine: Machine, run: str) -> dict[str, Any]:
    status: dict[str, Any] = {}
    if (machine.folder / run / ".holdfast").exists():
        status = json.loads(machine.holdfast("status", run, "--json"))
    return status


def _digest(output: str) -> str:
    lines = [line for line in output.splitlines() if line.startswith("digest ")]
    if not lines:
        raise ReleaseError(f"a training said nothing at its end:\n{output}")
    return lines[-1]


def _wait(happened: Callable[[], bool], training: "subprocess.Popen[str]", log: Path) -> None:
    until = time.monotonic() + _LIMIT_SECONDS
    while not happened():
        if training.poll() is not None or time.monotonic() > until:
            raise ReleaseError(f"a training does not begin:\n{log.read_text()}")
        time.sleep(0.1)


def _run(command: Sequence[str], *, env: dict[str, str] | None = None, cwd: Path | None = None, code: int = 0) -> str:
    """Runs a command that is to end with a code; returns its output, and of one that is to fail its errors too."""
    done = subprocess.run(command, env=env, cwd=cwd, capture_output=True, text=True)
    said = done.stdout + done.stderr
    if done.returncode != code:
        raise ReleaseError(f"{' '.join(command)} ended with {done.returncode}, and not with {code}:\n{said}")
    return said if code else done.stdout


def _require(condition: bool, problem: str) -> None:
    if not condition:
        raise ReleaseError(problem)


def _project() -> dict[str, dict[str, list[str]]]:
    project: dict[str, dict[str, list[str]]] = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    return project


def main() -> None:
    """Builds, uses what was built in one environment after the other, and prints the release notes."""
    names = [ALONE, LOWEST, *extras()]
    parser = argparse.ArgumentParser(
        prog="make dist", description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--python", default=sys.executable, help="the Python of the environments")
    parser.add_argument("--torch", help="a version of torch other than that of constraints.txt")
    parser.add_argument("--only", action="append", choices=names, help="one environment; may be repeated")
    options = parser.parse_args()
    try:
        for built in build():
            print(f"built {built.relative_to(ROOT)} ({built.stat().st_size:,} bytes)", flush=True)
        (wheel,) = DIST.glob("*.whl")
        for name in options.only or names:
            begun = time.monotonic()
            with tempfile.TemporaryDirectory(prefix="holdfast-dist-") as folder:
                machine = Machine(Path(folder), options.python, options.torch)
                machine.install(wheel, name)
                use(machine, name)
                print(f"{name}: works, {time.monotonic() - begun:.0f} s ({machine.versions()})", flush=True)
    except ReleaseError as error:
        sys.exit(f"FAILED: {error}")
    print()
    notes.main([])


if __name__ == "__main__":
    main()
