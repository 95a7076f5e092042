"""How many places a save and a resume go through: files of ours, calls from one to another, and how deep they stack.

Counted are the frames that `sys.setprofile` sees entered, in every thread. The caller of a frame is the nearest one of
ours above it on its stack: a call that goes through torch, a dataclass or a context manager is one of whoever made it
do so. What begins a thread, and what the training's own loop calls, has no caller. Comprehensions are frames up to
Python 3.11; later versions count fewer functions, and stack less deep.
"""

import ast
import functools
import platform
import sys
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import CodeType, FrameType
from typing import Any

import torch
from torch.utils.data import DataLoader

import holdfast
from benchmarks.table import row
from holdfast import Checkpointer

_SOURCE = Path(holdfast.__file__).parent
_TRIGGER = "axolotl_checkpoint.save"
_ROUNDS = 5
# Training must be in the middle of its steps when it is asked, and a boundary must not be all that there is to see.
_STEP_SECONDS = 0.005
_STEPS_BEFORE = 5
_LIMIT_SECONDS = 60.0

Calls = Mapping[tuple[str, str], Collection[str]]
"""The functions that are called from one file to another, by caller and callee: `engine/save.py`."""


@dataclass(frozen=True)
class Trace:
    """The places that one call went through.

    Args:
        functions: Every function that was entered, with the file that it is in.
        calls: The calls from file to file.
        deepest: The functions of ours on the deepest stack of any thread, the outermost first, each with its file.
        imports: The files that each file imports; see `imports_of`.
    """

    functions: frozenset[tuple[str, CodeType]]
    calls: Calls
    deepest: Sequence[str]
    imports: Mapping[str, Collection[str]]

    @property
    def files(self) -> set[str]:
        """The files that were entered."""
        return {file for file, _ in self.functions}

    @property
    def not_imported(self) -> Calls:
        """The calls to files that the caller does not import: its reader does not learn where they go."""
        return {pair: names for pair, names in self.calls.items() if pair[1] not in self.imports[pair[0]]}

    @property
    def upwards(self) -> Calls:
        """The calls to files that import the caller."""
        return {pair: names for pair, names in self.calls.items() if pair[0] in self.imports[pair[1]]}


class Recorder:
    """Takes down the calls of a package's functions, while `recording` is set.

    `threading.setprofile` reaches the threads that begin after it, so it is installed before the training is made. The
    interpreter calls `_hear` in all of them; adding to a set or a dictionary cannot be interrupted.

    Args:
        source: The folder of the package.
    """

    def __init__(self, source: Path = _SOURCE) -> None:
        self.recording = False
        self.deaf: Collection[int] = ()
        """Threads that are not listened to."""
        self._source = source
        self._calls: set[tuple[CodeType | None, CodeType]] = set()
        self._stacks: dict[int, Sequence[CodeType]] = {}

    @contextmanager
    def installed(self) -> Iterator[None]:
        """Listens to the calling thread, and to those that begin."""
        before = sys.getprofile()
        threading.setprofile(self._hear)
        sys.setprofile(self._hear)
        try:
            yield
        finally:
            sys.setprofile(before)
            threading.setprofile(before)

    def trace(self) -> Trace:
        """Returns what was taken down."""
        calls = defaultdict(set)
        for caller, callee in self._calls:
            if caller is not None and caller.co_filename != callee.co_filename:
                calls[self._file_of(caller), self._file_of(callee)].add(callee.co_qualname)
        deepest = self._stacks[max(self._stacks)]
        return Trace(
            functions=frozenset((self._file_of(callee), callee) for _, callee in self._calls),
            calls=dict(calls),
            deepest=[f"{self._file_of(code)}  {code.co_qualname}" for code in deepest],
            imports=imports_of(self._source),
        )

    def _hear(self, frame: FrameType, event: str, argument: object) -> None:
        if event != "call" or not self.recording or not self._is_ours(frame) or threading.get_ident() in self.deaf:
            return
        stack = [above.f_code for above in _upwards_from(frame) if self._is_ours(above)]
        self._calls.add((stack[1] if len(stack) > 1 else None, stack[0]))
        if len(stack) not in self._stacks:
            self._stacks[len(stack)] = stack[::-1]

    def _is_ours(self, frame: FrameType) -> bool:
        # A module's own code runs when it is imported, which is once, and no call of anybody.
        return frame.f_code.co_filename.startswith(f"{self._source}/") and frame.f_code.co_name != "<module>"

    def _file_of(self, code: CodeType) -> str:
        return str(Path(code.co_filename).relative_to(self._source))


def _upwards_from(frame: FrameType | None) -> Iterator[FrameType]:
    while frame is not None:
        yield frame
        frame = frame.f_back


@dataclass(frozen=True)
class _Figure:
    text: str
    value: Callable[[Trace], int]
    goal: str = ""


_FIGURES = (
    _Figure("files entered", lambda trace: len(trace.files)),
    _Figure("distinct calls from file to file", lambda trace: len(trace.calls)),
    _Figure("to files that the caller does not import", lambda trace: len(trace.not_imported), "at most 5"),
    _Figure("to files that import the caller", lambda trace: len(trace.upwards), "0"),
    _Figure("functions", lambda trace: len(trace.functions)),
    _Figure("deepest stack", lambda trace: len(trace.deepest), "at most 15"),
)


