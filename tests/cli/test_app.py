import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import typer

import holdfast as package
from helpers.museum import EXHIBITS
from helpers.serving import training
from helpers.support import RESUMABLE, commit_checkpoint, holdfast, holdfast_begun, tell
from helpers.waiting import wait_until
from holdfast import errors
from holdfast.cli.app import app
from holdfast.errors import HoldfastError

ROOT = Path(__file__).parents[2]

OF_A_PLACE = ["--endpoint", "--json", "--region"]
# An interface: whoever changes it changes docs/cli.md and the CHANGELOG too.
VERBS: dict[str, list[str]] = {
    "train": ["CONFIG", "--keep-settings", "--nproc", "--resume", "--set"],
    "save": ["RUN", "--json", "--label", "--mirrored", "--stop", "--timeout", "--wait"],
    "stop": ["RUN", "--json", "--label", "--mirrored", "--timeout", "--wait"],
    "status": ["RUN", "--json", "--outcome"],
    "list": ["RUN|URL", *OF_A_PLACE],
    "verify": ["RUN|CHECKPOINT|URL", *OF_A_PLACE],
    "inspect": ["CHECKPOINT|URL", *OF_A_PLACE],
    "diff": ["A", "B", "--json"],
    "pin": ["CHECKPOINT...", "--json"],
    "unpin": ["CHECKPOINT...", "--json"],
    "prune": [
        "RUN",
        "--dry-run",
        "--endpoint",
        "--json",
        "--keep-every",
        "--keep-last",
        "--labelled",
        "--mirror",
        "--region",
        "--yes",
    ],
    "push": ["RUN", *OF_A_PLACE, "--to"],
    "pull": ["URL", "DIR", *OF_A_PLACE],
    "mirror check": ["URL", *OF_A_PLACE],
    "export": ["CHECKPOINT", "DIR", "--json"],
    "drill": ["-- COMMAND", "--grace", "--json", "--kill-at", "--steps"],
}
# What each class of error ends a process with.
CODES = {
    "HoldfastError": 1,
    "ConfigError": 2,
    "UnsupportedError": 2,
    "RunError": 1,
    "RunNotFoundError": 4,
    "RunNotAliveError": 4,
    "RunBusyError": 1,
    "LeaseLostError": 1,
    "RanksError": 1,
    "WaitTimeoutError": 5,
    "SaveError": 1,
    "NoSpaceError": 1,
    "TornError": 1,
    "DeviceLostError": 1,
    "LateError": 1,
    "PartialAccumulationError": 1,
    "CheckpointError": 1,
    "DamagedCheckpointError": 3,
    "NoCheckpointError": 1,
    "MirrorError": 1,
    "MirrorAccessError": 2,
    "MirrorUnavailableError": 1,
    "MirrorNameError": 2,
    "MirrorTakenError": 2,
    "AbsentError": 1,
}


def test_the_verbs_and_their_options_are_these() -> None:
    commands = dict(typer.main.get_command(app).commands)  # type: ignore[attr-defined]
    commands |= {f"mirror {name}": command for name, command in commands.pop("mirror").commands.items()}
    found = {}
    for name, command in commands.items():
        arguments = [one.metavar for one in command.params if one.param_type_name == "argument"]
        options = [text for one in command.params if one.param_type_name == "option" for text in one.opts]
        found[name] = [*arguments, *sorted(options)]
    assert found == VERBS


def test_every_verb_and_option_is_documented() -> None:
    page = (ROOT / "docs" / "cli.md").read_text()
    for verb, options in VERBS.items():
        assert f"`holdfast {verb} " in page
        for option in options:
            assert f"`{option}" in page or option.strip("-. ").isupper() or option == "RUN|CHECKPOINT|URL"


def subclasses(kind: type[HoldfastError]) -> list[type[HoldfastError]]:
    return [kind, *(inner for below in kind.__subclasses__() for inner in subclasses(below))]


