"""Fixtures for everybody: a tiny model and its data, and the start of whole trainings."""

import json
import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from helpers.trainings import Launcher, Training

pytest_plugins = ["helpers.fault_table", "helpers.object_servers", "field.page"]

# Before torch is loaded: tests fork, and a child of a process that has used OpenMP's threads waits for them for ever.
# Bits are compared with one thread, too.
os.environ["OMP_NUM_THREADS"] = "1"
# Before its library is loaded: no test may ask the hub, and one that cannot be reached is tried for most of a minute.
os.environ.setdefault("HF_HUB_OFFLINE", "1")

# Under `nohup`, or as `make test &` of a script, Ctrl+C is ignored, and what is started inherits that.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Skips what needs a CUDA device where there is none."""
    if item.get_closest_marker("cuda") is not None:
        import torch

        if not torch.cuda.is_available():
            pytest.skip("SKIPPED, NOT PASSED: there is no CUDA device")


@pytest.fixture(autouse=True)
def no_memory_stays_locked_for_a_device_of_paper() -> Iterator[None]:
    """Gives back what trainings have left for the next on the same device: of a device of paper there is none."""
    yield
    budgets, paper = (sys.modules.get(name) for name in ("holdfast.capture.staging_budget", "helpers.paper"))
    if budgets is None or paper is None:
        return
    for pool in [*budgets._left_behind]:
        if isinstance(pool.arena.device, paper.Paper):
            budgets._left_behind.remove(pool)
            while block := pool.try_take():
                pool.arena.unmake(block)


WORDS = ["def", "return", "import", "self", "class", "for", "while", "value", "key", "list", "dict", "yield"]


@pytest.fixture(scope="session")
def launcher(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Launcher]:
    """Starts real processes that have the trainers imported already."""
    started = Launcher(tmp_path_factory.mktemp("processes"), "--trainers")
    yield started
    started.close()


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a model's configuration, a tokenizer, and some text."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import LlamaConfig, PreTrainedTokenizerFast

    folder = tmp_path_factory.mktemp("tiny")
    specials = ["<pad>", "<s>", "</s>", "<unk>"]
    vocabulary = {word: number for number, word in enumerate([*specials, *WORDS])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", bos_token="<s>", eos_token="</s>", unk_token="<unk>"
    ).save_pretrained(folder / "model")
    LlamaConfig(
        vocab_size=len(vocabulary),
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        attention_dropout=0.1,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=0,
    ).save_pretrained(folder / "model")
    with (folder / "text.jsonl").open("w") as file:
        for number in range(120):
            text = " ".join(WORDS[(number * 7 + place * place) % len(WORDS)] for place in range(12))
            file.write(json.dumps({"text": text, "instruction": text, "output": text}) + "\n")
    return folder


@pytest.fixture
def training(tmp_path: Path, tiny: Path, launcher: Launcher) -> Training:
    """A training of the tiny model that lasts until it is stopped."""
    return Training(
        tmp_path,
        launcher,
        {
            "base_model": str(tiny / "model"),
            "reinit_weights": True,
            "datasets": [{"path": str(tiny / "text.jsonl"), "type": "completion"}],
            "sequence_len": 16,
            "micro_batch_size": 2,
            "learning_rate": 1e-3,
            "max_steps": 1_000_000,
            "save_strategy": "no",
            "output_dir": "out",
            "dynamic_checkpoint": {"enabled": True, "check_interval": 5},
        },
    )
