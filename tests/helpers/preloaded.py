"""A process that has imported torch, the trainers (`--trainers`) or Axolotl (`--axolotl`); it forks children.

One for each line of its input.

A line is JSON: argv, cwd, env, output, program; an empty one ends it. The child is a process like any other: its own
session, default signals, its output in a file; its exit code is left beside it.
"""

import gc
import importlib
import json
import os
import select
import signal
import sys
import tempfile
import traceback
from pathlib import Path
from typing import Any, NoReturn

from holdfast.cli.app import main

sys.path[0] = str(Path(__file__).parents[1])
# What is imported may print.
ANSWERS = os.fdopen(os.dup(1), "w")
os.dup2(2, 1)

# What a child would spend most of its time on importing. Not `attach`: plain transformers must do without it.
TRAINERS = ("trl.trainer.sft_trainer", "holdfast.engine.engine", "holdfast.train.config.load")
# The first optimizer of a process imports `torch._dynamo`.
RANKS = ("torch._dynamo", "holdfast.loop.checkpointer", "ranks.loop")
AXOLOTL = (
    "axolotl.cli.train",
    "axolotl.common.datasets",
    "axolotl.core.builders",
    "axolotl.train",
    "holdfast.integrations.axolotl",
    "holdfast.integrations.trainer.attach",
    "torch._dynamo",
)


def preload() -> None:
    with_axolotl, with_trainers = "--axolotl" in sys.argv, "--trainers" in sys.argv
    for module in AXOLOTL if with_axolotl else TRAINERS if with_trainers else RANKS:
        importlib.import_module(module)
    if with_axolotl or with_trainers:
        from transformers import LlamaConfig, LlamaForCausalLM

        # The first model that is saved has transformers compile some hundred patterns.
        tiny = LlamaConfig(vocab_size=8, hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=1)
        with tempfile.TemporaryDirectory() as folder:
            LlamaForCausalLM(tiny).save_pretrained(folder)
    # A child's own collections need not go through all that: they would take 0.2 s each.
    gc.collect()
    gc.freeze()


def child(job: dict[str, Any]) -> NoReturn:
    code = 1
    try:
        os.setsid()
        os.close(ANSWERS.fileno())
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)
        output = os.open(job["output"], os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        os.dup2(output, 1)
        os.dup2(output, 2)
        os.chdir(job["cwd"])
        os.environ.update(job["env"])
        sys.argv = ["holdfast", *job["argv"]]
        if job["program"] is None:
            main()
        exec(compile(job["program"], "program", "exec"), {"__name__": "__main__"})
        code = 0
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else int(end.code is not None)
        if isinstance(end.code, str):
            print(end.code, file=sys.stderr)
    except BaseException:  # noqa: BLE001 - the parent learns of everything by the exit code
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def serve() -> None:
    outputs: dict[int, Path] = {}
    open_input = True
    while open_input or outputs:
        readable, _, _ = select.select([sys.stdin] if open_input else [], [], [], 0.01)
        if readable:
            line = sys.stdin.readline().strip()
            open_input = bool(line)
            if line:
                job = json.loads(line)
                pid = os.fork() or child(job)
                outputs[pid] = Path(job["output"])
                print(pid, file=ANSWERS, flush=True)
        for pid, output in list(outputs.items()):
            ended, status = os.waitpid(pid, os.WNOHANG)
            if ended:
                temporary = output.with_suffix(".ending")
                temporary.write_text(str(os.waitstatus_to_exitcode(status)))
                temporary.rename(output.with_suffix(".code"))
                del outputs[pid]
        if not open_input:
            for pid in outputs:
                os.kill(pid, signal.SIGKILL)


preload()
serve()
