"""The damaged checkpoints of `tests/fixtures/damaged`, and what is to be said of each."""

import shutil
from dataclasses import dataclass
from pathlib import Path

DAMAGED = Path(__file__).parents[1] / "fixtures" / "damaged"


@dataclass(frozen=True)
class Exhibit:
    """One kind of damage.

    Args:
        kind: Its folder's name.
        problem: What is said of it, as far as it goes.
        code: The exit code of `holdfast verify`.
        good: Whether it is what its manifest says, so that only a resume minds.
    """

    kind: str
    problem: str
    code: int = 3
    good: bool = False

    def in_a_run(self, root: Path) -> Path:
        """Puts a copy into a run directory, together with what lies beside it."""
        shutil.copytree(DAMAGED / self.kind, root, symlinks=True, dirs_exist_ok=True)
        return root / "checkpoint-7"


EXHIBITS = (
    Exhibit("bit_flip", "optimizer.pt: its bytes have changed since it was written"),
    Exhibit("truncated_file", "model.safetensors: is 3 bytes long, was written with 7"),
    Exhibit("missing_file", "scheduler.pt: is missing"),
    Exhibit("extra_file", "it holds pytorch_model.bin, which its manifest does not list", good=True),
    Exhibit("linked_folder", "it holds adapter/adapter_model.safetensors, which its manifest does not list", good=True),
    Exhibit("no_manifest", "it has no MANIFEST.json: it was not finished, or not made by Holdfast"),
    Exhibit("foreign", "made by plain transformers", code=0),
    Exhibit("empty_manifest", "the manifest is cut short or is not one of ours"),
    Exhibit("truncated_manifest", "the manifest is cut short or is not one of ours"),
    Exhibit("altered_manifest", "the manifest was altered: its sha256 does not fit its content"),
    Exhibit("future_version", "the manifest is of format version 3, and this Holdfast reads versions 1 and 2"),
    Exhibit("past_version", "the manifest is of format version 0, and this Holdfast reads versions 1 and 2"),
    Exhibit("wrong_step", "its manifest is of step 8"),
    Exhibit("path_escape", "the manifest lists a file under a name that is not allowed: '../outside'"),
    Exhibit("absolute_path", "the manifest lists a file under a name that is not allowed: '/etc/hostname'"),
    Exhibit("case_collision", "the manifest lists a file twice"),
    Exhibit("wrong_digest", "model.safetensors: its bytes have changed since it was written"),
    Exhibit("wrong_size", "model.safetensors: is 7 bytes long, was written with 4,000,000"),
    Exhibit("claimed_size", "the manifest does not give model.safetensors a digest for each 4 MiB of it"),
    Exhibit("mixed_attempts", "model.safetensors: its bytes have changed since it was written"),
    Exhibit("deep_manifest", "the manifest is nested more than 50 levels deep"),
    Exhibit("huge_number", "the manifest's 'sequence' is out of range"),
    Exhibit("lacking_file", "it lacks rng_state.pth, without which nothing can be resumed", code=0, good=True),
    Exhibit("duplicate_file", "the manifest lists a file twice"),
    Exhibit("linked_file", "model.safetensors: cannot be read: Too many levels of symbolic links"),
    Exhibit("linked_manifest", "its MANIFEST.json cannot be read: Too many levels of symbolic links"),
    Exhibit("other_layout", "its layout is 'native', and this training reads 'transformers'", code=0, good=True),
)
