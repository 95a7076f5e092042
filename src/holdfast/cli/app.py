"""Runs the command line: its verbs, and what becomes of errors. Described in `docs/cli.md`."""

import functools
import signal
import sys
from collections import abc
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn

import typer
from typer.core import TyperGroup

from holdfast import __version__
from holdfast.cli import (
    diff,
    drill,
    export,
    inspect,
    list,
    mirror,
    pin,
    prune,
    pull,
    push,
    save,
    status,
    stop,
    train,
    unpin,
    verify,
)
from holdfast.cli.output import as_json, tell
from holdfast.errors import ConfigError, HoldfastError, ended_by_signal
from holdfast.remote.location import SCHEMES
from holdfast.text import lines_shown

_UsageError: Any = typer.BadParameter.__base__  # typer hands it on under no name of its own


# The first part of an address that was read as a path.
_ADDRESSES = [(f"{scheme}:",) for scheme in SCHEMES]


class _Verbs(TyperGroup):
    """The verbs, and a word for who looks for one that is an option here.

    What is wrong with a command line is printed by typer, and may quote a name that a shell has found in a directory.
    """

    def make_context(self, *args: Any, **kwargs: Any) -> Any:
        """Parses the options before the verb."""
        with _quoted_escaped():
            return super().make_context(*args, **kwargs)

    def invoke(self, ctx: Any) -> Any:
        """Parses what follows, and runs the verb."""
        with _quoted_escaped():
            return super().invoke(ctx)

    def resolve_command(self, ctx: Any, args: Any) -> Any:
        """Finds the verb that the command line names."""
        if args and args[0] == "resume":
            ctx.fail("No such command 'resume'. Did you mean: holdfast train CONFIG --resume auto")
        return super().resolve_command(ctx, args)


@contextmanager
def _quoted_escaped() -> Iterator[None]:
    try:
        yield
    except _UsageError as error:
        error.message = lines_shown(error.message)
        raise


app = typer.Typer(
    name="holdfast",
    cls=_Verbs,
    help="Saves a PyTorch training run the moment you ask, and resumes it exactly where it was.",
    no_args_is_help=True,
    add_completion=True,
    pretty_exceptions_enable=False,
)


def _refuse_addresses(options: Mapping[str, Any]) -> None:
    """Refuses the address of a mirror where a directory is meant, before anything is said of a path that it is not."""
    for value in options.values():
        for path in value if isinstance(value, abc.Sequence) else [value]:
            if isinstance(path, Path) and path.parts[:1] in _ADDRESSES and not path.exists():
                raise ConfigError(
                    [f"an address ({path.parts[0]}//...) is given, and a directory of this machine is meant"],
                    hint="list, verify, inspect, pull and mirror check take a mirror's address, and push takes --to",
                )


def _guarded(verb: Callable[..., None]) -> Callable[..., None]:
    """Ends a verb with 130 at Ctrl+C, as shells have it, and makes one line of a failing disk's error."""

    @functools.wraps(verb)
    def wrapped(**options: Any) -> None:
        try:
            _refuse_addresses(options)
            verb(**options)
        except KeyboardInterrupt:
            raise typer.Exit(ended_by_signal(signal.SIGINT)) from None
        except OSError as error:
            if verb is train.train:
                raise  # whatever it was that failed in a training, its place in the code helps
            raise HoldfastError(str(error)) from error

    return wrapped


_VERBS: dict[str, Callable[..., None]] = {
    "train": train.train,
    "save": save.save,
    "stop": stop.stop,
    "status": status.status,
    "list": list.list_checkpoints,
    "verify": verify.verify,
    "inspect": inspect.inspect,
    "diff": diff.diff,
    "pin": pin.pin,
    "unpin": unpin.unpin,
    "prune": prune.prune,
    "push": push.push,
    "pull": pull.pull_checkpoints,
    "export": export.export,
    "drill": drill.drill,
}
for _name, _verb in _VERBS.items():
    app.command(_name)(_guarded(_verb))

_of_mirrors = typer.Typer(help="Look at a mirror.", no_args_is_help=True)
_of_mirrors.command("check")(_guarded(mirror.check))


@_of_mirrors.callback()
def _of_mirrors_alone() -> None:
    """Has `check` be a word of its own, although it is the only one."""


app.add_typer(_of_mirrors, name="mirror")


def _version(wanted: bool) -> None:
    if wanted:
        tell(f"holdfast {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: bool = typer.Option(False, "--version", callback=_version, is_eager=True, help="Print the version."),
) -> None:
    pass


def main() -> NoReturn:
    """Runs the command and ends the process with the exit code that `docs/cli.md` promises."""
    if sys.argv[1:2] not in (["train"], ["drill"]):
        signal.signal(signal.SIGPIPE, signal.SIG_DFL)  # `holdfast list RUN | head` ends as any tool does
    try:
        app()
    except HoldfastError as error:
        sys.exit(_tell(error))
    sys.exit(0)


def _tell(error: HoldfastError) -> int:
    ours = sys.argv[: sys.argv.index("--")] if "--" in sys.argv else sys.argv  # what follows is another program's
    if "--json" in ours:
        as_json({"error": str(error), "hint": error.hint, "exit_code": error.exit_code})
    else:
        tell(f"holdfast: {error}" if error.exit_code != ConfigError.exit_code else str(error), as_error=True)
        if error.hint:
            tell(f"  {error.hint}", as_error=True)
    return error.exit_code
