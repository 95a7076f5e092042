"""The store of torch.distributed may end before the ranks do."""

import time

import pytest

from holdfast.errors import RanksError
from holdfast.ranks.channel import Channel
from ranks.real_store import RealStore


def test_a_store_that_is_gone_is_given_up_at_once_and_not_called_for_minutes() -> None:
    with RealStore() as store:
        client = store.client()
        channel = Channel(client, 1, 2, 30.0)
        channel.put("here", True)
    begun = time.monotonic()
    for asked in (channel, channel, Channel(client, 1, 2, 30.0)):
        with pytest.raises(RanksError, match="is gone"):
            asked.there(["here"])
    assert time.monotonic() - begun < 30
