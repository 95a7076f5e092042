import re
from pathlib import Path

import pytest

from holdfast.layouts.image import MOST_JSON_BYTES, MOST_JSON_LEVELS
from holdfast.layouts.safetensors import header as tensor_headers
from holdfast.resume import choose
from holdfast.run import request
from holdfast.store import manifest
from holdfast.train.config import yaml as config_yaml

PAGE = " ".join((Path(__file__).parents[2] / "SECURITY.md").read_text().split())

LIMITS = {
    "manifest": (manifest.MOST_BYTES, r"manifests \| at most (\d+) MiB", 1 << 20),
    "files of a manifest": (manifest._MOST_FILES, r"MiB, ([\d,]+) files", 1),
    "levels of a manifest": (manifest._MOST_LEVELS, r"files, (\d+) levels", 1),
    "header of tensors": (tensor_headers._MOST_HEADER_BYTES, r"headers of at most (\d+) MB", 10**6),
    "JSON": (MOST_JSON_BYTES, r"JSON of a checkpoint \| at most (\d+) MiB", 1 << 20),
    "levels of JSON": (MOST_JSON_LEVELS, r"JSON of a checkpoint \| at most \d+ MiB and (\d+) levels", 1),
    "YAML": (config_yaml.MOST_BYTES, r"safe loader, at most (\d+) KiB", 1 << 10),
    "levels of YAML": (config_yaml.MOST_LEVELS, r"KiB, (\d+) levels", 1),
    "values of YAML": (config_yaml.MOST_VALUES, r"levels, ([\d,]+) values", 1),
    "trigger file": (request.MOST_LABEL_BYTES, r"what is more than (\d+) KiB", 1 << 10),
    "torch": (choose._SAFE_TORCH[1], r"only with torch 2\.(\d+) or newer", 1),
}


@pytest.mark.parametrize("what", LIMITS)
def test_security_s20_the_limits_that_the_page_promises_are_those_of_the_code(what: str) -> None:
    """Nothing: each number in SECURITY.md is compared with the constant."""
    limit, pattern, unit = LIMITS[what]
    found = re.search(pattern, PAGE)
    assert found, f"the page says nothing of {what}"
    assert int(found[1].replace(",", "")) * unit == limit


@pytest.mark.parametrize(
    "sentence",
    [
        "report a weakness privately",
        "The newest release is supported",
        "every file in a directory that others may write to",
        "A digest is integrity, not authenticity",
        "No defence against the same user",
    ],
)
def test_security_s20_the_page_says_what_is_trusted_what_is_not_and_where_to_report(sentence: str) -> None:
    """Nothing: SECURITY.md is read."""
    assert sentence in PAGE
