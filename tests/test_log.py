"""Where a library's lines go: to the application's handlers, to `say`, or to the screen, and never nowhere."""

import logging
import subprocess
import sys
from collections.abc import Iterator

import pytest

from holdfast import log
from holdfast.log import LOGGER, RunLog


@pytest.fixture
def root(monkeypatch: pytest.MonkeyPatch) -> Iterator[logging.Logger]:
    """The root of an application that has configured no logging; pytest's own handlers are at the real one."""
    root = logging.Logger("root of the application", logging.WARNING)
    level = LOGGER.level
    monkeypatch.setattr(LOGGER, "parent", root)
    yield root
    LOGGER.setLevel(level)


class Taken(logging.Handler):
    """A handler of an application."""

    def __init__(self, level: int = logging.NOTSET) -> None:
        super().__init__(level)
        self.lines: list[tuple[str, str]] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append((record.levelname, record.getMessage()))


def test_whatever_a_line_quotes_it_stays_one_line_that_moves_no_cursor(
    root: logging.Logger, capsys: pytest.CaptureFixture[str]
) -> None:
    line = "label \x1b[2J\u202e\nsaved [red] 5%d " + "x" * 100_000
    RunLog().info(line)
    handler, said = Taken(), list[str]()
    root.addHandler(handler)
    log = RunLog(said.append)
    log.rank = 3
    log.warning(line)
    printed = capsys.readouterr().out
    assert printed.startswith(r"label \x1b[2J\u202e\nsaved [red] 5%d xxx") and printed.endswith(" characters)\n")
    assert printed.count("\n") == 1 and len(printed) < 20_000
    assert handler.lines == [("WARNING", said[0])] and said[0] == f"rank 3: {printed.rstrip()}"


@pytest.mark.usefixtures("root")
def test_without_a_handler_a_line_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    RunLog().info("saved")
    RunLog().error("not saved")
    assert capsys.readouterr() == ("saved\nnot saved\n", "")


