"""The faults and the threats that are counted, each in our words, and what is said of one that no test proves.

A test names its rows: `test_fault_07_what_holds_then`, `test_fault_37_38_...`, `test_security_s04_...`,
`test_fault_27_security_s07_...`. The first line of its docstring is how the fault is injected, and the property
"injected" is how often, where that is not once.
"""

import ast
import functools
import re
from dataclasses import dataclass
from pathlib import Path

TESTS = Path(__file__).parent.parent
_NAMED = re.compile(r"test_(?P<rows>(?:(?:fault_(?:\d\d_)+)|(?:security_(?:s\d\d_)+))+)(?P<outcome>\w+)")


@dataclass(frozen=True)
class Row:
    """One fault or threat.

    Attributes:
        what: What goes wrong.
        limit: What is not promised of it, or not built; a row without a test has one.
    """

    what: str
    limit: str = ""


@dataclass(frozen=True)
class Proof:
    """A test, as it stands in the sources."""

    name: str
    rows: tuple[str, ...]
    outcome: str
    how: str


def rows_of(name: str) -> tuple[str, ...]:
    """The rows that a test's name carries: "07" of part faults, "S04" of part threats."""
    found = _NAMED.fullmatch(name)
    return tuple(re.findall(r"S?\d\d", found["rows"].upper())) if found else ()


def outcome_of(name: str) -> str:
    """What a test's name says will hold."""
    found = _NAMED.fullmatch(name)
    return found["outcome"].replace("_", " ") if found else ""


@functools.cache
def proofs() -> tuple[Proof, ...]:
    """Every test of a row that the sources hold."""
    return tuple(
        Proof(node.name, rows, outcome_of(node.name), (ast.get_docstring(node) or "").partition("\n")[0])
        for path in sorted(TESTS.rglob("test_*.py"))
        for node in ast.parse(path.read_text()).body
        if isinstance(node, ast.FunctionDef) and (rows := rows_of(node.name))
    )


