import csv
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from holdfast.errors import ConfigError, HoldfastError
from holdfast.train import data, model
from holdfast.train.config.load import TrainConfig

Configure = Callable[..., TrainConfig]
WriteRows = Callable[..., Path]

PAIRS = [{"instruction": f"Say {n}.", "input": "now" if n % 2 else "", "output": f"It is {n}."} for n in range(6)]
TALK = [
    {"role": "user", "content": "What is it?"},
    {"role": "assistant", "content": "A value."},
    {"role": "user", "content": "Sure?"},
    {"role": "assistant", "content": "Yes."},
]


def load(config: TrainConfig, said: list[str] | None = None) -> tuple[Any, Any]:
    return data.load(config, model.load_tokenizer(config), (said if said is not None else []).append)


def rows(config: TrainConfig) -> list[list[int]]:
    return list(load(config)[0]["input_ids"])


def learnt(config: TrainConfig) -> list[str]:
    """Of each row, what counts."""
    tokenizer = model.load_tokenizer(config)
    kept = ([label for label in labels if label != -100] for labels in load(config)[0]["labels"])
    return [str(tokenizer.decode(labels)) for labels in kept]


def one(path: Path | str, type: str, **keys: Any) -> list[dict[str, Any]]:
    return [{"path": str(path), "type": type, **keys}]


# Where the rows come from


