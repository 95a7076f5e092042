"""Ranks on two hosts whose network is cut: nothing is published, nobody hangs, and it goes on when it is mended."""

import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from helpers.full import in_full
from helpers.support import holdfast
from helpers.trainings import events
from helpers.waiting import wait_until
from ranks.conftest import Ranks

HOSTS = tuple(f"holdfast-{os.getpid()}-{number}" for number in range(2))
NETWORK = "10.213.77"
LIMITS = {"rank_timeout_seconds": 2.0}

# Before anything else: this process is on the host of its rank.
ON_ITS_HOST = """
import ctypes, os
rank = os.environ["RANK"]
libc = ctypes.CDLL(None, use_errno=True)
assert libc.setns(os.open(f"/run/netns/{HOST}-{rank}", os.O_RDONLY), 0x40000000) == 0, ctypes.get_errno()
os.environ["GLOO_SOCKET_IFNAME"] = "wire"
"""

# Rank 1 stands between the agreement and its share, until there is a file "written".
STANDS_BEFORE_IT_WRITES = """
import time
from pathlib import Path
from holdfast.engine.follower import Follower
original = Follower._write
def waiting(self, *args):
    print("about to write", flush=True)
    while not Path("written").exists():
        time.sleep(0.01)
    return original(self, *args)
Follower._write = waiting
"""


def ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True, capture_output=True)


def cut() -> None:
    ip("-n", HOSTS[0], "link", "set", "wire", "down")


def mend() -> None:
    ip("-n", HOSTS[0], "link", "set", "wire", "up")


@pytest.fixture
def network() -> Iterator[None]:
    """Two hosts, as far as the network can tell, with a wire between them."""
    if os.geteuid() or shutil.which("ip") is None:
        pytest.skip("SKIPPED, NOT PASSED: to cut a network takes root and iproute2")
    for host in HOSTS:
        if Path("/run/netns", host).exists():
            ip("netns", "del", host)
    try:
        for host in HOSTS:
            ip("netns", "add", host)
        ip("link", "add", "wire", "netns", HOSTS[0], "type", "veth", "peer", "name", "wire", "netns", HOSTS[1])
    except subprocess.CalledProcessError as error:
        pytest.skip(f"SKIPPED, NOT PASSED: no network can be made here: {error.stderr!r}")
    for number, host in enumerate(HOSTS):
        ip("-n", host, "address", "add", f"{NETWORK}.{number + 1}/24", "dev", "wire")
        ip("-n", host, "link", "set", "wire", "up")
        ip("-n", host, "link", "set", "lo", "up")
    yield
    for host in HOSTS:
        ip("netns", "del", host)


@pytest.mark.usefixtures("network")
@pytest.mark.parametrize(
    "when", [pytest.param("in the agreement", marks=in_full("it is cut in the write")), "in the write"]
)
def test_fault_40_a_cut_network_fails_the_save_and_training_goes_on_when_it_is_mended(ranks: Ranks, when: str) -> None:
    """The link between two network namespaces is taken down in the agreement, or in the write."""
    program = ON_ITS_HOST.replace("{HOST}", HOSTS[0].removesuffix("-0"))
    program += STANDS_BEFORE_IT_WRITES if when == "in the write" else ""
    job = ranks.start(program=program, address=f"{NETWORK}.1", until=100_000, pause=0.05, settings=LIMITS)
    ranks.wait_for_step(3)
    if when == "in the write":
        assert holdfast("save", ranks.run).returncode == 0
        job.processes[1].wait_for("about to write")
    cut()
    if when == "in the agreement":
        assert holdfast("save", ranks.run).returncode == 0
    (failed,) = wait_until(lambda: events(ranks.run, "failed"), what=job.output)
    assert "rank 1" in failed["error"] or "store" in failed["error"], failed
    assert not list(ranks.run.glob("checkpoint-*"))
    mend()
    (ranks.folder / "written").touch()
    # Connections that were cut try again at growing intervals, and a rank is not heard of until then.
    wait_until(lambda: holdfast("save", ranks.run, "--wait").returncode == 0, what=job.output)
    assert holdfast("stop", ranks.run).returncode == 0
    job.wait()
    assert events(ranks.run)[-1]["outcome"] == "stopped"
    assert holdfast("verify", ranks.run).returncode == 0
