import pytest

from holdfast.layouts import transformers
from holdfast.store import names

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


def test_an_adapter_in_the_folder_of_its_name_is_the_weights() -> None:
    assert transformers.missing(["mine/adapter_model.safetensors", *WHOLE[1:]], weights_only=False) == []


def test_weights_in_a_folder_are_not_the_weights() -> None:
    assert transformers.missing(["merged/model.safetensors", *WHOLE[1:]], weights_only=False) == ["the weights"]


FORMS = {
    "FSDP": [
        ["pytorch_model_fsdp_0/.metadata", "optimizer_0/.metadata", "optimizer_0/__1_0.distcp", *WHOLE[3:]],
        ["pytorch_model_fsdp.bin", "optimizer.bin", *WHOLE[3:]],
    ],
    "DeepSpeed": [["latest", "global_step7/zero_pp_rank_1_mp_rank_00_optim_states.pt", "zero_to_fp32.py", WHOLE[4]]],
    "no sharding of its own": [[WHOLE[0], *WHOLE[2:], "merged/pytorch_model_fsdp.bin"]],
}


@pytest.mark.parametrize(("form", "files"), [(form, files) for form, several in FORMS.items() for files in several])
def test_what_sharded_trainers_write_is_whole_as_they_write_it(form: str, files: list[str]) -> None:
    assert all(map(names.is_relative_path, files))
    assert transformers.form(files) == form
    assert transformers.missing(files, weights_only=False) == ["trainer_state.json"]
    assert transformers.missing([*files, "trainer_state.json"], weights_only=False) == []


def test_what_a_sharded_checkpoint_lacks_is_missed_by_name() -> None:
    weights = "pytorch_model_fsdp_0/.metadata"
    assert transformers.missing([weights, WHOLE[1]], weights_only=False) == WHOLE[2:]
    assert transformers.missing(["optimizer.bin", "trainer_state.json"], weights_only=True) == ["the weights"]
    assert transformers.form(["latest", "global_step7"]) == "no sharding of its own"


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
        "optimizer_0/.metadata",
        "pytorch_model_fsdp_0/__0_0.distcp",
        "latest",
        "global_step7/mp_rank_00_model_states.pt",
    ],
)
def test_what_a_trainer_would_read_if_it_met_it(name: str) -> None:
    assert list(transformers.why_refused([name])) == [name]


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
    assert transformers.why_refused([name]) == {}
