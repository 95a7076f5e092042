"""The arena, with the kernel's own word on what is resident, and real forks."""

import _ctypes
import ctypes
import gc
import mmap
import os
import re
import resource
import signal
from pathlib import Path

import pytest

from helpers.paper import Paper
from holdfast.devices import arena as module
from holdfast.devices.arena import HUGE_PAGE, Arena

SIZE = 4 << 20


def smaps(address: int) -> dict[str, str]:
    """What the kernel says of the mapping that an address is in."""
    fields: dict[str, str] = {}
    inside = False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        if begins := re.match(r"([0-9a-f]+)-([0-9a-f]+) ", line):
            inside = int(begins[1], 16) <= address < int(begins[2], 16)
        elif inside:
            name, _, value = line.partition(":")
            fields[name] = value.strip()
    return fields


def kilobytes(text: str) -> int:
    return int(text.removesuffix(" kB"))


def in_child(work: object) -> int:
    """Runs something in a forked child; returns the signal that it died of, 0 if it lived."""
    if not (pid := os.fork()):
        try:
            work()  # type: ignore[operator]
            os._exit(0)
        finally:
            os._exit(1)
    status = os.waitpid(pid, 0)[1]
    assert os.WIFSIGNALED(status) or os.WEXITSTATUS(status) == 0, "the child met an exception"
    return os.WTERMSIG(status) if os.WIFSIGNALED(status) else 0


def test_blocks_are_resident_and_lie_one_behind_the_other() -> None:
    arena = Arena(4 * SIZE)
    first, second = arena.make(SIZE), arena.make(2 * SIZE)
    assert first.address % HUGE_PAGE == 0 and second.address == first.address + SIZE and arena.bytes == 3 * SIZE
    assert kilobytes(smaps(first.address)["Rss"]) >= 3 * SIZE >> 10, "it is touched before it is used"
    second.view[7] = 9
    assert second.tensor[7] == 9 and second.tensor.data_ptr() == second.address and second.tensor.nbytes == 2 * SIZE


def test_they_are_of_huge_pages_where_the_machine_has_them_and_in_no_core_dump() -> None:
    block = Arena(SIZE).make(SIZE)
    flags = smaps(block.address)["VmFlags"].split()
    assert "dd" in flags and "dc" in flags
    if Path("/sys/kernel/mm/transparent_hugepage/enabled").exists():
        assert "hg" in flags


def test_what_is_reserved_takes_no_memory_and_is_the_limit() -> None:
    arena = Arena(SIZE + mmap.PAGESIZE)
    arena.make(SIZE)
    with pytest.raises(OSError, match="are the limit"):
        arena.make(SIZE)
    assert arena.bytes == SIZE
    huge = Arena(1 << 42)
    block = huge.make(SIZE)
    assert huge.limit_bytes == 1 << 42 and kilobytes(smaps(block.address)["Rss"]) < 2 * SIZE >> 10


def test_where_there_are_fewer_addresses_fewer_are_reserved() -> None:
    assert SIZE <= Arena(1 << 60).limit_bytes < 1 << 48


def test_where_addresses_are_limited_training_keeps_those_that_nothing_is_made_of() -> None:
    """As `ulimit -v` has it, in a process of its own."""

    def make() -> None:
        here = int(Path("/proc/self/statm").read_text().split()[0]) * mmap.PAGESIZE
        resource.setrlimit(resource.RLIMIT_AS, (here + (1 << 30), resource.RLIM_INFINITY))
        arena = Arena(900 << 20)
        blocks = [arena.make(SIZE) for _ in range(10)]
        assert len({block.address for block in blocks}) == 10 and arena.bytes == 10 * SIZE
        for number, block in enumerate(blocks):
            block.view[0] = block.view[-1] = number
        arena.unmake(blocks.pop())
        assert [block.view[0] + block.view[-1] for block in blocks] == list(range(0, 18, 2))
        assert arena.make(SIZE).address not in {block.address for block in blocks}
        mmap.mmap(-1, 700 << 20).close()
        with pytest.raises(OSError, match="are the limit"):
            arena.make(896 << 20)

    assert in_child(make) == 0


@pytest.mark.parametrize("errno_of_madvise", [0, 22])
def test_an_older_kernel_has_the_pages_touched(monkeypatch: pytest.MonkeyPatch, errno_of_madvise: int) -> None:
    if errno_of_madvise:
        monkeypatch.setattr(module, "_MADV_POPULATE_WRITE", 9999)  # EINVAL, as a kernel before 5.14 says
    block = Arena(SIZE).make(SIZE)
    assert kilobytes(smaps(block.address)["Rss"]) == SIZE >> 10


