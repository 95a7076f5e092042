"""Writes the data that the examples train on: text that every Python has, and a tiny model to train.

    python examples/make_data.py [--out examples/data]

Nothing is downloaded. Three things appear in the output directory:

    stdlib.jsonl      source files of the standard library, one {"text": ...} a line    (`type: completion`)
    functions.jsonl   its documented functions as instruction, input and output         (`type: alpaca`)
    tiny-llama/       the config of a small Llama and a tokenizer trained on that text; no weights

The same Python always writes the same bytes.
"""

import argparse
import ast
import json
import random
import shutil
import sysconfig
import time
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

from tokenizers import ByteLevelBPETokenizer

SEED = 20
# Enough for a minute of training on two cores to pass over it more than once, and for a tokenizer to learn from.
TEXT_BYTES = 320_000
FUNCTIONS = 600
VOCABULARY = 2048
SPECIAL = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>", "unk_token": "<unk>"}

# About 1.3 million parameters: wide and shallow, with larger weights at the start than usual, because such a model
# learns something in a minute. The dropout is there on purpose: a run that draws random numbers at every step is
# resumed exactly only if the random state is.
MODEL: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "vocab_size": VOCABULARY,
    "hidden_size": 192,
    "intermediate_size": 512,
    "num_hidden_layers": 2,
    "num_attention_heads": 6,
    "num_key_value_heads": 6,
    "max_position_embeddings": 512,
    "initializer_range": 0.05,
    "attention_dropout": 0.1,
    "tie_word_embeddings": True,
}


def main() -> None:
    """Writes the three things and says how large they are."""
    parser = argparse.ArgumentParser(description="Writes the data and the tiny model of the examples.")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "data", help="where to (%(default)s)")
    out: Path = parser.parse_args().out
    started = time.monotonic()
    sources = modules()
    texts = selection(sources)
    write_lines(out / "stdlib.jsonl", [{"text": text} for text in texts])
    pairs = functions(sources)
    write_lines(out / "functions.jsonl", pairs)
    write_model(out / "tiny-llama", texts)
    size = sum(len(text.encode()) for text in texts)
    print(
        f"{out}: {len(texts)} source files ({size / 1000:.0f} kB), {len(pairs)} functions, "
        f"a tokenizer of {VOCABULARY} entries; {time.monotonic() - started:.1f} s"
    )


def modules() -> list[tuple[str, str]]:
    """Returns names and texts of the standard library's modules, in an order that the seed and the names decide."""
    folder = Path(sysconfig.get_paths()["stdlib"])
    paths = sorted(path for path in folder.glob("*.py") if not path.name.startswith("_"))
    random.Random(SEED).shuffle(paths)
    return [(path.stem, path.read_text(encoding="utf-8")) for path in paths]


def selection(sources: list[tuple[str, str]]) -> list[str]:
    """Returns the texts to pretrain on: none is a large part of the whole, or so small that it teaches nothing."""
    chosen: list[str] = []
    room = TEXT_BYTES
    for _, source in sources:
        if 1_000 <= len(source) <= min(room, TEXT_BYTES // 8):
            chosen.append(source)
            room -= len(source)
    return chosen


def functions(sources: list[tuple[str, str]]) -> list[dict[str, str]]:
    """Returns documented functions as pairs: docstring and signature are asked about, the body is the answer."""
    documented = (pair for module, source in sources for pair in _pairs(module, source))
    pairs = list(islice(documented, FUNCTIONS))
    random.Random(SEED).shuffle(pairs)
    return pairs


def _pairs(module: str, source: str) -> Iterator[dict[str, str]]:
    for node in ast.walk(ast.parse(source)):
        documentation = ast.get_docstring(node) if isinstance(node, ast.FunctionDef) else None
        if not isinstance(node, ast.FunctionDef) or not documentation:
            continue
        code = "\n".join(ast.unparse(statement) for statement in node.body[1:])
        # Short enough that question and answer fit into a sequence of the examples.
        if len(documentation) <= 200 and 0 < len(code) <= 300:
            yield {
                "instruction": f"Write the body of this function of {module}. {documentation}",
                "input": f"def {node.name}({ast.unparse(node.args)}):",
                "output": code,
            }


def write_lines(path: Path, rows: list[dict[str, str]]) -> None:
    """Writes one JSON object a line."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def write_model(folder: Path, texts: list[str]) -> None:
    """Writes the model's config and its tokenizer, a byte-level BPE trained on `texts`, as transformers reads them."""
    bpe = ByteLevelBPETokenizer()
    bpe.train_from_iterator(
        texts, vocab_size=VOCABULARY, min_frequency=2, special_tokens=list(SPECIAL.values()), show_progress=False
    )
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    bpe.save(str(folder / "tokenizer.json"))
    tokenizer = {"tokenizer_class": "PreTrainedTokenizerFast", "model_max_length": MODEL["max_position_embeddings"]}
    _write(folder / "tokenizer_config.json", {**tokenizer, **SPECIAL})
    ids = {f"{name}_id": bpe.token_to_id(SPECIAL[name]) for name in ("bos_token", "eos_token", "pad_token")}
    _write(folder / "config.json", {**MODEL, **ids})


def _write(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
