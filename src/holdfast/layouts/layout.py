"""The layouts: each as the rest of the program knows it. A new one is a file beside this, and an entry here.

The digests and the manifest are the same in all; which files there are, and who reads them, differs.
"""

from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass

from holdfast.layouts import native, native_weights, transformers
from holdfast.store.folder import Folder
from holdfast.store.verify import Report


@dataclass(frozen=True)
class Layout:
    """One layout.

    Args:
        name: Its name in the manifest.
        is_digested_while_loading: True where loading proves all bytes that it uses. Otherwise a checkpoint is verified
            before it is loaded.
        takes_foreign: True where checkpoints that were made without Holdfast can be of this layout.
        every_rank_writes: True where each rank writes a share of the files; otherwise rank 0 writes about all.
        has_own_json: True where all of its JSON is ours; otherwise it is that of others, as they write it.
        missing: Returns the files that a checkpoint lacks and that a resume needs, from the paths of its files and the
            number of processes that wrote it.
        why_refused: Returns, of some files that the manifest does not list, those that bar a resume because loading
            would read them, each with a line that says so.
        leave_weights: Writes the weights of a good checkpoint, open as it was verified, into another open directory.
    """

    name: str
    is_digested_while_loading: bool
    takes_foreign: bool
    every_rank_writes: bool
    has_own_json: bool
    missing: Callable[[Collection[str], int], list[str]]
    why_refused: Callable[[Iterable[str]], dict[str, str]]
    leave_weights: Callable[[Report, Folder, Folder], None]


NATIVE = Layout(
    name=native.NAME,
    is_digested_while_loading=True,
    takes_foreign=False,
    every_rank_writes=True,
    has_own_json=True,
    missing=native.missing,
    why_refused=lambda unlisted: {},  # what the manifest does not list is never read
    leave_weights=native_weights.leave_weights,
)
"""A plain loop's checkpoint."""

TRANSFORMERS = Layout(
    name=transformers.NAME,
    is_digested_while_loading=False,
    takes_foreign=True,
    every_rank_writes=False,
    has_own_json=False,
    missing=transformers.missing,
    why_refused=transformers.why_refused,
    leave_weights=transformers.leave_weights,
)
"""A Trainer's checkpoint."""

BY_NAME = {layout.name: layout for layout in (NATIVE, TRANSFORMERS)}
"""The layouts that this version knows. A manifest may name another."""