def report(folder: Path) -> None:
    """Prints the tables, and what is behind the figures that have a goal."""
    save(folder / "trace-first")  # what is imported late is imported now
    resume(folder / "trace-first")
    print(f"\nHow many places a call goes through (plain loop, one process, Python {platform.python_version()})")
    for text, traces in {
        "a save, from the trigger file to the answer": [save(folder / f"trace-{n}") for n in range(_ROUNDS)],
        "Checkpointer.resume()": [resume(folder / f"trace-{n}") for n in range(_ROUNDS)],
    }.items():
        print(f"\n{text:52}{'':>10}  (min-max)")
        for figure in _FIGURES:
            goal = f"; goal: {figure.goal}" if figure.goal else ""
            row(figure.text + goal, [figure.value(trace) for trace in traces], 1)
        _list("calls to files that the caller does not import", [trace.not_imported for trace in traces])
        _list("calls to files that import the caller", [trace.upwards for trace in traces])
        print("\n  the deepest stack")
        for function in max((trace.deepest for trace in traces), key=len):
            print(f"    {function}")


def save(run: Path) -> Trace:
    """Traces one save, from the trigger file's appearance until the user is told that the checkpoint is durable.

    All threads count: the one that watches the trigger file, the one that saves, its readers and writers, and training,
    which goes on.

    Args:
        run: The run directory; one that is not there.
    """
    recorder = Recorder()

    def say(text: str) -> None:
        if text.startswith("checkpoint saved"):
            recorder.recording = False

    with recorder.installed(), _training(run, say) as steps:
        recorder.recording, limit = True, time.monotonic() + _LIMIT_SECONDS
        (run / _TRIGGER).touch()
        while recorder.recording:
            assert time.monotonic() < limit, f"{run} was not saved within {_LIMIT_SECONDS:g} s"
            next(steps)
    return recorder.trace()


def resume(run: Path) -> Trace:
    """Traces `Checkpointer.resume()`, and the threads that it begins.

    Args:
        run: The run directory, with a checkpoint in it.
    """
    recorder = Recorder()
    with recorder.installed():
        checkpointer, _ = _opened(run)
        with checkpointer:
            recorder.recording, recorder.deaf = True, _others()
            step = checkpointer.resume()
            recorder.recording = False
    assert step > 0, f"{run} has no checkpoint"
    return recorder.trace()


@functools.cache
def imports_of(source: Path) -> Mapping[str, Collection[str]]:
    """Returns the files of a package that each of its files imports, inside functions and for types alone, too."""
    modules = {_module_of(path, source): path for path in source.rglob("*.py")}
    names = {module: str(path.relative_to(source)) for module, path in modules.items()}
    return {names[module]: {names[other] for other in _imported_by(path, modules)} for module, path in modules.items()}


def _module_of(path: Path, source: Path) -> str:
    return ".".join(path.relative_to(source.parent).with_suffix("").parts).removesuffix(".__init__")


def _imported_by(path: Path, modules: Mapping[str, Path]) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name in modules)
        elif isinstance(node, ast.ImportFrom) and node.module:
            for alias in node.names:
                yield from _home_of(alias.name, node.module, modules)


def _home_of(name: str, module: str, modules: Mapping[str, Path]) -> Iterator[str]:
    """Gives the modules that a name comes from, also where a package has it from one of its own."""
    if module not in modules:
        return
    yield module
    if f"{module}.{name}" in modules:
        yield f"{module}.{name}"
    elif modules[module].name == "__init__.py":
        for node in ast.walk(ast.parse(modules[module].read_text())):
            if isinstance(node, ast.ImportFrom) and node.module and name in {alias.name for alias in node.names}:
                yield from _home_of(name, node.module, modules)


def _list(text: str, rounds: Sequence[Calls]) -> None:
    """Prints the calls of all rounds; with in how many of them there were some, where that was not in all."""
    calls: defaultdict[tuple[str, str], set[str]] = defaultdict(set)
    for pair, names in (item for calls_of_round in rounds for item in calls_of_round.items()):
        calls[pair].update(names)
    print(f"\n  {text}" + ("" if calls else ": none"))
    for (caller, callee), names in sorted(calls.items()):
        times = sum((caller, callee) in calls_of_round for calls_of_round in rounds)
        seen = "" if times == len(rounds) else f", in {times} of {len(rounds)} rounds"
        print(f"    {caller} -> {callee}  ({', '.join(sorted(names))}{seen})")


def _others() -> set[int]:
    return {thread.ident for thread in threading.enumerate() if thread.ident is not None} - {threading.get_ident()}


@contextmanager
def _training(run: Path, say: Callable[[str], None]) -> Iterator[Iterator[None]]:
    """Trains from zero into the middle of some steps, and gives what makes further ones."""
    checkpointer, step = _opened(run, say)
    with checkpointer:
        steps = (step(batch) for batch in checkpointer.batches())
        for _ in range(_STEPS_BEFORE):
            next(steps)
        yield steps


def _opened(run: Path, say: Callable[[str], None] = lambda text: None) -> tuple[Checkpointer, Callable[[Any], None]]:
    model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.Linear(8, 1))
    optimizer = torch.optim.AdamW(model.parameters())
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 100)
    rows: Any = [torch.full((4,), float(number)) for number in range(64)]
    data: DataLoader[Any] = DataLoader(rows, batch_size=2, shuffle=True)
    checkpointer = Checkpointer(run, data=data, say=say, model=model, optimizer=optimizer, scheduler=scheduler)

    def step(batch: Any) -> None:
        model(batch).sum().backward()
        optimizer.step()
        scheduler.step()
        optimizer.zero_grad()
        checkpointer.step()
        time.sleep(_STEP_SECONDS)

    return checkpointer, step
