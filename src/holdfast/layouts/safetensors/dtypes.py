"""The safetensors format's names of dtypes, and the notes of tensors that it cannot hold."""

from functools import cache
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

NOTES = "holdfast"
"""The key of the header's metadata under which the notes are."""

# The names of a sparse tensor's components: as torch's constructors take them.
COMPONENTS = {
    "sparse_coo": ("indices", "values"),
    "sparse_csr": ("crow_indices", "col_indices", "values"),
    "sparse_bsr": ("crow_indices", "col_indices", "values"),
    "sparse_csc": ("ccol_indices", "row_indices", "values"),
    "sparse_bsc": ("ccol_indices", "row_indices", "values"),
}


@cache
def codes() -> dict[str, "torch.dtype"]:
    """Returns the dtypes that the installed library reads, by the format's names for them."""
    import safetensors.torch

    return {code: dtype for code, dtype in safetensors.torch._TYPES.items() if dtype is not None}


@cache
def codes_by_dtype() -> dict["torch.dtype", str]:
    """Returns the format's names of the dtypes that the installed library writes."""
    return {dtype: code for code, dtype in codes().items()}
