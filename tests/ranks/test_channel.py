"""The store of torch.distributed may end before the ranks do."""

import os
import signal
import time
from datetime import timedelta

import pytest
from torch.distributed import TCPStore  # type: ignore[attr-defined]

from holdfast.errors import RanksError
from holdfast.ranks.channel import Channel


def test_a_store_that_is_gone_is_given_up_at_once_and_not_called_for_minutes() -> None:
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        server = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
        os.write(write, str(server.port).encode())
        signal.pause()
    port = int(os.read(read, 16))
    client = TCPStore("127.0.0.1", port, is_master=False, timeout=timedelta(seconds=60))
    channel = Channel(client, 1, 2, 30.0)
    channel.put("here", True)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    begun = time.monotonic()
    for told in (channel, channel, Channel(client, 1, 2, 30.0)):
        with pytest.raises(RanksError, match="is gone"):
            told.there(["here"])
    assert time.monotonic() - begun < 30
