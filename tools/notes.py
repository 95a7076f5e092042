"""Prints the release notes of a version: its section of CHANGELOG.md.

    python -m tools.notes [VERSION]

Without a version: those of `holdfast.__version__`, or, while that has no section, of what is not released yet.
"""

import re
import sys
from collections.abc import Sequence
from pathlib import Path

import holdfast

CHANGELOG = Path(__file__).parents[1] / "CHANGELOG.md"
UNRELEASED = "Unreleased"
_HEADING = re.compile(r"^## \[(?P<version>[^\]]+)\](?: - (?P<date>\d{4}-\d{2}-\d{2}))?$", re.MULTILINE)


def sections(changelog: str) -> dict[str, str]:
    """Returns the text of each version, the newest first.

    Raises:
        ValueError: A heading of the second level is none of a version.
    """
    if wrong := [line for line in re.findall(r"^## .*$", changelog, re.MULTILINE) if not _HEADING.fullmatch(line)]:
        raise ValueError(f"CHANGELOG.md has a heading that names no version: {wrong[0]}")
    headings = list(_HEADING.finditer(changelog))
    ends = [*(heading.start() for heading in headings[1:]), len(changelog)]
    return {
        heading["version"]: changelog[heading.end() : end].strip() for heading, end in zip(headings, ends, strict=True)
    }


def notes(changelog: str, version: str) -> str:
    """Returns the release notes of a version, under its name.

    Raises:
        LookupError: The changelog does not know it.
    """
    known = sections(changelog)
    if version not in known:
        raise LookupError(f"CHANGELOG.md has no section [{version}]; it has {', '.join(known)}")
    return f"# Holdfast {version}\n\n{known[version]}\n"


def main(arguments: Sequence[str]) -> None:
    """Prints them."""
    changelog = CHANGELOG.read_text(encoding="utf-8")
    version = arguments[0] if arguments else holdfast.__version__
    if not arguments and version not in sections(changelog):
        print(f"{version} has no section of its own in CHANGELOG.md yet; its notes will be what is unreleased:\n")
        version = UNRELEASED
    try:
        print(notes(changelog, version), end="")
    except LookupError as error:
        sys.exit(str(error.args[0]))


if __name__ == "__main__":
    main(sys.argv[1:])