def test_the_same_texts_give_the_same_rows_from_every_format(
    configure: Configure, texts: list[str], tmp_path: Path
) -> None:
    from datasets import Dataset

    content = [{"text": text} for text in texts]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in content))
    (tmp_path / "a.json").write_text(json.dumps(content))
    Dataset.from_list(content).to_parquet(tmp_path / "a.parquet")
    with (tmp_path / "a.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, ["text"])
        writer.writeheader()
        writer.writerows(content)
    found = [rows(configure(datasets=one(path, "completion"))) for path in sorted(tmp_path.glob("a.*"))]
    assert len(found) == 4
    assert found[1:] == found[:-1]


def test_a_text_file_is_one_text_with_its_line_breaks(configure: Configure, texts: list[str], tmp_path: Path) -> None:
    folder = tmp_path / "texts"
    folder.mkdir()
    for number, text in enumerate(texts[:3]):
        (folder / f"{number}.txt").write_text(text)
    alone = learnt(configure(datasets=one(folder / "1.txt", "completion"), sequence_len=256))
    together = learnt(configure(datasets=one(folder, "completion"), sequence_len=256))
    assert alone == [texts[1] + "</s>"]
    assert sorted(together) == [text + "</s>" for text in texts[:3]]


def test_files_are_taken_out_of_a_folder_or_by_their_format(configure: Configure, write_rows: WriteRows) -> None:
    first = write_rows([{"text": "one"}], "first.jsonl")
    write_rows([{"text": "two"}], "second.jsonl")
    folder = one(first.parent, "completion", data_files=["second.jsonl"])
    by_format = one("json", "completion", data_files=str(first))
    assert learnt(configure(datasets=folder)) == ["two</s>"]
    assert learnt(configure(datasets=by_format)) == ["one</s>"]


def test_a_table_that_datasets_saved_is_read(configure: Configure, tmp_path: Path) -> None:
    from datasets import Dataset, DatasetDict

    table = Dataset.from_dict({"text": ["one", "two"]})
    table.save_to_disk(tmp_path / "saved")
    DatasetDict({"train": table, "test": table.select([1])}).save_to_disk(tmp_path / "splits")
    assert learnt(configure(datasets=one(tmp_path / "saved", "completion"))) == ["one</s>", "two</s>"]
    assert learnt(configure(datasets=one(tmp_path / "splits", "completion"))) == ["one</s>", "two</s>"]
    assert learnt(configure(datasets=one(tmp_path / "splits", "completion", split="test"))) == ["two</s>"]


def test_what_looks_like_a_number_or_like_nothing_stays_text_in_csv(configure: Configure, tmp_path: Path) -> None:
    path = tmp_path / "pairs.csv"
    path.write_text("instruction,input,output\nWhich?,,007\nWhich?,NA,null\n")
    assert learnt(configure(datasets=one(path, "alpaca"), sequence_len=256)) == ["007</s>", "null</s>"]


def test_several_datasets_of_several_types_follow_each_other(configure: Configure, write_rows: WriteRows) -> None:
    sources = [
        *one(write_rows([{"text": "first"}], "a.jsonl"), "completion"),
        *one(write_rows(PAIRS[:1], "b.jsonl"), "alpaca"),
        *one(write_rows([{"messages": TALK}], "c.jsonl"), "chat_template", chat_template="chatml"),
    ]
    config = configure(datasets=sources, sequence_len=256)
    assert learnt(config) == ["first</s>", "It is 0.</s>", "A value.<|im_end|>Yes.<|im_end|>"]


# What becomes of a row


def test_a_long_text_is_split_and_nothing_of_it_is_lost(configure: Configure, texts: list[str]) -> None:
    config = configure(sequence_len=10)
    tokenizer = model.load_tokenizer(config)
    pieces = rows(config)
    whole = [token for text in texts for token in tokenizer(text + "</s>")["input_ids"]]
    assert [token for piece in pieces for token in piece] == whole
    assert max(map(len, pieces)) == 10


def test_no_piece_is_a_single_token(configure: Configure, write_rows: WriteRows) -> None:
    path = write_rows([{"text": "value " * count} for count in range(1, 80)])
    pieces = rows(configure(datasets=one(path, "completion"), sequence_len=8))
    assert min(map(len, pieces)) == 2
    assert max(map(len, pieces)) == 8


def test_pretraining_fills_its_rows(configure: Configure, texts: list[str], write_rows: WriteRows) -> None:
    path = write_rows([{"text": text} for text in texts])
    config = configure(datasets=one(path, "pretrain"))
    packed = rows(config)
    assert {len(row) for row in packed[:-1]} == {32}
    assert model.load_tokenizer(config).decode([token for row in packed for token in row]) == "</s>".join([*texts, ""])


def test_of_a_pair_the_answer_is_learnt(configure: Configure, write_rows: WriteRows) -> None:
    config = configure(datasets=one(write_rows(PAIRS), "alpaca"), sequence_len=256)
    assert learnt(config) == [f"It is {n}.</s>" for n in range(6)]
    whole = learnt(config.model_copy(update={"train_on_inputs": True}))
    assert whole[0].endswith("### Instruction:\nSay 0.\n\n### Response:\nIt is 0.</s>")
    assert "### Input:\nnow\n\n### Response:\nIt is 1.</s>" in whole[1]


def test_of_a_conversation_the_assistant_is_learnt(configure: Configure, write_rows: WriteRows) -> None:
    path = write_rows([{"messages": TALK}])
    config = configure(datasets=one(path, "chat_template"), chat_template="chatml", sequence_len=256)
    assert learnt(config) == ["A value.<|im_end|>Yes.<|im_end|>"]
    whole = learnt(config.model_copy(update={"train_on_inputs": True}))
    assert whole[0].startswith("<|im_start|>user\nWhat is it?<|im_end|>\n<|im_start|>assistant\nA value.<|im_end|>\n")


def test_sharegpt_conversations_are_understood(configure: Configure, write_rows: WriteRows) -> None:
    words = {"user": "human", "assistant": "gpt"}
    talk = [{"from": words[message["role"]], "value": message["content"]} for message in TALK]
    source = one(write_rows([{"talk": talk}]), "chat_template", field_messages="talk", chat_template="chatml")
    assert learnt(configure(datasets=source, sequence_len=256)) == ["A value.<|im_end|>Yes.<|im_end|>"]


@pytest.mark.parametrize("as_file", [True, False])
def test_a_template_of_ones_own(configure: Configure, write_rows: WriteRows, tmp_path: Path, as_file: bool) -> None:
    template = (
        "{% for m in messages %}{% if m['role'] == 'assistant' %}"
        "{% generation %}[{{ m['content'] }}]{% endgeneration %}"
        "{% else %}({{ m['content'] }}){% endif %}{% endfor %}"
    )
    (tmp_path / "own.jinja").write_text(template)
    named = str(tmp_path / "own.jinja") if as_file else template
    source = one(write_rows([{"messages": TALK}]), "chat_template", chat_template=named)
    assert learnt(configure(datasets=source, sequence_len=256)) == ["[A value.][Yes.]"]


def test_examples_share_rows_when_they_are_packed(configure: Configure, write_rows: WriteRows) -> None:
    config = configure(datasets=one(write_rows(PAIRS), "alpaca"), sequence_len=1024)
    apart, _ = load(config)
    packed, _ = load(config.model_copy(update={"sample_packing": True}))
    assert len(packed) < len(apart)
    assert sorted(length for lengths in packed["seq_lengths"] for length in lengths) == sorted(
        map(len, apart["input_ids"])
    )
    assert sum(map(len, packed["labels"])) == sum(map(len, apart["labels"]))


# What is said


def test_what_is_cut_and_left_out_is_counted_and_said(configure: Configure, write_rows: WriteRows) -> None:
    pairs = [*PAIRS, {**PAIRS[0], "output": "value " * 200}, {**PAIRS[0], "instruction": "value " * 500}]
    config = configure(datasets=one(write_rows(pairs), "alpaca"), sequence_len=300)
    said: list[str] = []
    train, _ = load(config, said)
    assert len(train) == 7
    assert max(map(len, train["input_ids"])) == 300
    (line,) = said
    assert "8 examples" in line
    assert "2 were longer than sequence_len 300" in line
    assert "1 held nothing to learn from and were left out" in line


def test_the_cache_is_used_and_says_the_same(configure: Configure, write_rows: WriteRows, tmp_path: Path) -> None:
    pairs = [*PAIRS, {**PAIRS[0], "output": "value " * 200}]
    config = configure(datasets=one(write_rows(pairs), "alpaca"), sequence_len=300, val_set_size=2, sample_packing=True)
    cold: list[str] = []
    warm: list[str] = []
    first = load(config, cold)
    files = {path: path.stat().st_mtime_ns for path in (tmp_path / "prepared").iterdir()}
    second = load(config, warm)
    assert cold == warm
    assert [half[:] for half in first] == [half[:] for half in second]
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "prepared").iterdir()} == files


