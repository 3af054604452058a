"""topk against sorting all scores."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from reasonrec_fast import ops
from reasonrec_fast.ops import topk as topk_function
from reasonrec_fast.ops.topk import topk_reference


def exclusions(batch, items, share, seed=0):
    mask = torch.rand(batch, items, generator=torch.Generator().manual_seed(seed)) < share
    rows, columns = mask.nonzero(as_tuple=True)
    indptr = torch.cat([torch.zeros(1, dtype=torch.int64), torch.bincount(rows, minlength=batch).cumsum(0)])
    return mask, (indptr, columns)


@settings(deadline=None, max_examples=60)
@given(
    batch=st.integers(0, 6),
    items=st.integers(0, 50),
    k=st.integers(0, 60),
    share=st.sampled_from([0.0, 0.3, 1.0]),
    levels=st.sampled_from([2, 1000]),
)
def test_equals_reference(batch, items, k, share, levels):
    generator = torch.Generator().manual_seed(batch * 100 + items)
    queries = torch.randint(levels, (batch, 3), generator=generator).double()
    vectors = torch.randint(-levels, levels, (items, 3), generator=generator).double()
    mask, exclude = exclusions(batch, items, share)
    result = ops.topk(queries, vectors, k, exclude=exclude)
    values, indices = topk_reference(queries @ vectors.T, k, mask)
    assert torch.equal(result.indices, indices)
    torch.testing.assert_close(result.values, values.double())


def test_same_bits_for_any_number_of_threads():
    queries, items = torch.randn(150, 24), torch.randn(20_000, 24)
    threads, results = torch.get_num_threads(), []
    for count in (1, 2, 5):
        torch.set_num_threads(count)
        results.append(ops.topk(queries, items, 30))
    torch.set_num_threads(threads)
    for other in results[1:]:
        assert torch.equal(results[0].values, other.values)
        assert torch.equal(results[0].indices, other.indices)


def test_composite_of_the_gpu_beyond_one_block(monkeypatch):
    module = __import__("sys").modules[topk_function.__module__]
    monkeypatch.setattr(module, "_BLOCK", 7)
    queries, vectors = torch.randn(4, 5, dtype=torch.float64), torch.randn(40, 5, dtype=torch.float64)
    mask, exclude = exclusions(4, 40, 0.2)
    rows = torch.arange(4)
    assert torch.equal(
        module._topk(queries, vectors, 9, *exclude, rows)[1], topk_reference(queries @ vectors.T, 9, mask)[1]
    )


@pytest.mark.parametrize(
    ("batch", "items", "k", "share", "dtype"),
    [
        (1, 1, 1, 0.0, torch.float32),
        (5, 63, 3, 0.4, torch.float32),
        (17, 130, 20, 0.1, torch.float32),
        (3, 130, 70, 0.9, torch.float16),  # the interpreter has no bfloat16 products
        (3, 40, 60, 1.0, torch.float16),
        (2, 140, 130, 0.6, torch.float32),  # three passes, the last of which finds nothing
        (2, 0, 4, 0.0, torch.float32),
        (0, 9, 4, 0.0, torch.float32),
    ],
)
@pytest.mark.parametrize("excluded", [True, False])
def test_triton_equals_reference(batch, items, k, share, dtype, excluded, monkeypatch):
    pytest.importorskip("triton")
    from reasonrec_fast.kernels import topk as kernel

    monkeypatch.setattr(kernel, "_LEAST_STRETCH", 64)  # several stretches
    monkeypatch.setattr(kernel, "_CHUNK", 600)  # and chunks of queries
    monkeypatch.setattr(kernel, "GROUPS", 64)
    monkeypatch.setattr(kernel, "READ_AGAIN", 4)
    if k > 64:
        monkeypatch.setattr(kernel, "_HELD", 16)  # several passes, of keys that the interpreter sorts quickly
    generator = torch.Generator().manual_seed(batch)
    queries = torch.randint(-3, 4, (batch, 9), generator=generator).to(dtype)
    vectors = torch.randint(-3, 4, (items, 9), generator=generator).to(dtype)
    if items > 2 and batch > 0:
        vectors[1] = torch.nan
        queries[-1] *= 0  # ties
    mask, (indptr, indices) = exclusions(batch, items, share if excluded else 0.0)
    backwards = indices.clone()
    for row in range(batch):  # exclusions need not be sorted
        backwards[indptr[row] : indptr[row + 1]] = indices[indptr[row] : indptr[row + 1]].flip(0)
    rows = torch.arange(batch)
    nothing = indptr[:0]
    arguments = (indptr, backwards, rows) if excluded else (nothing, nothing, nothing)
    values, result = kernel.topk(queries, vectors, k, *arguments)
    expected = topk_reference(queries.double() @ vectors.double().T, k, mask)
    assert torch.equal(result, expected[1])
    assert torch.equal(values, expected[0].float())


@pytest.mark.parametrize(("items", "k"), [(1100, 7), (2500, 20), (300, 64)])
@pytest.mark.parametrize("most_stretch", [2**16, 600])
def test_triton_selects_from_groups(items, k, most_stretch, monkeypatch):
    """Sizes as on a GPU: items of one group together among the best, infinities, ties over groups and stretches."""
    pytest.importorskip("triton")
    from reasonrec_fast.kernels import topk as kernel

    monkeypatch.setattr(kernel, "_MOST_STRETCH", most_stretch)
    monkeypatch.setattr(kernel, "_LEAST_STRETCH", 2**20)
    vectors = torch.randint(-40, 41, (items, 1), generator=torch.Generator().manual_seed(items)).float()
    vectors[5::64] = 100.0 + torch.arange(len(vectors[5::64]))[:, None] // 3  # of few groups, and ties
    vectors[17], vectors[18], vectors[items - 1] = torch.inf, -torch.inf, torch.inf
    queries = torch.tensor([[1.0], [-1.0], [0.5]])
    mask, (indptr, indices) = exclusions(3, items, 0.1)
    values, result = kernel.topk(queries, vectors, k, indptr, indices, torch.arange(3))
    expected = topk_reference(queries.double() @ vectors.double().T, k, mask)
    assert torch.equal(result, expected[1])
    assert torch.equal(values, expected[0].float())


def test_exclusions_outside_the_items_exclude_nothing():
    pytest.importorskip("triton")
    from reasonrec_fast.kernels import topk as kernel

    indptr, indices = torch.tensor([0, 3]), torch.tensor([-1, 9, 1])
    result = kernel.topk(torch.ones(1, 1), torch.arange(4.0)[:, None], 3, indptr, indices, torch.arange(1))
    assert result[1].tolist() == [[3, 2, 0]]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("batch", [1, 3, 5, 33, 150])
def test_panels_and_stretches(batch, dtype):
    generator = torch.Generator().manual_seed(batch)
    queries = torch.randint(-3, 4, (batch, 9), generator=generator).to(dtype)
    vectors = torch.randint(-3, 4, (9001, 9), generator=generator).to(dtype)
    mask, exclude = exclusions(batch, 9001, 0.05)
    values, indices = ops.topk(queries, vectors, 50, exclude=exclude)
    scores = (queries.double() @ vectors.double().T).masked_fill(mask, -torch.inf)
    expected, order = torch.sort(scores, dim=1, descending=True, stable=True)
    assert torch.equal(indices, order[:, :50])
    assert torch.equal(values.double(), expected[:, :50])


def test_rows_pick_exclusions_of_a_larger_csr():
    mask, (indptr, indices) = exclusions(10, 20, 0.4)
    rows = torch.tensor([7, 2, 2])
    queries, vectors = torch.randn(3, 4), torch.randn(20, 4)
    result = ops.topk(queries, vectors, 20, exclude=(indptr, indices, rows))
    assert torch.equal(result.indices, topk_reference((queries @ vectors.T).double(), 20, mask[rows])[1])


def test_nan_comes_last_of_what_exists():
    vectors = torch.tensor([[float("nan")], [1.0], [2.0]])
    assert ops.topk(torch.ones(1, 1), vectors, 4).indices.tolist() == [[2, 1, 0, -1]]


def test_opcheck():
    empty = torch.empty(0, dtype=torch.int64)
    torch.library.opcheck(torch.ops.reasonrec_fast.topk, (torch.randn(3, 4), torch.randn(9, 4), 2, empty, empty, empty))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"queries": torch.zeros(4)}, "queries, items: expected"),
        ({"items": torch.zeros(5, 3)}, "queries, items: expected"),
        ({"k": -1}, "k: expected"),
        ({"items": torch.zeros(5, 4).half()}, "queries, items: expected one floating-point type"),
        (
            {"items": torch.zeros(5, 4).long(), "queries": torch.zeros(3, 4).long()},
            "queries, items: expected one floating",
        ),
        ({"exclude": (torch.zeros(2, dtype=torch.int64), torch.zeros(0, dtype=torch.int64))}, "exclude: expected"),
    ],
)
def test_bad_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        ops.topk(**{"queries": torch.zeros(3, 4), "items": torch.zeros(5, 4), "k": 2, **arguments})
