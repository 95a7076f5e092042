"""The trainers of transformers that cannot be attached, and the checkpoints that they cannot go on from."""

import os
from importlib.metadata import version

from transformers import Trainer

from holdfast.errors import UnsupportedError
from holdfast.integrations.trainer import contract
from holdfast.integrations.trainer.own_writer import form_of
from holdfast.layouts import transformers as layout
from holdfast.ranks.launcher import world_size
from holdfast.resume.choose import ResumePoint
from holdfast.store import catalog
from holdfast.store.folder import Folder

ATTACHED = "_is_of_holdfast"
"""The name of the attribute by which the `train` of an attached trainer is known."""


def require_supported(trainer: Trainer) -> None:
    """Refuses what this version cannot commit, before anything is written.

    Args:
        trainer: A trainer that was given to `attach`.

    Raises:
        UnsupportedError: It is attached already, lacks what saves go by, saves in a way that cannot be committed, or
            trains alone in each of several processes.
    """
    if hasattr(trainer.train, ATTACHED):
        raise UnsupportedError(
            f"this {type(trainer).__name__} is attached already", hint="one call of attach holds for every train()"
        )
    contract.require(trainer)
    if getattr(trainer.args, "enable_jit_checkpoint", False):
        raise UnsupportedError(
            "this trainer has enable_jit_checkpoint set, which saves beside Holdfast and unknown to it",
            hint="leave it out: Holdfast does its work",
        )
    processes, joined = world_size(), trainer.args.world_size
    if processes != joined:
        raise UnsupportedError(
            f"a launcher has started {processes} processes, and this trainer trains with {joined}: each would train by"
            " itself, in one directory",
            hint="on a CPU they join with TrainingArguments(use_cpu=True); trainings that are to be apart need"
            " directories of their own, and no launcher",
        )


def require_readable(trainer: Trainer, chosen: ResumePoint | None) -> None:
    """Refuses a checkpoint of another form: a trainer loads what it knows of it, and starts the rest from zero.

    Args:
        trainer: The trainer.
        chosen: The checkpoint that it goes on from, if there is one.

    Raises:
        UnsupportedError: The checkpoint is of another form.
    """
    if chosen is None or chosen.manifest is None:
        return
    theirs = layout.form(file.path for file in chosen.manifest.files)
    if theirs != (ours := form_of(trainer)):
        raise UnsupportedError(
            f"{chosen.path} was written by a trainer that uses {theirs}, and this one uses {ours}",
            hint="resume with the same, or start anew from its weights",
        )
    if theirs == layout.PLAIN or chosen.folder.through != chosen.path:
        return
    with Folder.open(chosen.path.parent, follow=True) as beside:
        doubt = catalog.doubt_of(chosen.folder) or catalog.doubt_of(beside)
    if doubt is not None:
        raise UnsupportedError(
            f"{chosen.path} is unpickled as {theirs} has it, and it or its directory is {doubt}: without /proc nothing"
            " keeps it from being exchanged after it was checked",
            hint="mount /proc, or take the checkpoint into a directory where nobody else may write",
        )


def unsharded(trainer: Trainer) -> list[str]:
    """Returns a line where FSDP is asked for and accelerate leaves it out, which it does without a word on a CPU.

    It is known when the trainer is made: what shards has taken the plugin up by then.
    """
    wanted = trainer.args.fsdp_plugin_args is not None or os.environ.get("ACCELERATE_USE_FSDP", "").lower() == "true"
    if not wanted or trainer.is_fsdp_enabled or trainer.is_fsdp_xla_enabled:
        return []
    kind = trainer.accelerator.distributed_type.value
    return [
        f"FSDP is asked for, and accelerate {version('accelerate')} shards nothing here ({kind}): each process has all"
        " of the model, and checkpoints are plain ones"
    ]
