import pytest

from holdfast.layouts import transformers

WHOLE = ["model.safetensors", "trainer_state.json", "optimizer.pt", "scheduler.pt", "rng_state.pth"]


def test_a_whole_checkpoint_lacks_nothing() -> None:
    assert transformers.missing([*WHOLE, "config.json", "tokenizer.json"], weights_only=False) == []


@pytest.mark.parametrize("weights", transformers.WEIGHTS)
def test_every_form_of_weights_counts(weights: str) -> None:
    assert transformers.missing([weights, *WHOLE[1:]], weights_only=False) == []


@pytest.mark.parametrize("name", WHOLE[1:])
def test_each_file_that_a_resume_needs_is_missed_by_name(name: str) -> None:
    assert transformers.missing([other for other in WHOLE if other != name], weights_only=False) == [name]


def test_an_empty_checkpoint_lacks_everything() -> None:
    assert transformers.missing([], weights_only=False) == ["the weights", *transformers.RESUMABLE, "rng_state.pth"]


def test_weights_alone_need_the_trainers_state_and_no_more() -> None:
    assert transformers.missing(["model.safetensors", "trainer_state.json"], weights_only=True) == []
    assert transformers.missing(["trainer_state.json"], weights_only=True) == ["the weights"]
    assert transformers.missing(["model.safetensors"], weights_only=True) == ["trainer_state.json"]


def test_weights_in_a_folder_are_not_the_weights() -> None:
    assert transformers.missing(["merged/model.safetensors", *WHOLE[1:]], weights_only=False) == ["the weights"]


@pytest.mark.parametrize(
    "name",
    [
        "model.safetensors",
        "model-00001-of-00002.safetensors",
        "model.safetensors.index.json",
        "pytorch_model.bin",
        "pytorch_model.bin.index.json",
        "optimizer.bin",
        "optimizer.pt",
        "scaler.pt",
        "rng_state.pth",
        "rng_state_0.pth",
        "trainer_state.json",
        "training_args.bin",
        "adapter_config.json",
        "adapter_model.safetensors",
        "second/adapter_model.safetensors",
        "second/adapter_model.bin",
        "second/adapter_config.json",
    ],
)
def test_what_a_trainer_would_read_if_it_met_it(name: str) -> None:
    assert transformers.would_be_read([name]) == [name]


@pytest.mark.parametrize(
    "name",
    [
        "README.md",
        "config.json",
        "tokenizer.json",
        "merged/model.safetensors",  # TRL's MergeModelCallback writes these into a finished checkpoint
        "merged/model-00001-of-00002.safetensors",
        "merged/config.json",
        "a/b/adapter_model.safetensors",
        "runs/events.out.tfevents.1",
        "notes.pt.txt",
    ],
)
def test_what_a_trainer_never_reads(name: str) -> None:
    assert transformers.would_be_read([name]) == []
