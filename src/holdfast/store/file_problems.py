"""What is said of a file that is not what the manifest says.

Standard library alone.
"""

from holdfast.store.manifest import File


def size_problem(file: File, size: int) -> str:
    """What is said of a file of another size."""
    return f"{file.path}: is {size:,} bytes long, was written with {file.size:,}"


def unreadable(file: File, error: OSError) -> str:
    """What is said of a file that cannot be read."""
    if isinstance(error, FileNotFoundError):
        return f"{file.path}: is missing"
    return f"{file.path}: cannot be read: {error.strerror or error}"


def changed(file: File) -> str:
    """What is said of a file of another digest."""
    return f"{file.path}: its bytes have changed since it was written"
