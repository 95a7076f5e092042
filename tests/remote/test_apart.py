from pathlib import Path

import pytest

from holdfast.errors import ConfigError
from holdfast.remote.apart import require_apart, shares_disk
from holdfast.remote.location import location_of


def test_a_mirror_and_its_run_are_not_in_each_other(tmp_path: Path) -> None:
    run, link = tmp_path / "runs" / "one", tmp_path / "link"
    link.symlink_to(tmp_path / "runs")
    for place in (run, run / "mirror", link / "one" / "mirror"):
        with pytest.raises(ConfigError, match="is in the run directory"):
            require_apart(location_of(place.as_uri()), run)
    for place in (tmp_path, run.parent, link):
        with pytest.raises(ConfigError, match="is in the mirror"):
            require_apart(location_of(place.as_uri()), run)
    for url in ((tmp_path / "runs" / "one-mirror").as_uri(), (tmp_path / "mirror").as_uri(), f"s3://bucket{run}"):
        require_apart(location_of(url), run)


def test_a_mirror_on_the_same_disk_is_told_from_one_on_another(tmp_path: Path) -> None:
    assert shares_disk(location_of((tmp_path / "a" / "mirror").as_uri()), tmp_path / "b" / "run")
    assert not shares_disk(location_of("file:///proc/mirror"), tmp_path)
    assert not shares_disk(location_of("s3://bucket/run"), tmp_path)
