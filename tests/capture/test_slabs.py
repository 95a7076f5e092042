import torch

from capture.test_stream import File
from helpers.paper import Paper
from holdfast.capture.chunks import ChunkPart
from holdfast.capture.slabs import FileSource, Run, runs_of, slabs_of, stretches_of
from holdfast.store.digest import BLOCK_BYTES

MB = 1 << 20


def sources_of(*files: list[bytes | torch.Tensor]) -> list[FileSource]:
    return [FileSource(File(pieces), Paper()) for pieces in files]


def test_small_files_share_a_slab_and_each_chunk_begins_at_a_page() -> None:
    sources = sources_of([b"x" * 5000], [b"y" * 10], [torch.zeros(3, dtype=torch.float64)])
    (slab,) = slabs_of(sources, 4 * BLOCK_BYTES)
    assert [(placed.file, placed.place, placed.chunk.size) for placed in slab] == [
        (0, 0, 5000),
        (1, 8192, 10),
        (2, 12288, 24),
    ]


def test_a_slab_takes_what_fits_and_the_next_begins_with_the_chunk_that_did_not() -> None:
    large = torch.zeros(9 * MB, dtype=torch.uint8)
    slabs = slabs_of(sources_of([b"head"], [large], [b"tail"]), 2 * BLOCK_BYTES)
    placed = [[(each.file, each.place, each.chunk.offset, each.chunk.size) for each in slab] for slab in slabs]
    assert placed == [
        [(0, 0, 0, 4), (1, 4096, 0, BLOCK_BYTES)],
        [(1, 0, BLOCK_BYTES, BLOCK_BYTES), (1, BLOCK_BYTES, 2 * BLOCK_BYTES, MB), (2, BLOCK_BYTES + MB, 0, 4)],
    ]


def test_bytes_of_a_piece_are_one_run_over_the_edges_of_chunks_up_to_the_most() -> None:
    pieces: list[bytes | torch.Tensor] = [b"head", torch.zeros(9 * MB, dtype=torch.uint8), b"tail"]
    (slab,) = slabs_of(sources_of(pieces), 4 * BLOCK_BYTES)
    assert list(runs_of(slab, 64 * MB)) == [
        Run(0, ChunkPart(0, 0, 0, 4)),
        Run(0, ChunkPart(1, 0, 4, 9 * MB)),
        Run(0, ChunkPart(2, 0, 9 * MB + 4, 4)),
    ]
    in_pieces = [run.part for run in runs_of(slab, 5 * MB) if run.part.piece == 1]
    assert sum(part.size for part in in_pieces) == 9 * MB and max(part.size for part in in_pieces) <= 5 * MB


def test_what_follows_in_a_file_and_in_the_slab_is_written_at_once() -> None:
    (slab,) = slabs_of(sources_of([b"a"], [torch.zeros(9 * MB, dtype=torch.uint8)], [b"b"]), 4 * BLOCK_BYTES)
    assert list(stretches_of(slab)) == [(0, 0, 0, 1), (1, 0, 4096, 9 * MB), (2, 0, 4096 + 9 * MB, 1)]


def test_where_each_piece_is_and_what_the_host_has_otherwise_is_put_in_order() -> None:
    paper, turned, there = Paper(), torch.zeros(3, 4).T, torch.zeros(5).requires_grad_()
    paper.place(turned, None)
    source = FileSource(File([b"x", turned, there]), paper)
    assert source.cards == [None, None, 0]
    ((tensor, copy),) = source.rearranged
    assert tensor is turned and copy.is_contiguous()
    assert source.tensor(ChunkPart(0, 0, 0, 1)) is None and source.tensor(ChunkPart(2, 0, 0, 20)) is there
