"""One data set, read through `datasets` as its author wrote it."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from holdfast.errors import HoldfastError

if TYPE_CHECKING:
    from holdfast.train.config.fields import DatasetConfig

_BUILDERS = {".jsonl": "json", ".json": "json", ".parquet": "parquet", ".csv": "csv", ".txt": "text"}
_TEXT_COLUMNS = {"completion": ("text",), "pretrain": ("text",), "alpaca": ("instruction", "output")}


def read(source: "DatasetConfig") -> Any:
    """Reads one data set.

    Returns:
        A `datasets.Dataset` with the columns that its author gave it.

    Raises:
        HoldfastError: It cannot be read.
    """
    from datasets import load_dataset, load_from_disk
    from datasets.exceptions import DatasetsError

    path = Path(source.path)
    local = path.exists() or source.path.startswith((".", "/")) or path.suffix in _BUILDERS
    if local and not path.exists():
        raise HoldfastError(
            f"datasets: there is no file or folder {source.path!r}",
            hint=f"Relative paths start at the working directory, {Path.cwd()}.",
        )
    split = source.split or "train"
    if (path / "dataset_dict.json").is_file():
        path /= split
    if (path / "dataset_info.json").is_file():  # a table that `save_to_disk` wrote
        return load_from_disk(str(path))
    options: dict[str, Any] = {"data_files": list(source.data_files)} if source.data_files else {}
    if path.is_file():
        if path.suffix not in _BUILDERS:
            raise HoldfastError(f"datasets: {source.path!r} is none of {', '.join(_BUILDERS)}")
        options["data_files"] = str(path.resolve())
    files = options.get("data_files") or (path.rglob("*") if path.is_dir() else ())
    kinds = {_BUILDERS.get(Path(file).suffix) for file in ([files] if isinstance(files, str) else files)}
    builder = _BUILDERS[path.suffix] if path.is_file() else source.path
    try:
        return load_dataset(builder, source.name, split=split, **options, **_verbatim(source, kinds))
    except (OSError, ValueError, StopIteration, DatasetsError) as error:
        cause = error.__cause__ or error
        reason = str(cause).strip().splitlines()[0] if str(cause).strip() else "there is nothing in it"
        raise HoldfastError(
            f"datasets: cannot read {source.path!r}: {reason}",
            hint=None if local else "It was looked for on the Hugging Face hub. A local file needs its suffix.",
        ) from error


def _verbatim(source: "DatasetConfig", kinds: set[str | None]) -> dict[str, Any]:
    """Returns the options that make the readers of `datasets` hand over a text as it was written."""
    kinds = kinds - {None}
    if kinds == {"text"}:
        return {"sample_by": "document"}  # by line, it would drop the line breaks
    if kinds == {"csv"}:
        # Otherwise 007 becomes the number 7, and the word null nothing at all.
        columns = (*_TEXT_COLUMNS.get(source.type, ()), "input")
        return {"keep_default_na": False, "converters": dict.fromkeys(columns, str)}
    return {}


def check_columns(source: "DatasetConfig", raw: Any) -> None:
    """Refuses a data set that lacks what its type needs, or that is empty.

    Raises:
        HoldfastError: A column is missing, or there is no row.
    """
    wanted = _TEXT_COLUMNS.get(source.type) or (source.field_messages or "messages",)
    missing = [column for column in wanted if column not in raw.column_names]
    if missing:
        raise HoldfastError(
            f"datasets: {source.path!r} has no column {' or '.join(map(repr, missing))}, which the type "
            f"{source.type} needs; it has {', '.join(map(repr, raw.column_names))}",
            hint="`field_messages` names the column of the messages." if source.type == "chat_template" else None,
        )
    if not len(raw):
        raise HoldfastError(f"datasets: {source.path!r} is empty")