def test_every_error_has_its_exit_code() -> None:
    assert {kind.__name__: kind.exit_code for kind in subclasses(HoldfastError)} == CODES
    tree = re.findall(r"^ +(\w+) +(?:exit code )?(\d+)(?:   .*)?$", errors.__doc__ or "", re.MULTILINE)
    assert {name: int(code) for name, code in tree} == {name: CODES[name] for name, _ in tree}
    assert CODES.keys() - {"RunError", "CheckpointError", "MirrorError"} <= {name for name, _ in tree}


def test_the_page_has_the_exit_codes_of_errors_and_no_others() -> None:
    page = (ROOT / "docs" / "cli.md").read_text()
    documented = {int(code) for row in re.findall(r"^\| ([0-9, ]+) \|", page, re.MULTILINE) for code in row.split(",")}
    signals = {errors.ended_by_signal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR2)}
    own = {errors.DIFFERENT, errors.NOT_DETERMINISTIC, errors.STOPPED_AFTER_SAVE}
    own |= {errors.STILL_TRAINING, errors.DID_NOT_END}
    assert documented == {0, *CODES.values(), *own, *signals}


def test_exit_code_0_1_2_3_4_5(tmp_path: Path) -> None:
    (tmp_path / "good").mkdir()
    commit_checkpoint(tmp_path / "good", 7)
    damaged = next(exhibit for exhibit in EXHIBITS if exhibit.kind == "bit_flip").in_a_run(tmp_path / "damaged")
    (tmp_path / "open").mkdir()
    (tmp_path / "open" / ".holdfast").mkdir(mode=0o700)
    with training(tmp_path / "run"):
        found = {
            0: holdfast("verify", tmp_path / "good"),
            1: holdfast("status", tmp_path / "open"),
            2: holdfast("save"),
            3: holdfast("verify", damaged),
            4: holdfast("save", tmp_path / "missing"),
            5: holdfast("save", tmp_path / "run", "--wait", "--timeout", "0"),
        }
    assert {code: one.returncode for code, one in found.items()} == {code: code for code in found}
    assert not any("Traceback" in one.stderr for one in found.values())


def test_exit_code_130_is_ctrl_c(tmp_path: Path) -> None:
    with training(tmp_path):
        asking = holdfast_begun("stop", tmp_path, "--wait", "--json")
        wait_until(lambda: list((tmp_path / ".holdfast" / "requests").iterdir()))
        asking.send_signal(signal.SIGINT)
        assert (asking.communicate(timeout=30), asking.returncode) == (("", ""), 130)


@pytest.mark.parametrize(
    "arguments",
    [
        ["--nonsense"],
        ["nonsense"],
        ["save"],
        ["save", ".", "--timeout", "soon"],
        ["save", ".", "--timeout", "-1"],
        ["pin"],
        ["diff", "."],
        ["prune", ".", "--yes"],
        ["prune", ".", "--yes", "--keep-last", "0"],
        ["pull", "s3://bucket/run"],
        ["mirror", "look"],
        [],
    ],
    ids=" ".join,
)
def test_a_command_line_that_is_wrong_is_exit_code_2_and_asks_nobody(arguments: list[str], tmp_path: Path) -> None:
    found = holdfast(*arguments, cwd=tmp_path)
    assert found.returncode == 2 and "Usage: " in found.stdout + found.stderr
    assert not list(tmp_path.iterdir())


MORE_ARGUMENTS = {"diff": ["."], "export": ["exported"], "prune": ["--keep-last", "1", "--yes"]}


@pytest.mark.parametrize("verb", sorted(set(VERBS) - {"train", "drill", "pull", "mirror check"}))
def test_an_error_is_one_line_and_a_hint_or_one_json_object(tmp_path: Path, verb: str) -> None:
    given = [verb, str(tmp_path / "missing"), *MORE_ARGUMENTS.get(verb, [])]
    words, as_json = holdfast(*given), holdfast(*given, "--json")
    assert (words.stdout, as_json.stderr) == ("", "")
    said, hint = words.stderr.splitlines()
    assert said.startswith("holdfast: ") and hint.startswith("  ")
    assert json.loads(as_json.stdout) == {
        "error": said.removeprefix("holdfast: "),
        "hint": hint.strip(),
        "exit_code": 4,
    }
    assert words.returncode == as_json.returncode == 4