def test_a_file_that_changed_is_read_again(configure: Configure, write_rows: WriteRows) -> None:
    config = configure(datasets=one(write_rows([{"text": "before"}]), "completion"))
    assert learnt(config) == ["before</s>"]
    write_rows([{"text": "after"}])
    assert learnt(config) == ["after</s>"]


# What is held out


@pytest.mark.parametrize(("size", "count"), [(5, 5), (0.25, 25)])
def test_some_rows_are_held_out_by_the_seed(
    configure: Configure, write_rows: WriteRows, size: float, count: int
) -> None:
    path = write_rows([{"text": f"value {number}"} for number in range(100)])
    config = configure(datasets=one(path, "completion"), val_set_size=size)
    train, held_out = (half["input_ids"][:] for half in load(config))
    assert len(held_out) == count
    assert sorted(train + held_out) == sorted(rows(config.model_copy(update={"val_set_size": 0.0})))
    assert [half["input_ids"][:] for half in load(config)] == [train, held_out]
    assert load(config.model_copy(update={"seed": 7}))[1]["input_ids"][:] != held_out


def test_not_everything_can_be_held_out(configure: Configure) -> None:
    with pytest.raises(ConfigError, match=r"val_set_size: of .* rows, 1000\.0 is too much"):
        load(configure(val_set_size=1000))


# What cannot be used


