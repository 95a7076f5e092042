import pytest

from holdfast import ranks
from holdfast.errors import UnsupportedError


@pytest.mark.parametrize("size", [None, "1"])
def test_one_process_goes_on(monkeypatch: pytest.MonkeyPatch, size: str | None) -> None:
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    if size is not None:
        monkeypatch.setenv("WORLD_SIZE", size)
    ranks.require_one()


@pytest.mark.parametrize("size", ["2", "64", "many"])
def test_several_are_refused_with_the_number_and_a_way_out(monkeypatch: pytest.MonkeyPatch, size: str) -> None:
    monkeypatch.setenv("WORLD_SIZE", size)
    with pytest.raises(UnsupportedError, match=f"WORLD_SIZE={size}") as raised:
        ranks.require_one()
    assert raised.value.exit_code == 2 and raised.value.hint
