"""What a Trainer keeps outside of its model comes back: a run that was cut ends as one that was not."""

from pathlib import Path

from helpers.trainings import Launcher

COMMON = """
import json, shutil, sys, torch, holdfast
from pathlib import Path
from transformers import LlamaConfig, LlamaForCausalLM, Trainer, TrainerCallback, TrainingArguments

class StopAt(TrainerCallback):
    def __init__(self, step):
        self.step = step
    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step == self.step:
            control.should_training_stop = control.should_save = True

def llama():
    torch.manual_seed(0)
    return LlamaForCausalLM(LlamaConfig.from_pretrained(sys.argv[1], attention_dropout=0.0))

def losses(make, run, stop=None, resume=None):
    trainer = make(run)
    if stop:
        trainer.add_callback(StopAt(stop))
    holdfast.attach(trainer)
    trainer.train(resume_from_checkpoint=resume)
    return {entry["step"]: entry["loss"] for entry in trainer.state.log_history if "loss" in entry}

def compare(name, make, steps, cut):
    whole = losses(make, name + "-whole")
    losses(make, name + "-cut", stop=cut)
    resumed = losses(make, name + "-cut", resume="auto")
    requires = json.loads(Path(f"{name}-cut/checkpoint-{cut}/MANIFEST.json").read_text()).get("requires")
    assert len(whole) == steps
    print(name, "same" if whole == resumed else f"differ: {whole} {resumed}", requires, flush=True)

common = dict(
    per_device_train_batch_size=4, logging_steps=1, report_to="none", disable_tqdm=True, use_cpu=True, bf16=False,
    learning_rate=1e-2, save_steps=100,
)
"""

OWN = (
    COMMON
    + """
class Ema(TrainerCallback):
    def on_train_begin(self, args, state, control, model=None, **kwargs):
        self.shadow = {name: weight.detach().clone() for name, weight in model.named_parameters()}
    def on_step_end(self, args, state, control, model=None, **kwargs):
        for name, weight in model.named_parameters():
            self.shadow[name].data.lerp_(weight.data, 0.1)

class Pulled(Trainer):
    def compute_loss(self, model, inputs, **kwargs):
        (ema,) = (callback for callback in self.callback_handler.callbacks if isinstance(callback, Ema))
        pull = sum(((weight - ema.shadow[name]) ** 2).sum() for name, weight in model.named_parameters())
        return super().compute_loss(model, inputs, **{**kwargs, "return_outputs": False}) + pull

rows = [{"input_ids": torch.tensor([1, 2, n]), "labels": torch.tensor([1, 2, n])} for n in range(3, 15)] * 2
def own(run):
    trainer = Pulled(llama(), TrainingArguments(run, max_steps=7, **common), train_dataset=rows, callbacks=[Ema()])
    trainer.teacher = llama()
    return trainer

compare("own", own, 7, 4)
files = {path.name: path.stat().st_size for path in Path("own-cut/checkpoint-4").iterdir()}
print("carried", files["carried.safetensors"] < 1.5 * files["model.safetensors"], flush=True)
from transformers import AutoModelForCausalLM
AutoModelForCausalLM.from_pretrained("own-cut/checkpoint-4")
plain = own("own-cut")
plain.train(resume_from_checkpoint="own-cut/checkpoint-4")
print("plain", plain.state.global_step, flush=True)
"""
)

LOSS = (
    COMMON
    + """
class Head(torch.nn.Module):
    def __init__(self, model):
        super().__init__()
        self.model = model
        self.head = torch.nn.Linear(16, 2)

class WithLoss(Trainer):
    def __init__(self, run):
        model = llama()
        self.loss = Head(model)
        super().__init__(model, TrainingArguments(run, max_steps=7, **common), train_dataset=rows)
    def create_optimizer(self):
        weights = [*self.model.parameters(), *self.loss.head.parameters()]
        self.optimizer = torch.optim.AdamW(weights, self.args.learning_rate)
        return self.optimizer
    def compute_loss(self, model, inputs, return_outputs=False, **kwargs):
        output = model(**inputs, output_hidden_states=True)
        return output.loss + self.loss.head(output.hidden_states[-1][:, -1]).square().mean()

rows = [{"input_ids": torch.tensor([1, 2, n]), "labels": torch.tensor([1, 2, n])} for n in range(3, 15)] * 2
compare("loss", WithLoss, 7, 4)
hidden = WithLoss("hidden")
kept = hidden.loss
def create_optimizer():
    hidden.optimizer = torch.optim.AdamW([*hidden.model.parameters(), *kept.head.parameters()])
    return hidden.optimizer
hidden.create_optimizer = create_optimizer
del hidden.loss
holdfast.attach(hidden)
try:
    hidden.train()
except holdfast.errors.UnsupportedError as error:
    print("refused:", error, error.hint, Path("hidden/checkpoint-7").exists())
"""
)

