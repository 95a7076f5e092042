"""Nothing secret that a training was given is on its disk afterwards."""

import pickle
import re
from pathlib import Path

import pytest
import torch
import yaml

from helpers.trainings import Launcher, Training, events
from holdfast.state.recorded_settings import is_secret

# In the environment, the arguments and the configuration; none of them is a word of any file for another reason.
ENVIRONMENT, ARGUMENT, CONFIGURED = "canary-in-environment", "canary-in-argument", "canary-in-configuration"
LABEL = "canary-in-label"  # which belongs on the disk, and shows that the search finds something
_SECRET_VARIABLES = dict.fromkeys(
    ("HF_TOKEN", "WANDB_API_KEY", "AWS_SECRET_ACCESS_KEY", "MASTER_PASSWORD"), ENVIRONMENT
)


def holding(root: Path, text: str) -> list[str]:
    """The files below a directory that hold a text, in one byte a letter or in two. Nothing there is compressed."""
    return [
        path.relative_to(root).as_posix()
        for path in sorted(root.rglob("*"))
        if path.is_file() and any(text.encode(code) in path.read_bytes() for code in ("utf-8", "utf-16-le"))
    ]


def require_none(run: Path, output: str) -> None:
    assert any(path.name == "MANIFEST.json" for path in run.rglob("*")), f"nothing was saved:\n{output}"
    assert holding(run, LABEL), "the search finds nothing"
    for secret in (ENVIRONMENT, ARGUMENT, CONFIGURED):
        assert holding(run, secret) == []
        assert secret not in output


LOOP = """
import functools, sys
sys.path.insert(0, TESTS)
from pathlib import Path
import torch
from helpers.loops import Loop

def rate(step, power, api_token):
    return 1 / (1 + step) ** power

class Adapter:
    r, lora_alpha, hub_token = 8, float(sys.argv[3]), sys.argv[1]

other = torch.optim.SGD([torch.nn.Parameter(torch.ones(1))], lr=0.1)
function = functools.partial(rate, power=float(sys.argv[3]), api_token=sys.argv[1])
unseen = torch.optim.lr_scheduler.LambdaLR(other, function)
loop = Loop(Path("run"), save_steps=2, say=print, unseen=unseen)
loop.model.peft_config = {"default": Adapter()}
with loop.ckpt:
    for batch in loop.ckpt.batches(until=4 * int(sys.argv[3])):
        loop.update(batch)
        if loop.ckpt.step_count == 3:
            loop.ckpt.save(label=sys.argv[2], wait=True)
        assert "canary" in sys.argv[1]
"""


def test_security_s13_a_loop_leaves_no_secret_on_its_disk(launcher: Launcher, tmp_path: Path) -> None:
    """Canaries in the environment, the arguments and the settings of a plain loop; its files and lines are searched.

    The settings are others at the resume, and named.
    """
    program = LOOP.replace("TESTS", repr(str(Path(__file__).parents[1])))
    for number in ("1", "2"):
        process = launcher.start(ARGUMENT + number, LABEL, number, cwd=tmp_path, program=program, **_SECRET_VARIABLES)
        assert process.wait() == 0, process.output
        require_none(tmp_path / "run", process.output)
    for changed in ("unseen.function.power: 1 -> 2", "model.default.lora_alpha: 1 -> 2", "until: 4 -> 8"):
        assert f"{changed}, from your configuration" in process.output


TRAINER = """
import dataclasses, os, sys, torch, holdfast
from transformers import LlamaConfig, LlamaForCausalLM, Trainer, TrainingArguments

@dataclasses.dataclass
class Own(TrainingArguments):
    tracker_api_key: str = ""
    proxy_password: str = ""
    client_secret: str = ""

sys.modules["__main__"].Own = Own  # for pickle, which looks for it there
rows = [{"input_ids": torch.tensor([1, 2, 3]), "labels": torch.tensor([1, 2, 3])}] * 16
secret = sys.argv[2]
args = Own(
    "out", max_steps=4 * int(sys.argv[4]), save_steps=2, learning_rate=0.01 / int(sys.argv[4]),
    hub_token=secret, tracker_api_key=secret, proxy_password=secret,
    client_secret=secret, run_name=sys.argv[3], report_to="none", use_cpu=True, disable_tqdm=True,
)
trainer = Trainer(LlamaForCausalLM(LlamaConfig.from_pretrained(sys.argv[1])), args, train_dataset=rows)
holdfast.attach(trainer)
trainer.train(resume_from_checkpoint="auto")
trainer.save_model()
assert args.tracker_api_key == args.proxy_password == args.client_secret == args.hub_token == secret
"""


def test_security_s13_a_trainer_leaves_no_secret_on_its_disk(launcher: Launcher, tmp_path: Path, tiny: Path) -> None:
    """Canaries in the environment and in the Trainer's arguments that are tokens, keys, passwords and secrets."""
    for number in ("1", "2"):
        process = launcher.start(
            tiny / "model", ARGUMENT + number, LABEL, number, cwd=tmp_path, program=TRAINER, **_SECRET_VARIABLES
        )  # the label is the run's name, which training_args.bin has
        assert process.wait() == 0, process.output
        require_none(tmp_path / "out", process.output)
    assert "learning_rate: 0.01 -> 0.005, from your configuration" in process.output


def test_security_s13_a_configured_training_leaves_no_secret_on_its_disk(training: Training) -> None:
    """Canaries in the environment and in the configuration of `holdfast train`; every file of its run is searched."""
    changes = {"wandb_api_key": CONFIGURED, "max_steps": 10, "save_strategy": "steps", "save_steps": 10}
    (training.folder / "config.yml").write_text(yaml.safe_dump({**training.config, **changes}))
    training.run.mkdir()
    training.trigger.write_text(LABEL)
    process = training.launcher.start("train", "config.yml", cwd=training.folder, **_SECRET_VARIABLES)
    assert process.wait() == 0, process.output
    assert len(events(training.run, "saved")) == 2
    require_none(training.run, process.output)


def test_security_s13_the_search_finds_what_is_in_any_file(tmp_path: Path) -> None:
    """A canary as text, in two bytes a letter, pickled, and inside torch's own zip."""
    (tmp_path / "folder").mkdir()
    (tmp_path / "text").write_text(f"key={ARGUMENT}")
    (tmp_path / "folder" / "wide").write_text(ARGUMENT, encoding="utf-16")
    (tmp_path / "pickle").write_bytes(pickle.dumps({"key": ARGUMENT}))
    torch.save({"key": ARGUMENT}, tmp_path / "zip")
    assert holding(tmp_path, ARGUMENT) == ["folder/wide", "pickle", "text", "zip"]
    assert holding(tmp_path, ENVIRONMENT) == []


@pytest.mark.parametrize("name", ["hub_token", "tracker_api_key", "proxy_password", "client_secret", "HF_TOKEN"])
def test_security_s13_an_argument_of_such_a_name_is_taken_for_a_secret(name: str) -> None:
    """Names of arguments."""
    assert is_secret(name)


@pytest.mark.parametrize("name", ["learning_rate", "output_dir", "max_steps", "label_names", "monkeys", "keyword"])
def test_an_argument_of_another_name_is_kept(name: str) -> None:
    assert not is_secret(name)
    assert re.fullmatch("[a-z_]+", name)
