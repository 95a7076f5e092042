"""A file as `torch.save` writes it, to be filled from live tensors: its skeleton here, its storages as they stream by.

`torch.serialization.skip_data` writes everything but the storages' bytes. torch does not look at the zip's checksums of
them, and leaves them out; the manifest's digest covers the file.
"""

import pickle
from pathlib import Path
from typing import TYPE_CHECKING, Any

from holdfast.layouts.tensor_file import Image

if TYPE_CHECKING:
    import torch


def image(path: str, content: Any, scratch: Path) -> Image:
    """The file that `torch.save(content, path)` would write.

    Args:
        path: Where it goes inside the checkpoint.
        content: What is saved. Its tensors are not copied.
        scratch: A file that may be made and is removed again; it has the size of the result, and no blocks on disk.
    """
    import torch

    storages = _storages_in_order(content)
    try:
        with torch.serialization.skip_data():
            torch.save(content, scratch)
        with scratch.open("rb") as skeleton:
            reader: Any = torch._C.PyTorchFileReader(str(scratch))
            pieces: list[bytes | torch.Tensor] = []
            place = 0
            for number, storage in enumerate(storages):
                if storage.nbytes() == 0:
                    continue
                begin = reader.get_record_offset(f"data/{number}")
                skeleton.seek(place)
                pieces += [skeleton.read(begin - place), _as_bytes(storage)]
                place = begin + storage.nbytes()
            skeleton.seek(place)
            pieces.append(skeleton.read())
    finally:
        scratch.unlink(missing_ok=True)
    return Image(path, tuple(pieces))


def _as_bytes(storage: "torch.UntypedStorage") -> "torch.Tensor":
    import torch

    return torch.empty(0, dtype=torch.uint8, device=storage.device).set_(storage)


def _storages_in_order(content: Any) -> list["torch.UntypedStorage"]:
    """The storages in the order in which torch numbers them: as a pickler comes by them."""
    import torch

    found: dict[int, torch.UntypedStorage] = {}

    class Finder(pickle.Pickler):
        def persistent_id(self, obj: Any) -> Any:
            if isinstance(obj, torch.storage.TypedStorage):
                obj = obj._untyped_storage
            if not isinstance(obj, torch.UntypedStorage):
                return None
            found.setdefault(obj._cdata, obj)
            return "storage"

    class Nowhere:
        def write(self, data: Any) -> int:
            return len(data)

    Finder(Nowhere(), protocol=2).dump(content)
    return list(found.values())
