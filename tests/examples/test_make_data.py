import ast
import json
import subprocess
import sys
from pathlib import Path

import pytest

from holdfast.train.config.load import load

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the script writes."""
    out = tmp_path_factory.mktemp("made")
    make(out)
    return out


def make(out: Path) -> None:
    command = [sys.executable, "-W", "error", str(ROOT / "examples" / "make_data.py"), "--out", str(out)]
    subprocess.run(command, check=True, timeout=60, stdout=subprocess.DEVNULL)


def rows(path: Path) -> list[dict[str, str]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_the_texts_are_source_code(made: Path) -> None:
    texts = rows(made / "stdlib.jsonl")
    assert len(texts) >= 10
    assert all(set(row) == {"text"} for row in texts)
    assert 200_000 < sum(len(row["text"]) for row in texts) <= 320_000
    for row in texts:
        ast.parse(row["text"])


def test_the_pairs_ask_and_answer(made: Path) -> None:
    pairs = rows(made / "functions.jsonl")
    assert len(pairs) == 600
    assert all(set(pair) == {"instruction", "input", "output"} and all(pair.values()) for pair in pairs)
    assert all(pair["input"].startswith("def ") for pair in pairs)


def test_the_model_is_small_and_has_no_weights(made: Path) -> None:
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

    folder = made / "tiny-llama"
    assert not list(folder.glob("*.safetensors"))
    model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(folder))
    assert 1_000_000 < model.num_parameters() < 2_000_000
    assert model.config.attention_dropout > 0
    tokenizer = AutoTokenizer.from_pretrained(folder)
    assert len(tokenizer) == model.config.vocab_size
    for name in ("bos_token", "eos_token", "pad_token"):
        assert getattr(model.config, f"{name}_id") == getattr(tokenizer, f"{name}_id")
    text = rows(made / "stdlib.jsonl")[0]["text"]
    assert tokenizer.decode(tokenizer(text, verbose=False)["input_ids"]) == text


def test_the_same_python_writes_the_same_bytes(made: Path, tmp_path: Path) -> None:
    make(tmp_path)
    first, second = (
        {path.relative_to(out): path.read_bytes() for path in out.rglob("*") if path.is_file()}
        for out in (made, tmp_path)
    )
    assert first == second


@pytest.mark.parametrize("name", ["quickstart", "lora"])
def test_the_examples_are_good_configurations(
    made: Path, tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    # As a user has it, who ran the script and then the first example.
    (tmp_path / "examples").mkdir()
    (tmp_path / "examples" / "data").symlink_to(made)
    (tmp_path / "outputs" / "quickstart").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    loaded = load(ROOT / "examples" / f"{name}.yml")
    assert loaded.notices == ()
    assert loaded.config.dynamic_checkpoint.enabled