def test_the_addresses_are_given_back_when_nothing_of_them_is_in_use_and_not_before() -> None:
    arena = Arena(SIZE)
    block = arena.make(SIZE)
    address, tensor, view = block.address, block.tensor, block.view
    del arena, block
    gc.collect()
    tensor[0] = 1
    del tensor
    gc.collect()
    view[1] = 2
    del view
    gc.collect()
    assert "Rss" not in smaps(address)


def test_what_a_driver_has_locked_keeps_its_addresses_until_it_is_unlocked() -> None:
    addresses = []
    for is_unlocked in (False, True):
        arena = Arena(SIZE, Paper())
        block = arena.make(SIZE)
        assert arena.lock(block)
        if is_unlocked:
            arena.unlock(block)
        addresses.append(block.address)
        del arena, block
        gc.collect()
    assert ["Rss" in smaps(address) for address in addresses] == [True, False]


def test_a_forked_child_does_not_have_it_and_gives_nothing_back() -> None:
    held = [Arena(SIZE)]
    block = held[0].make(SIZE)
    address = block.address
    block.view[0] = 1

    def read() -> None:
        signal.signal(signal.SIGSEGV, signal.SIG_DFL)  # pytest's own would print a traceback
        ctypes.string_at(address, 1)

    assert in_child(read) == signal.SIGSEGV

    def use_its_addresses() -> None:
        libc = ctypes.CDLL(None)
        libc.mmap.restype = ctypes.c_void_p
        libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, *[ctypes.c_int] * 3, ctypes.c_long]
        fixed_noreplace = 0x100000
        flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | fixed_noreplace
        assert libc.mmap(address, SIZE, mmap.PROT_READ | mmap.PROT_WRITE, flags, -1, 0) == address
        nonlocal block
        held.clear()
        del block
        gc.collect()
        ctypes.memset(address, 1, SIZE)  # would be killed if the arena's end had taken it away

    assert in_child(use_its_addresses) == 0
    assert block.view[0] == 1


def test_a_fork_costs_nothing_of_it() -> None:
    block = Arena(64 << 20).make(64 << 20)

    def page_tables() -> None:
        status = Path("/proc/self/status").read_text()
        held = int(re.search(r"RssAnon:\s+(\d+)", status)[1])  # type: ignore[index]
        assert held < before - (60 << 10)

    before = int(re.search(r"RssAnon:\s+(\d+)", Path("/proc/self/status").read_text())[1])  # type: ignore[index]
    assert in_child(page_tables) == 0
    assert block.view[0] == 0


@pytest.mark.parametrize("name", ["madvise", "mprotect", "munmap"])
def test_the_interpreter_is_free_while_the_kernel_works(name: str) -> None:
    """By the kind of the call: clocks in another thread cannot tell it from a busy machine."""
    assert not getattr(module._libc, name)._flags_ & _ctypes.FUNCFLAG_PYTHONAPI
    assert getattr(ctypes.pythonapi, name)._flags_ & _ctypes.FUNCFLAG_PYTHONAPI, "this is how one shows that keeps it"


def test_the_driver_locks_whole_blocks_until_it_refuses() -> None:
    device = Paper()
    device.refuses_to_register_after = 2
    arena = Arena(8 * SIZE, device)
    blocks = [arena.make(SIZE) for _ in range(3)]
    assert [arena.lock(block) for block in blocks] == [True, True, False]
    assert device.registered == [(block.address, SIZE) for block in blocks[:2]] and arena.locked_bytes == 2 * SIZE
    assert "takes no" in arena.refusal
    device.refuses_to_register_after = None
    assert not arena.lock(blocks[2]), "it is not asked again"


def test_addresses_that_the_driver_knows_are_nobody_elses_ever() -> None:
    arena = Arena(SIZE, Paper())
    block = arena.make(SIZE)
    address = block.address
    assert arena.lock(block)
    del arena, block
    gc.collect()
    assert kilobytes(smaps(address)["Rss"]) == SIZE >> 10


def test_what_is_not_wanted_after_all_is_given_back() -> None:
    arena = Arena(2 * SIZE)
    first, second = arena.make(SIZE), arena.make(SIZE)
    first.view[0] = 5
    arena.unmake(second)
    address = second.address
    del second
    assert arena.bytes == SIZE and first.view[0] == 5
    assert kilobytes(smaps(address)["Rss"]) <= SIZE >> 10
    assert arena.make(SIZE).address == address