@pytest.mark.usefixtures("root")
@pytest.mark.parametrize("above", [True, False])
def test_a_handler_of_the_application_takes_it_and_nothing_is_printed(
    root: logging.Logger, above: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    run, taken, logger = RunLog(), Taken(), root if above else LOGGER
    logger.addHandler(taken)
    run.info("saved")
    assert taken.lines == [("INFO", "saved")] and capsys.readouterr().out == ""
    logger.removeHandler(taken)
    run.info("saved again")
    assert capsys.readouterr().out == "saved again\n", "asked at each line: handlers come and go"


@pytest.mark.usefixtures("root")
def test_a_handler_that_would_not_take_it_is_none(root: logging.Logger, capsys: pytest.CaptureFixture[str]) -> None:
    errors = Taken(logging.ERROR)
    root.addHandler(errors)
    root.addHandler(logging.NullHandler())
    RunLog().info("saved")
    assert errors.lines == [] and capsys.readouterr().out == "saved\n"
    RunLog().error("not saved")
    assert errors.lines == [("ERROR", "not saved")] and capsys.readouterr().out == ""


@pytest.mark.usefixtures("root")
def test_a_handler_above_a_logger_that_does_not_propagate_is_none(
    root: logging.Logger, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    root.addHandler(Taken())
    monkeypatch.setattr(LOGGER, "propagate", False)
    RunLog().info("saved")
    assert capsys.readouterr().out == "saved\n"


@pytest.mark.usefixtures("root")
def test_say_takes_each_line_whatever_the_application_does(
    root: logging.Logger, capsys: pytest.CaptureFixture[str]
) -> None:
    said: list[str] = []
    run, taken = RunLog(said.append), Taken()
    run.info("one")
    root.addHandler(taken)
    run.info("two")
    assert said == ["one", "two"] and taken.lines == [("INFO", "two")] and capsys.readouterr().out == ""


@pytest.mark.usefixtures("root")
def test_lines_of_two_trainings_do_not_mix() -> None:
    first: list[str] = []
    second: list[str] = []
    RunLog(first.append).info("of the first")
    RunLog(second.append).info("of the second")
    assert (first, second) == (["of the first"], ["of the second"])


@pytest.mark.usefixtures("root")
def test_a_level_that_the_user_sets_holds_from_then_on(capsys: pytest.CaptureFixture[str]) -> None:
    run = RunLog()
    run.info("before")
    LOGGER.setLevel(logging.WARNING)
    run.info("quiet")
    run.warning("after")
    assert capsys.readouterr().out == "before\nafter\n"


@pytest.mark.usefixtures("root")
def test_other_ranks_say_which_they_are_and_announce_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    run = RunLog()
    run.announce("the same everywhere")
    run.rank = 2
    run.announce("the same everywhere")
    run.warning("%d per cent", 100)
    assert capsys.readouterr().out == "the same everywhere\nrank 2: 100 per cent\n"


@pytest.mark.parametrize("error", [BrokenPipeError, ValueError])
def test_an_output_that_fails_stops_nothing(
    root: logging.Logger, error: type[Exception], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(line: object) -> None:
        raise error(line)

    broken = Taken()
    monkeypatch.setattr(broken, "emit", fail)
    root.addHandler(broken)
    RunLog(fail).info("saved")


def test_a_handler_whose_filter_keeps_a_line_out_has_not_taken_it(
    root: logging.Logger, capsys: pytest.CaptureFixture[str]
) -> None:
    theirs = Taken()
    theirs.addFilter(logging.Filter("application"))
    root.addHandler(theirs)
    RunLog().info("saved")
    assert theirs.lines == [] and capsys.readouterr().out == "saved\n"


@pytest.mark.usefixtures("root")
def test_a_filter_of_the_logger_itself_holds(capsys: pytest.CaptureFixture[str]) -> None:
    def no_news(record: logging.LogRecord) -> bool:
        return record.levelno > logging.INFO

    LOGGER.addFilter(no_news)
    try:
        RunLog().info("saved")
        RunLog().error("not saved")
    finally:
        LOGGER.removeFilter(no_news)
    assert capsys.readouterr().out == "not saved\n"


@pytest.mark.usefixtures("root")
def test_say_takes_each_line_whatever_is_wanted_of_logging(capsys: pytest.CaptureFixture[str]) -> None:
    said: list[str] = []
    LOGGER.setLevel(logging.ERROR)
    logging.disable(logging.CRITICAL)
    try:
        RunLog(said.append).info("saved")
        RunLog().error("not wanted")
    finally:
        logging.disable(logging.NOTSET)
    assert said == ["saved"] and capsys.readouterr().out == ""


def test_a_line_says_from_where_it_comes(root: logging.Logger) -> None:
    taken = Taken()
    taken.emit = lambda record: taken.lines.append((record.filename, record.funcName or ""))  # type: ignore[method-assign]
    root.addHandler(taken)
    RunLog().info("saved")
    RunLog().announce("resumed")
    assert taken.lines == [("test_log.py", "test_a_line_says_from_where_it_comes")] * 2


@pytest.mark.parametrize(
    ("configure", "lines"),
    [
        ("pass", ["checkpoint saved", "no disk"]),
        ("logging.basicConfig(stream=sys.stdout)", ["INFO:holdfast:checkpoint saved", "ERROR:holdfast:no disk"]),
        ("logging.getLogger('holdfast').setLevel(logging.ERROR)", ["no disk"]),
        (
            "logging.config.dictConfig({'version': 1, 'root': {'level': 'WARNING', 'handlers': ['out']},"
            " 'handlers': {'out': {'class': 'logging.StreamHandler', 'stream': 'ext://sys.stdout'}}})",
            ["checkpoint saved", "no disk"],
        ),
    ],
)
def test_a_saved_checkpoint_does_not_vanish_with_the_applications_configuration(
    configure: str, lines: list[str]
) -> None:
    """An application that configures the root keeps INFO of a library out; one that disables existing loggers, all."""
    program = f"""
import logging, logging.config, sys
from holdfast.log import RunLog
run = RunLog()
{configure}
run.info("checkpoint saved")
run.error("no disk")
"""
    ran = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert ran.stdout.splitlines() == lines and ran.stderr == ""


def test_the_level_is_info_unless_the_application_set_one() -> None:
    program = "import logging; {}; import holdfast.log; print(logging.getLogger('holdfast').level)"
    for before, level in (("pass", logging.INFO), ("logging.getLogger('holdfast').setLevel(40)", logging.ERROR)):
        ran = subprocess.run([sys.executable, "-c", program.format(before)], capture_output=True, text=True, check=True)
        assert int(ran.stdout) == level
    assert log.LOGGER is logging.getLogger("holdfast")
