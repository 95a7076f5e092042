"""Nothing secret that a training was given is on its disk afterwards."""

import pickle
from pathlib import Path

import torch
import yaml

from helpers.trainings import Launcher, Training, events

# In the environment, the arguments and the configuration; none of them is a word of any file for another reason.
ENVIRONMENT, ARGUMENT, CONFIGURED = "canary-in-environment", "canary-in-argument", "canary-in-configuration"
SET = "canary-in-override"
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
    for secret in (ENVIRONMENT, ARGUMENT, CONFIGURED, SET):
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
    remote = {"accessKey": sys.argv[1], "more": [{"passphrase": sys.argv[1], "bearer": sys.argv[1].encode()}]}

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


def test_security_s13_s25_a_loop_leaves_no_secret_on_its_disk(launcher: Launcher, tmp_path: Path) -> None:
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
import dataclasses, functools, json, sys, holdfast
from datasets import Dataset
from peft import LoraConfig
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM, TrainerCallback
from transformers.trainer_callback import ExportableState
from trl import SFTConfig, SFTTrainer

class Slotted:
    __slots__ = ("api_key", "size")

class Nested:
    def __init__(self):
        self.headers = [{"Authorization": secret}, (1, {"x-api-key": secret.encode()})]
        self.slotted = Slotted()
        self.slotted.api_key, self.slotted.size = secret, 3
        self.itself = self

@dataclasses.dataclass
class Own(SFTConfig):
    tracker_api_key: str = ""
    client_secret: str = ""
    hub_auth: str = ""
    apikey: str = ""
    passwd: str = ""
    passphrase: bytes = b""
    accessKey: str = ""
    bearer: str = ""
    credentials: object = None
    wandb: dict = None
    nested: object = None
    reward: object = None

class Tracker(TrainerCallback, ExportableState):
    def __init__(self, api_key):
        self.api_key, self.count, self.session = api_key, 0, {"cookie": api_key}

    def on_step_end(self, *args, **kwargs):
        self.count += 1

    def state(self):
        kept = {"count": self.count, "api_key": self.api_key, "session": self.session}
        return {"args": {"api_key": self.api_key}, "attributes": kept}

def scored(x, auth_token):
    return x

main = sys.modules["__main__"]  # for pickle, which looks for them there
main.Own, main.Nested, main.Slotted, main.scored = Own, Nested, Slotted, scored
_, model, secret, label, number = sys.argv
names = ("hub_token", "tracker_api_key", "client_secret", "hub_auth", "apikey", "passwd", "accessKey", "bearer")
args = Own(
    "out", max_steps=4 * int(number), save_steps=2, learning_rate=0.01 / int(number), run_name=label,
    report_to="none", use_cpu=True, disable_tqdm=True, eos_token="</s>", passphrase=secret.encode(),
    credentials={"user": secret, "list": [secret], "port": 5432}, wandb={"api_key": secret, "project": label},
    model_init_kwargs={"token": secret}, dataset_kwargs={"storage_options": {"password": secret}}, nested=Nested(),
    reward=functools.partial(scored, auth_token=secret), **dict.fromkeys(names, secret),
)
tracker = Tracker(secret)
LlamaForCausalLM(LlamaConfig.from_pretrained(model)).save_pretrained("base")
AutoTokenizer.from_pretrained(model).save_pretrained("base")
trainer = SFTTrainer(
    "base", args, train_dataset=Dataset.from_list([{"text": "def return import"}] * 16), callbacks=[tracker],
    peft_config=LoraConfig(r=2, target_modules=["q_proj"], task_type="CAUSAL_LM"),
)
holdfast.attach(trainer)
trainer.train(resume_from_checkpoint="auto")
trainer.save_model()
assert {getattr(args, name) for name in names} == {secret} and args.model_init_kwargs == {"token": secret}
assert args.nested.slotted.api_key == secret and args.nested.headers[0]["Authorization"] == secret
assert tracker.api_key == tracker.session["cookie"] == secret and tracker.count == 4 * int(number)
"""


def test_security_s13_s25_a_trainer_leaves_no_secret_on_its_disk(
    launcher: Launcher, tmp_path: Path, tiny: Path
) -> None:
    """Canaries in the environment and in a Trainer's arguments, under many names, in what is inside of them, in slots.

    And in the arguments of a callback that transformers writes into its state, and in those for model and data.
    """
    for number in ("1", "2"):
        process = launcher.start(
            tiny / "model", ARGUMENT + number, LABEL, number, cwd=tmp_path, program=TRAINER, **_SECRET_VARIABLES
        )  # the label is the run's name, which training_args.bin has
        assert process.wait() == 0, process.output
        require_none(tmp_path / "out", process.output)
    assert "learning_rate: 0.01 -> 0.005, from your configuration" in process.output


def test_security_s13_s25_a_configured_training_leaves_no_secret_on_its_disk(training: Training) -> None:
    """Canaries in the environment, in the configuration of `holdfast train` and in `--set`; its files are searched."""
    changes = {"wandb_api_key": CONFIGURED, "max_steps": 10, "save_strategy": "steps", "save_steps": 10}
    (training.folder / "config.yml").write_text(yaml.safe_dump({**training.config, **changes}))
    training.run.mkdir()
    training.trigger.write_text(LABEL)
    override = ("--set", f"wandb_entity_token={SET}")
    process = training.launcher.start("train", "config.yml", *override, cwd=training.folder, **_SECRET_VARIABLES)
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