@pytest.mark.parametrize(
    ("type", "wanted"), [("completion", "'text'"), ("alpaca", "'instruction'"), ("chat_template", "'messages'")]
)
def test_a_missing_column_is_named_beside_those_there_are(
    configure: Configure, write_rows: WriteRows, type: str, wanted: str
) -> None:
    path = write_rows([{"output": "a", "kind": "b"}])
    with pytest.raises(HoldfastError) as caught:
        load(configure(datasets=one(path, type), chat_template="chatml"))
    assert str(path) in str(caught.value)
    assert f"has no column {wanted}" in str(caught.value)
    assert "it has 'output', 'kind'" in str(caught.value)


def test_a_file_with_nothing_in_it(configure: Configure, tmp_path: Path) -> None:
    (tmp_path / "empty.jsonl").touch()
    with pytest.raises(HoldfastError, match=r"cannot read .*empty\.jsonl'.*nothing in it"):
        load(configure(datasets=one(tmp_path / "empty.jsonl", "completion")))


def test_rows_with_nothing_to_learn(configure: Configure, write_rows: WriteRows) -> None:
    with pytest.raises(HoldfastError, match="holds nothing to learn from in its 2 rows"):
        load(configure(datasets=one(write_rows([{"text": ""}, {"text": None}]), "completion")))


def test_a_value_that_is_no_text_is_named_by_its_row(configure: Configure, write_rows: WriteRows) -> None:
    path = write_rows([{**PAIRS[0], "output": 7}])
    with pytest.raises(HoldfastError, match=r"row 0 of .*data\.jsonl' cannot be used: its 'output' is not text but 7"):
        load(configure(datasets=one(path, "alpaca")))


def test_a_template_that_refuses_a_conversation(configure: Configure, write_rows: WriteRows) -> None:
    strict = "{{ raise_exception('roles must alternate') }}{% generation %}{% endgeneration %}"
    path = write_rows([{"messages": TALK}])
    with pytest.raises(HoldfastError, match=r"row 0 of .* cannot be used: roles must alternate"):
        load(configure(datasets=one(path, "chat_template", chat_template=strict)))


def test_a_template_that_does_not_mark_the_assistant(configure: Configure, write_rows: WriteRows) -> None:
    source = one(write_rows([{"messages": TALK}]), "chat_template", chat_template="{{ messages[0]['content'] }}")
    with pytest.raises(ConfigError, match="does not say which part of it is the assistant's") as caught:
        load(configure(datasets=source))
    assert "train_on_inputs" in (caught.value.hint or "")


def test_a_tokenizer_without_a_template(configure: Configure, write_rows: WriteRows) -> None:
    with pytest.raises(ConfigError, match="chat_template: the tokenizer has none") as caught:
        load(configure(datasets=one(write_rows([{"messages": TALK}]), "chat_template")))
    assert "chatml" in (caught.value.hint or "")


def test_a_file_that_is_not_there(configure: Configure, tmp_path: Path) -> None:
    with pytest.raises(HoldfastError, match="there is no file or folder"):
        load(configure(datasets=one(tmp_path / "none.jsonl", "completion")))


def test_a_file_that_is_not_what_its_name_says(configure: Configure, tmp_path: Path) -> None:
    (tmp_path / "bad.jsonl").write_text("{not json\n")
    with pytest.raises(HoldfastError, match=r"cannot read .*bad\.jsonl'"):
        load(configure(datasets=one(tmp_path / "bad.jsonl", "completion")))


def test_a_split_that_there_is_not(configure: Configure, write_rows: WriteRows) -> None:
    source = one(write_rows([{"text": "value"}]), "completion", split="test")
    with pytest.raises(HoldfastError, match=r'Unknown split "test"\. Should be one of \[\'train\'\]'):
        load(configure(datasets=source))


def test_a_name_on_a_hub_that_cannot_be_reached(configure: Configure) -> None:
    with pytest.raises(HoldfastError, match="cannot read 'holdfast-tests/none'") as caught:
        load(configure(datasets=one("holdfast-tests/none", "completion")))
    assert "Hugging Face hub" in (caught.value.hint or "")
