"""What somebody at a terminal sees and presses, and what a log file gets instead."""

import os
import re
import signal

from helpers.trainings import Training
from helpers.waiting import wait_until

# Runs `holdfast` on a terminal of its own, 120 columns wide; a file "press" presses Ctrl+C there.
ON_A_TERMINAL = """
import fcntl, os, pty, select, struct, sys, termios
pid, terminal = pty.fork()
if pid == 0:
    os.environ["TERM"] = "xterm"
    from holdfast.cli.app import main
    main()
fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", 40, 120, 0, 0))
while True:
    if os.path.exists("press"):
        os.unlink("press")
        os.write(terminal, b"\\x03")
    try:
        if select.select([terminal], [], [], 0.05)[0]:
            os.write(1, os.read(terminal, 65536))
    except OSError:
        break
sys.exit(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
"""


def test_fault_33_a_terminal_shows_a_bar_and_ctrl_c_there_saves_once(training: Training) -> None:
    """Ctrl+C typed into a pseudo-terminal, whose whole foreground group gets it."""
    process = training.start(program=ON_A_TERMINAL, logging_steps=2)
    training.wait_for_step(5)
    training.trigger.touch()
    training.wait_for_saves(1)
    wait_until(lambda: re.search(r"loss \d\.\d+ \| \d+\.\d+ steps/s \| saved step \d+", process.output))
    (training.folder / "press").touch()
    assert process.wait() == 75
    assert "SIGINT: saving the last boundary" in process.output
    assert process.output.rstrip().endswith("--resume auto")


def test_a_log_file_gets_plain_lines_that_can_be_grepped(training: Training) -> None:
    process = training.start(logging_steps=2, save_strategy="steps", save_steps=4)
    training.wait_for_saves(1)
    process.send(signal.SIGTERM)
    assert process.wait() == 75
    lines = process.output.splitlines()
    assert "\x1b" not in process.output and "\r" not in process.output
    assert any(line.startswith("{'loss': ") and "'step': 2" in line for line in lines)
    assert any("***** Running training *****" in line for line in lines)
    assert any(line.endswith("Saving model checkpoint to out/checkpoint-4") for line in lines)
    assert any(line.startswith("checkpoint saved step=4 path=") for line in lines)


def test_the_start_says_how_to_ask(training: Training) -> None:
    process = training.start(max_steps=1)
    process.wait()
    for line in (
        f"run out, process {process.pid}",
        "touch out/axolotl_checkpoint.save",
        "holdfast save out --wait",
        "holdfast stop out",
        f"kill -USR1 {process.pid}",
        f"kill -TERM {process.pid}",
    ):
        assert line in process.output
    off = training.start(max_steps=1, output_dir="other", dynamic_checkpoint=None)
    off.wait()
    assert "the trigger file is off" in off.output


def test_a_wrong_configuration_ends_with_2_names_every_line_and_leaves_nothing(training: Training) -> None:
    process = training.start(micro_batch_size="two", learning_rat=1, max_steps=1)
    assert process.wait() == 2
    lines = process.output.splitlines()
    assert any(
        re.fullmatch(r"config\.yml:\d+: learning_rat: unknown key, did you mean 'learning_rate'\?", line)
        for line in lines
    )
    assert any(re.match(r"config\.yml:\d+: micro_batch_size: expected", line) for line in lines)
    assert not training.run.exists()


# Its output goes to a reader that dies of the same Ctrl+C, as `| tee` does.
READER_GOES = """
import os, signal, sys
reading, writing = os.pipe()
pid = os.fork()
if pid == 0:
    os.close(writing)
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    while data := os.read(reading, 4096):
        os.write(1, data)
    os._exit(0)
os.close(reading)
os.dup2(writing, 1)
os.dup2(writing, 2)
os.close(writing)
Path = __import__("pathlib").Path
Path("reader").write_text(str(pid))
from holdfast.cli.app import main
main()
"""


def test_fault_33_a_reader_that_dies_of_the_same_ctrl_c_costs_no_save(training: Training) -> None:
    """SIGINT to a training and to the program that its output is piped into."""
    process = training.start(program=READER_GOES)
    training.wait_for_step(3)
    os.kill(int((training.folder / "reader").read_text()), signal.SIGINT)
    process.send(signal.SIGINT)
    assert process.wait() == 75
    assert [event["doors"] for event in training.saved()] == [["signal"]]