def test_an_option_of_a_rehearsed_command_is_none_of_ours() -> None:
    ended = holdfast("drill", "--steps", "4", "--", "python", "train.py", "--json")
    assert ended.returncode == 2 and "a drill needs 5 steps" in ended.stderr and not ended.stdout.startswith("{")


def test_a_directory_that_this_user_may_not_read_is_exit_code_2_and_no_traceback(tmp_path: Path) -> None:
    closed = tmp_path / "closed"
    closed.mkdir()
    script = f"import sys; sys.argv = ['holdfast', 'list', '{closed}']; from holdfast.cli.app import main; main()"
    closed.chmod(0)
    for folder in (tmp_path, *tmp_path.parents[:-2]):
        folder.chmod(folder.stat().st_mode | 0o011)
    command = [sys.executable, "-c", script]
    if os.geteuid() == 0:  # root may read everything, so the test becomes somebody else
        command = ["setpriv", "--reuid=65534", "--clear-groups", *command]
    found = subprocess.run(command, capture_output=True, text=True, check=False)
    if "setpriv" in found.stderr or "ModuleNotFoundError" in found.stderr or "Fatal Python" in found.stderr:
        pytest.skip(f"SKIPPED, NOT PASSED: cannot become another user: {found.stderr[-200:]}")
    said = " ".join(found.stderr.replace("│", " ").split())  # a long path breaks the line anywhere
    assert found.returncode == 2 and "is not readable" in said and "Traceback" not in said


def test_the_version_and_the_help() -> None:
    assert holdfast("--version").stdout == f"holdfast {package.__version__}\n"
    for verb in ("train", "save"):
        found = holdfast(verb, "--help")
        assert found.returncode == 0 and f"holdfast {verb} [OPTIONS]" in found.stdout


LOADED = """
import sys
sys.argv = ["holdfast", *sys.argv[1:]]
from holdfast.cli.app import main
try:
    main()
except SystemExit as end:
    heavy = {"torch", "pydantic", "numpy", "transformers", "safetensors", "yaml", "psutil"} & set(sys.modules)
    print(end.code, sorted(heavy), file=sys.stderr)
"""


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (["--help"], 0),
        (["train", "--help"], 0),
        (["list", "RUN"], 0),
        (["verify", "RUN"], 0),
        (["status", "RUN"], 0),
        (["save", "RUN"], 0),
        (["stop", "RUN", "--wait", "--timeout", "0"], 5),
        (["inspect", "RUN/checkpoint-7"], 0),
        (["diff", "RUN/checkpoint-7", "RUN/checkpoint-7"], 0),
        (["pin", "RUN/checkpoint-7"], 0),
        (["unpin", "RUN/checkpoint-7"], 0),
        (["prune", "RUN", "--keep-last", "1", "--yes"], 0),
        (["push", "RUN", "--to", "file://RUN/mirror"], 4),
        (["mirror", "check", "file://RUN/mirror"], 0),
        (["list", "file://RUN/mirror"], 4),
    ],
    ids=lambda value: "-".join(value).replace("/", "-") if isinstance(value, list) else "",
)
def test_no_verb_but_train_loads_torch_or_pydantic(tmp_path: Path, arguments: list[str], code: int) -> None:
    with training(tmp_path) as run:
        commit_checkpoint(tmp_path, 7, {**RESUMABLE, "model.safetensors": b"\2\0\0\0\0\0\0\0{}"})
        given = [word.replace("RUN", str(tmp_path)) for word in arguments]
        found = subprocess.run([sys.executable, "-c", LOADED, *given], capture_output=True, text=True, check=False)
        assert found.stderr.splitlines()[-1] == f"{code} []"
        tell(run, "end")


def test_the_module_is_the_command(tmp_path: Path) -> None:
    for command in ([sys.executable, "-m", "holdfast"], [str(Path(sys.executable).with_name("holdfast"))]):
        found = subprocess.run([*command, "list", str(tmp_path)], capture_output=True, text=True, check=False)
        assert (found.returncode, found.stdout) == (0, f"no checkpoint in {tmp_path} yet\n")
