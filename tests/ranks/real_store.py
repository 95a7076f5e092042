"""The store of torch.distributed, in a process of its own."""

import os
import signal
from datetime import timedelta
from typing import Any, Self

from torch.distributed import TCPStore  # type: ignore[attr-defined]


class RealStore:
    """A store that ends with the context.

    Not in the process of the tests: it has a thread, and a fork of that process that clears it away has not.
    """

    def __enter__(self) -> Self:
        read, write = os.pipe()
        self._child = os.fork()
        if self._child == 0:
            server = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
            os.write(write, str(server.port).encode())
            signal.pause()
        self._port = int(os.read(read, 16))
        os.close(read)
        os.close(write)
        return self

    def __exit__(self, *exception: object) -> None:
        os.kill(self._child, signal.SIGKILL)
        os.waitpid(self._child, 0)

    def client(self) -> Any:
        """One end of it."""
        return TCPStore("127.0.0.1", self._port, is_master=False, timeout=timedelta(seconds=60))
