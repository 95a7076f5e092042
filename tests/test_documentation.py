"""Every command and every Python block of the README and the pages is run, in the order a reader meets them."""

import re
import shlex
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from helpers.trainings import Launcher, Process, Training
from helpers.waiting import wait_until

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]

# How a test says that `make test` runs less of it, or nothing.
LEFT_OUT = re.compile(r"from helpers\.full import|HOLDFAST_FULL")

# What a loop of the README has before it.
LOOP = """
import torch
from types import SimpleNamespace
inner = torch.nn.Linear(4, 1)
class Model(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.inner = inner
    def forward(self, batch):
        return SimpleNamespace(loss=self.inner(batch).square().mean())
model = Model()
optimizer = torch.optim.AdamW(model.parameters())
scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 100)
loader = torch.utils.data.DataLoader(torch.randn(40, 4), batch_size=4, shuffle=True)
"""


def blocks(page: Path, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", page.read_text(), re.M | re.S)


def commands(page: Path) -> list[str]:
    """The commands of a page, one each; a quote may go over lines."""
    found, command = [], ""
    for line in "".join(blocks(page, "bash")).splitlines():
        command += line + "\n"
        try:
            words = shlex.split(command, comments=True)
        except ValueError:
            continue
        if words:
            found.append(command.strip())
        command = ""
    return found


class Reader:
    """Somebody who types what the pages say, into a folder where a tiny training stands for the examples."""

    def __init__(self, training: Training) -> None:
        self.training = training
        self.run = training.folder / "outputs" / "quickstart"
        self.process: Process | None = None
        (training.folder / "examples").mkdir()
        training.start("--set", "max_steps=1", output_dir="./outputs/quickstart").wait()
        (training.folder / "config.yml").rename(training.folder / "examples" / "quickstart.yml")

    def types(self, command: str) -> None:
        words = shlex.split(command, comments=True)
        if words[0] == "make":
            subprocess.run(["make", "--dry-run", *words[1:]], cwd=ROOT, check=True, capture_output=True)
        elif words[:2] == ["pip", "install"]:
            extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
            assert all(extra in extras for word in words[2:] for extra in re.findall(r"\[(\w+)\]", word))
        elif words[:2] == ["python", "examples/make_data.py"]:
            assert (ROOT / words[1]).exists()
        elif words[:2] == ["holdfast", "drill"]:  # the reader's own program; tests/drill has real ones
            options = words[2 : words.index("--")]
            subprocess.run(
                [sys.executable, "-m", "holdfast", "drill", *options, "--help"], check=True, capture_output=True
            )
        elif words[:2] == ["holdfast", "train"]:
            self.train(*words[1:])
        else:
            self.shell(command)

    def train(self, *arguments: str) -> None:
        self.end()
        self.process = self.training.launcher.start(*arguments, cwd=self.training.folder)
        self.process.wait_for("***** Running training *****")

    def shell(self, command: str) -> None:
        if "MANIFEST.json" in command:
            (checkpoint, *_) = self.run.glob("checkpoint-*")
        folder = checkpoint if "MANIFEST.json" in command else self.training.folder
        path = f"{Path(sys.executable).parent}:/usr/local/bin:/usr/bin:/bin"
        done = subprocess.run(
            ["bash", "-euo", "pipefail", "-c", command],
            cwd=folder,
            env={"PATH": path},
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert done.returncode == 0, f"{command}\n{done.stdout}{done.stderr}"
        if "axolotl_checkpoint.save" in command:
            wait_until(lambda: not (self.run / "axolotl_checkpoint.save").exists())

    def end(self) -> None:
        if self.process is not None and self.process.code is None:
            self.training.launcher.start("stop", self.run, cwd=self.training.folder)
            self.process.wait()


@pytest.mark.timeout(180)
def test_every_command_of_the_readme_works_in_its_order(training: Training) -> None:
    reader = Reader(training)
    typed = commands(ROOT / "README.md")
    assert len(typed) >= 12
    for command in typed:
        reader.types(command)
    reader.end()


@pytest.mark.parametrize("page", PAGES[1:], ids=lambda page: page.name)
def test_every_command_of_the_other_pages_works(training: Training, page: Path) -> None:
    typed = commands(page)
    if not typed:
        return
    if any("xxhsum" in command for command in typed) and not Path("/usr/bin/xxhsum").exists():
        pytest.skip("the page's commands need xxhsum (Debian's package xxhash)")
    reader = Reader(training)
    (
        reader.training.launcher.start(
            "train",
            "examples/quickstart.yml",
            "--set",
            "max_steps=3",
            "--set",
            "save_strategy=epoch",
            cwd=training.folder,
        )
    ).wait()
    for command in typed:
        reader.types(command)
    reader.end()


def test_the_python_of_the_readme_works(tmp_path: Path, tiny: Path, launcher: Launcher) -> None:
    snippet, *_ = blocks(ROOT / "README.md", "python")
    program = f"""
import torch
from transformers import LlamaConfig, LlamaForCausalLM, Trainer, TrainingArguments
rows = [{{"input_ids": torch.tensor([1, 2, 3]), "labels": torch.tensor([1, 2, 3])}}] * 8
args = TrainingArguments("out", max_steps=3, save_steps=2, report_to="none", use_cpu=True)
trainer = Trainer(LlamaForCausalLM(LlamaConfig.from_pretrained({str(tiny / "model")!r})), args, train_dataset=rows)
{snippet}
"""
    process = launcher.start(cwd=tmp_path, program=program)
    assert process.wait() == 0, process.output
    assert (tmp_path / "out" / "checkpoint-3" / "MANIFEST.json").exists()


def test_the_plain_loop_of_the_readme_works_and_resumes(tmp_path: Path, launcher: Launcher) -> None:
    _, snippet, *_ = blocks(ROOT / "README.md", "python")
    program = f"""
{LOOP}
{snippet.replace("10_000", "25").replace("save_steps=500", "save_steps=10")}
"""
    assert launcher.start(cwd=tmp_path, program=program).wait() == 0
    again = launcher.start(cwd=tmp_path, program=program.replace("until=25", "until=30"))
    assert again.wait() == 0 and "resumed from runs/gpt/checkpoint-25: step 25, epoch 2, 5 batches" in again.output


def test_the_loop_with_accelerate_of_the_readme_works_and_resumes(tmp_path: Path, launcher: Launcher) -> None:
    (snippet,) = (block for block in blocks(ROOT / "README.md", "python") if "accelerator.prepare" in block)
    program = f"""
{LOOP}
from accelerate import Accelerator
from holdfast import Checkpointer
accelerator = Accelerator(cpu=True, gradient_accumulation_steps=4)
{snippet.replace("10_000", "5")}
"""
    assert launcher.start(cwd=tmp_path, program=program).wait() == 0
    again = launcher.start(cwd=tmp_path, program=program.replace("until=5", "until=7"))
    assert again.wait() == 0 and "resumed from runs/small/checkpoint-5: step 5, epoch 1, 8 batches" in again.output


def test_links_between_pages_lead_somewhere() -> None:
    for page in [*PAGES, ROOT / "SECURITY.md", ROOT / "CHANGELOG.md"]:
        for target in re.findall(r"\]\((?!https?:)([^)#]+)", page.read_text()):
            assert (page.parent / target).exists(), f"{page.name} links to {target}"


def test_contributing_lists_the_tests_that_make_test_leaves_to_test_full() -> None:
    tests = Path(__file__).parent
    own = str(Path(__file__).relative_to(tests))
    moved = {str(path.relative_to(tests)) for path in tests.rglob("test_*.py") if LEFT_OUT.search(path.read_text())}
    listed = re.findall(r"^\| `(\S+\.py)` \|", (ROOT / "CONTRIBUTING.md").read_text(), re.M)
    assert listed == sorted(moved - {own})


def test_the_page_of_mirrors_has_what_went_wrong_elsewhere_and_its_tests() -> None:
    text = (ROOT / "docs" / "mirror.md").read_text().partition("\n## What has gone wrong with other mirrors\n")[2]
    rows = re.findall(r"^\| .* \| .* \| (.*) \|$", text.partition("\n## ")[0], re.M)[1:]
    named = [
        (kind, name)
        for row in rows
        for kind, names in re.findall(r"(\w+): ([^;]*)", row)
        for name in re.findall(r"`(\w+)`", names)
    ]
    for kind, folder in (("store", "remote"), ("training", "processes")):
        module = Path(__file__).parent / folder / "test_failures_elsewhere.py"
        tests = re.findall(r"^def (test_\w+)", module.read_text(), re.M)
        assert sorted(name for of, name in named if of == kind) == sorted(tests)
