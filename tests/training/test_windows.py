"""Windows: where they may start, that they are views, and that batches gather them all."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from training.windows import Batches, Windows, complete


def windows(rows: int = 20, length: int = 4, steps: int = 2, features: int = 3) -> Windows:
    starts = torch.arange(rows - length - steps + 1)
    values = torch.arange(rows * features, dtype=torch.float32).view(rows, features)
    return Windows(values, starts, starts * 3600, length, steps)


def test_gathered_windows_equal_those_cut_one_by_one() -> None:
    """A batch holds, in the order asked for, what slicing row by row would give."""
    found = windows()
    index = torch.tensor([7, 0, 14, 7])

    slow = [[found.rows[start + row].tolist() for row in range(6)] for start in index.tolist()]

    assert found.gather(index).tolist() == slow


def test_windows_share_the_storage_of_their_rows() -> None:
    """However many windows overlap, the rows are in memory once."""
    found = windows(rows=100, length=50)

    assert found.view.data_ptr() == found.rows.data_ptr()
    assert found.view.untyped_storage().nbytes() == found.rows.numel() * 4


@given(
    marks=st.lists(st.tuples(st.booleans(), st.booleans()), max_size=30),
    length=st.integers(1, 5),
    steps=st.integers(1, 4),
)
def test_complete_runs_are_those_a_slow_search_finds(marks: list[tuple[bool, bool]], length: int, steps: int) -> None:
    """A window has no blocked row anywhere and no unscored row among those to be forecast."""
    blocked, unscored = (torch.tensor([mark[kind] for mark in marks], dtype=torch.bool) for kind in (0, 1))

    found = complete(blocked, unscored, length, steps).tolist()

    assert found == [
        not blocked[start : start + length + steps].any()
        and not unscored[start + length : start + length + steps].any()
        for start in range(len(marks) - length - steps + 1)
    ]


def test_every_window_comes_once_an_epoch() -> None:
    """In order without a seed, in a fresh order each time with one; the short last batch is not dropped."""
    found = windows()
    plain, shuffled = Batches(found, 4), Batches(found, 4, seed=1)

    first, second, in_order = (_first_cells(batches) for batches in (shuffled, shuffled, plain))

    assert len(plain) == len(list(plain)) == 4
    assert in_order == (found.starts * 3).tolist()
    assert sorted(first) == sorted(second) == in_order
    assert first != second != in_order


@pytest.mark.parametrize(("size", "sizes"), [(4, [4, 4, 4, 3]), (7, [7, 8]), (14, [15]), (15, [15]), (99, [15])])
def test_no_batch_has_a_single_window(size: int, sizes: list[int]) -> None:
    """A window that would be alone at the end joins the batch before it: batch normalisation needs two."""
    batches = Batches(windows(), size)

    assert [len(rows) for rows in batches] == sizes
    assert len(batches) == len(sizes)


def test_a_seed_decides_the_order() -> None:
    """Two loops with one seed see the same batches."""
    one, other = (Batches(windows(), 4, seed=5) for _ in range(2))

    assert [_first_cells(one) for _ in range(3)] == [_first_cells(other) for _ in range(3)]


def _first_cells(batches: Batches) -> list[float]:
    cells: list[Tensor] = [rows[:, 0, 0] for rows in batches]
    return torch.cat(cells).tolist()