ROWS: dict[str, Row] = {
    "01": Row("SIGKILL at any system call of a save"),
    "02": Row("SIGKILL while old checkpoints are deleted, leftovers swept, or a run resumed"),
    "03": Row("The power fails at any point of a save, or right after the answer"),
    "04": Row("The power fails when the files are on the disk and the new name is not"),
    "05": Row("A crash during the recovery from a crash"),
    "06": Row("The disk is full: in a file of tensors, in the manifest, at the end"),
    "07": Row("The disk is full, and a library calls it something else"),
    "08": Row("No inodes are left"),
    "09": Row("A write that is cut short and reports no error"),
    "10": Row("fsync fails once and then succeeds"),
    "11": Row("A directory cannot be synced: because the file system does not know how, or because it fails"),
    "12": Row(
        "The rename goes to another file system, or to a name that is taken, or its reply is lost",
        "A rename that was done and reported as failed is answered as a failed save; the checkpoint is found by its"
        " manifest at the next start.",
    ),
    "13": Row("The file system turns read-only in the middle"),
    "14": Row("The storage hangs, or is slow"),
    "15": Row("A bit flips; a file is cut, missing, or one too many"),
    "16": Row("A manifest of an older or a newer format"),
    "17": Row("A step is saved twice, or a used directory is started in again"),
    "18": Row("Checkpoints with higher numbers, left by an older run"),
    "19": Row("One checkpoint is kept, and the save that would replace it fails"),
    "20": Row("A crash loop leaves one partial directory after another"),
    "21": Row("What writes in the background fails or dies"),
    "22": Row("A save is asked for while one runs; a hundred at once"),
    "23": Row("Training changes the state while it is being saved"),
    "24": Row("Memory runs out while a snapshot is staged; /dev/shm is tiny"),
    "25": Row("A trigger file that cannot be removed"),
    "26": Row("A trigger file that an earlier run left"),
    "27": Row("A trigger that is a directory, a FIFO, a link, huge, or half written"),
    "28": Row(
        "A trigger file that one rank sees and others see a minute later",
        "Rank 0's process alone looks for the file, so no two ranks can disagree; on a network file system it sees the"
        " file when its host does. No such file system was at hand.",
    ),
    "29": Row("A signal to one rank, to any rank, to the launcher"),
    "30": Row("SIGTERM from torchrun, which kills the data workers as well"),
    "31": Row(
        "SIGTERM in an evaluation, a warm-up, a compilation, or one long C call",
        "C code that keeps the interpreter's lock silences every thread of Python, ours included, until it returns.",
    ),
    "32": Row("A second SIGTERM or Ctrl+C while the first is served"),
    "33": Row("Ctrl+C reaches the whole foreground group"),
    "34": Row("A signal inside torch.save, logging, or a lock"),
    "35": Row("Signals outside the main thread: a notebook, an actor"),
    "36": Row("Somebody else has a handler for the signal"),
    "37": Row("A rank is killed: before ranks agree, before it has written, after it has reported"),
    "38": Row("Rank 0 is killed before or after the rename"),
    "39": Row("A rank is stopped for a minute, or slow"),
    "40": Row("The network between ranks is cut"),
    "41": Row("Ranks stand on different steps, or their data ends unevenly"),
    "42": Row("The launcher is killed and its ranks train on; others are started beside them"),
    "43": Row("The clock is set back a day, or forward a year"),
    "44": Row("At a resume the number of ranks, the model, the optimizer's order or a dtype is another"),
    "45": Row(
        "NaN or infinity in the weights",
        "Not looked for where a Trainer's own writer writes (DeepSpeed, FSDP through accelerate), in sparse tensors,"
        " and in state that an object of the user's keeps.",
    ),
    "46": Row("Tensors that were loaded from a path that is overwritten later"),
    "47": Row("A save while an evaluation has other weights swapped in, or in the middle of an accumulation"),
    "48": Row("Process 1 of a container; a home that cannot be written to; no shared memory; no /proc"),
    "49": Row("A request to a mirror is cut off, fails, loses its answer, or is done late or once more"),
    "50": Row("Two use one mirror at once: two trainings, a copied directory, a start, a pin, a deletion by hand"),
    "51": Row("The machine goes with its disk"),
    "52": Row("The mirror takes nothing for a while, and its process or the training is killed meanwhile"),
    "53": Row(
        "A mirror's store is busy, full, slow or refuses, its credentials run out, what it has was tampered with",
        "`make test-remote` has these, on servers of S3, Azure and GCS; no real cloud was run (docs/mirror.md).",
    ),
    "S01": Row("Pickle: a file of weights that runs code when it is loaded"),
    "S02": Row(
        "The .metadata of torch.distributed.checkpoint, which is a pickle",
        "The native layout has no such file and reads none. Where a Trainer's own FSDP layout has one, transformers"
        " reads it, and only from a directory whose manifest verifies; a foreign one of that form is refused.",
    ),
    "S03": Row("A safetensors header that is huge, overlaps, has holes, or overflows"),
    "S04": Row("A manifest that lies: paths that lead out, links, duplicates, huge numbers, deep JSON"),
    "S05": Row("A label or a name that would be a path, a command, or terminal control"),
    "S06": Row("Links planted in a directory that others may write to"),
    "S07": Row("Who may ask by trigger file"),
    "S08": Row("What is checked and what is opened are not the same file"),
    "S09": Row("What a trigger file says is run as a command"),
    "S10": Row("A process number that belongs to another process by now"),
    "S11": Row(
        "Archives that unpack outside their folder, or without end", "Not built: no archive is ever read or written."
    ),
    "S12": Row("Configuration that constructs objects"),
    "S13": Row("Secrets of the configuration or the environment on disk"),
    "S14": Row("Weights that everybody on the machine may read"),
    "S15": Row("Hard links, by which one edit damages several checkpoints"),
    "S16": Row(
        "A stranger's checkpoint dropped into the directory as the newest",
        "Who may write as this user can write a checkpoint with a good manifest; there are no signatures.",
    ),
    "S17": Row(
        "A dashboard that other sites can use",
        "Not built: there is no dashboard, and nothing of ours listens on a port.",
    ),
    "S18": Row(
        "The supply chain",
        "What the commit core and the verbs import is held by tests; exact versions are pinned in constraints.txt."
        " There are no releases yet, and so no provenance of theirs.",
    ),
    "S19": Row("A request that deletes history"),
    "S20": Row("What is promised and what is not, in SECURITY.md"),
    "S21": Row("A link, a pipe or another directory where a trainer writes, or a checkpoint is staged"),
    "S22": Row("A control directory that is exchanged in the middle of a run"),
    "S23": Row("A checkpoint that is exchanged between its verification and its use, or into which others may write"),
    "S24": Row("A file of a checkpoint that names files outside of it: an index of weights, the best of a Trainer"),
    "S25": Row(
        "Secrets inside of settings, or under names of every spelling, on disk",
        "The model's own files (its configuration, that of an adapter, of generating and of a tokenizer) are written by"
        " their libraries as they are, and state as it is: a secret that somebody puts in there is in there.",
    ),
    "S26": Row("A journal that somebody else has made, or exchanged, and what its lines say"),
    "S27": Row("Directories and JSON that are too deep, and numbers of endless digits"),
    "S28": Row("Numbers of commits and of steps that leave no greater one"),
    "S29": Row("Terminal control, forged lines and endless length in any text of any file"),
    "S30": Row("A umask that lets everybody write to output_dir"),
    "S31": Row("A file of the user's that somebody gives the trigger's name"),
    "S32": Row("Files with a manifest that fits, at which whoever reads them ends in a traceback"),
}
