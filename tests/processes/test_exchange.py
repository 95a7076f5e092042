"""Adapters: plain transformers resumes our checkpoints, and ours resumes those of plain transformers."""

import hashlib
from pathlib import Path

from helpers.trainings import Launcher, Process

# 64 rows in batches of 2: an epoch has 32 steps, and step 20 is in the middle of it. Dropout is on in the adapter.
LORA = """
import sys, torch
from peft import LoraConfig, get_peft_model
from transformers import LlamaConfig, LlamaForCausalLM, Trainer, TrainingArguments

model_folder, resume, ours = sys.argv[1], sys.argv[2], sys.argv[3] == "ours"

class Rows(torch.utils.data.Dataset):
    def __len__(self):
        return 64
    def __getitem__(self, i):
        x = torch.tensor([1 + (i * 3 + k) % 12 for k in range(8)])
        return {"input_ids": x, "labels": x}

torch.manual_seed(0)
model = get_peft_model(
    LlamaForCausalLM(LlamaConfig.from_pretrained(model_folder)),
    LoraConfig(r=4, lora_alpha=8, lora_dropout=0.1, target_modules=["q_proj", "v_proj"], modules_to_save=["lm_head"]),
)
args = TrainingArguments(
    "out", max_steps=40, save_steps=10, per_device_train_batch_size=2, report_to="none", use_cpu=True,
    disable_tqdm=True, logging_steps=3, seed=3, learning_rate=1e-2,
)
trainer = Trainer(model, args, train_dataset=Rows())
if ours:
    import holdfast
    holdfast.attach(trainer)
trainer.train(resume_from_checkpoint=resume or None)
model.save_pretrained("final")
assert ("holdfast.integrations.trainer.attach" in sys.modules) == ours
"""


def start(launcher: Launcher, folder: Path, tiny: Path, side: str, resume: Path | str = "") -> Process:
    folder.mkdir(exist_ok=True)
    return launcher.start(tiny / "model", resume, side, cwd=folder, program=LORA)


def adapter(process: Process, folder: Path) -> str:
    assert process.wait() == 0, process.output
    return hashlib.sha256((folder / "final" / "adapter_model.safetensors").read_bytes()).hexdigest()


def test_each_side_resumes_the_adapters_of_the_other_to_the_same_bytes(
    launcher: Launcher, tmp_path: Path, tiny: Path
) -> None:
    folders = {side: tmp_path / side for side in ("plain", "ours")}
    whole = {side: start(launcher, folder, tiny, side) for side, folder in folders.items()}
    plain_end, ours_end = (adapter(whole[side], folders[side]) for side in ("plain", "ours"))
    assert ours_end == plain_end

    there, here = (folder / "out" / "checkpoint-20" for folder in folders.values())
    assert {path.name for path in here.iterdir()} == {path.name for path in there.iterdir()} | {"MANIFEST.json"}
    crossed = {
        "plain": start(launcher, tmp_path / "plain from ours", tiny, "plain", here),
        "ours": start(launcher, tmp_path / "ours from plain", tiny, "ours", there),
    }
    assert adapter(crossed["plain"], tmp_path / "plain from ours") == plain_end
    assert adapter(crossed["ours"], tmp_path / "ours from plain") == plain_end
    assert "was made without Holdfast" in crossed["ours"].output
    for side in ("plain from ours", "ours from plain"):
        saved = {path.name for path in (tmp_path / side / "out").glob("checkpoint-*")}
        assert saved == {"checkpoint-30", "checkpoint-40"}, "it did not go on from step 20"