TRL = (
    COMMON
    + """
import datasets, os
from transformers import AutoTokenizer
from trl import DPOConfig, DPOTrainer, GRPOConfig, GRPOTrainer
tokenizer = AutoTokenizer.from_pretrained(sys.argv[1])
words = ["def", "return", "import", "self", "class", "for", "while", "value"]

def dpo(run):
    rows = {
        "prompt": [f"{word} " for word in words] * 3, "chosen": ["key list"] * 24,
        "rejected": [f"{word} dict" for word in words] * 3,
    }
    args = DPOConfig(run, max_steps=7, sync_ref_model=True, ref_model_sync_steps=2, **common)
    data = datasets.Dataset.from_dict(rows)
    return DPOTrainer(llama(), llama(), args=args, train_dataset=data, processing_class=tokenizer)

def grpo(run):
    args = GRPOConfig(
        run, max_steps=7, num_generations=4, max_completion_length=4, beta=0.0, steps_per_generation=4,
        num_iterations=2, **common,
    )
    data = datasets.Dataset.from_dict({"prompt": [f"{a} {b}" for a in words for b in words[:3]]})
    def reward(completions, **kwargs):
        return [float(len(set(text.split()))) for text in completions]
    return GRPOTrainer(llama(), reward, args=args, train_dataset=data, processing_class=tokenizer)

Path("victim").write_text("precious")
for name in ("dpo-cut", "grpo-cut"):
    Path(name).mkdir()
Path("dpo-cut/README.md").symlink_to(Path("victim").absolute())
os.mkfifo("grpo-cut/README.md")
compare("dpo", dpo, 7, 5)
compare("grpo", grpo, 7, 5)
for name in ("dpo-cut", "grpo-cut"):
    card = Path(name, "README.md")
    print("card", not card.is_symlink() and f"# Model Card for {name}" in card.read_text(), flush=True)
print("victim", Path("victim").read_text(), flush=True)
"""
)


def test_an_average_of_a_callback_comes_back_and_a_teacher_that_stands_still_costs_nothing(
    launcher: Launcher, tmp_path: Path, tiny: Path
) -> None:
    process = launcher.start(tiny / "model", cwd=tmp_path, program=OWN)
    assert process.wait() == 0, process.output
    assert "own same ['carried']" in process.output, process.output
    assert "carried True" in process.output and "plain 7" in process.output


def test_trl_goes_on_with_its_reference_model_and_with_what_it_has_generated(
    launcher: Launcher, tmp_path: Path, tiny: Path
) -> None:
    process = launcher.start(tiny / "model", cwd=tmp_path, program=TRL)
    assert process.wait() == 0, process.output
    assert "dpo same ['carried']" in process.output, process.output
    assert "grpo same ['carried', 'trainer_data']" in process.output, process.output
    # TRL leaves a card in output_dir before each save, by path.
    assert process.output.count("card True") == 2 and "victim precious" in process.output, process.output


def test_a_loss_with_weights_of_its_own_comes_back_and_one_that_cannot_be_reached_is_refused(
    launcher: Launcher, tmp_path: Path, tiny: Path
) -> None:
    process = launcher.start(tiny / "model", cwd=tmp_path, program=LOSS)
    assert process.wait() == 0, process.output
    # A Trainer zeroes the gradients of its model, and no others.
    assert "loss same ['carried', 'gradients']" in process.output, process.output
    assert "refused: the optimizer updates 2 weights (the first: [2, 16])" in process.output
    assert "trainer.loss = loss" in process.output
