"""Texts of ids and embeddings: one form, one key, parts that fit together again."""

import threading
from itertools import pairwise

import numpy as np
import pytest
import torch
from early_exit.tiny import tiny
from hypothesis import given, settings
from hypothesis import strategies as st

from reasonrec_fast.lm import Decoder, Embeddings, PackedBatch, PackedLayout, PrefixCache, Text, text_of
from reasonrec_fast.lm.inputs import boundary, common_prefix, content_key, extent, joined
from reasonrec_fast.lm.layout import flat_ids, flat_inputs
from reasonrec_fast.lm.prefix_cache import PrefixState

POOL = [
    Embeddings(torch.full((count, 4), float(number)), bytes([number]), positions)
    for number, (count, positions) in enumerate(
        [(1, None), (2, None), (3, None), (4, [[0, 0, 0, 0], [0, 0, 1, 1], [0, 1, 0, 1]])]
    )
]
segments = st.lists(
    st.one_of(st.lists(st.integers(0, 3), max_size=4), st.sampled_from(POOL)), max_size=5
)  # few ids and vectors, so that texts share parts
texts = segments.map(text_of)


def elements(text):
    return list(text)


@given(segments, st.data())
def test_however_it_is_divided_it_is_the_same_text(parts, data):
    divided = []
    for part in parts:
        if isinstance(part, list) and len(part) > 1:
            at = data.draw(st.integers(0, len(part)))
            divided += [part[:at], tuple(part[at:])]
        else:
            divided.append(part)
    first, second = text_of(parts), text_of(divided)
    assert first == second and content_key(first) == content_key(second) and type(first) is type(second)
    assert isinstance(first, Text) == any(isinstance(part, Embeddings) for part in parts)
    if isinstance(first, Text):
        assert hash(first) == hash(second)


@given(texts, texts)
def test_equal_keys_are_equal_texts(first, second):
    same = elements(first) == elements(second)
    assert same == (content_key(first) == content_key(second)) == (first == second)


@given(texts, texts)
def test_common_prefix(first, second):
    count = common_prefix(first, second)
    assert elements(first)[:count] == elements(second)[:count]
    assert count == min(len(first), len(second)) or elements(first)[count] != elements(second)[count]
    assert boundary(first, count) == count, "vectors are alike as a whole or not at all"


@given(texts, st.integers(0, 12))
def test_parts_fit_together_again(text, at):
    cut = boundary(text, at)
    assert cut <= min(at, len(text))
    first, second = text[:cut], text[cut:]
    assert joined(first, second) == text and len(first) + len(second) == len(text)
    assert extent(first) + extent(second) == extent(text)
    assert [text[index] for index in range(len(text))] == elements(text)
    if cut < min(at, len(text)):
        with pytest.raises(ValueError, match="slice: expected one that divides no Embeddings"):
            text[: min(at, len(text))]


def test_what_looks_alike_has_another_key():
    values = torch.zeros(2, 4)
    ids = [1, 2, 3, 4]
    texts = [
        text_of([ids, Embeddings(values, b"a")]),
        text_of([ids, Embeddings(values, b"b")]),
        text_of([ids, Embeddings(values[:1], b"a")]),
        text_of([ids, Embeddings(values, b"a", [[0, 0]])]),
        text_of([ids, Embeddings(values, b"a", [[0, 0]], extent=2)]),
        text_of([ids, Embeddings(values, b"a", [[0, 0], [0, 0]])]),
        text_of([ids, Embeddings(values, b"a"), Embeddings(values, b"a")]),
        text_of([Embeddings(values, b"a"), ids]),
        text_of([ids, Embeddings(values, np.array(ids).tobytes())]),
        [*ids, 0, 0],
        ids,
    ]
    keys = [content_key(text) for text in texts]
    assert len(set(keys)) == len(keys)
    assert all(texts[a] != texts[b] for a in range(len(texts)) for b in range(a))
    assert len({len(key) % 8 == 0 for key in keys}) == 2 and all(len(content_key(text)) % 8 == 0 for text in texts[-2:])


def test_the_cache_tells_images_apart():
    cache = PrefixCache(1 << 20)
    state = PrefixState([torch.zeros(3, 1, 2)], [torch.zeros(3, 1, 2)])
    cache.put([[1], Embeddings(torch.zeros(2, 4), b"first")], state)
    assert cache.get([[1], Embeddings(torch.zeros(2, 4), b"second")]) is None
    assert cache.get([1, 0, 0]) is None
    assert cache.get([(1,), Embeddings(torch.ones(2, 4), b"first")]) is state


def test_layout_and_flat_inputs():
    a, b = Embeddings(torch.ones(2, 4), b"a"), Embeddings(torch.zeros(1, 4), b"b")
    groups = [([[7], a], [[[8], b], [9]]), ([5], [[b]])]
    layout = PackedLayout.of(groups)
    assert layout.prefix.tolist() == [3, 1] and layout.suffix.tolist() == [2, 1, 1] and layout.axes is None
    ids, vectors = flat_inputs([(text_of(p), [text_of(s) for s in rows]) for p, rows in groups])
    assert ids.tolist() == [7, 0, 0, 8, 0, 9, 5, 0]
    assert vectors == [(1, a), (4, b), (7, b)]
    with pytest.raises(TypeError, match="expected token ids alone; got Embeddings among them"):
        flat_ids([(text_of(groups[0][0]), [[1]])])


def test_positions_of_layouts_follow_rows_and_prefixes():
    image = POOL[3]  # a square of two by two: what follows it is 2 further on
    layout = PackedLayout.of([([[1], image, [2]], [[3, 4], [5]]), ([6], [[7], [image]]), ([], [[8]])])
    group = [[0, 1, 1, 1, 1, 3], [0, 1, 1, 2, 2, 3], [0, 1, 2, 1, 2, 3]]
    assert layout.positions[:, :9].tolist() == [[*row, 4, 5, 4] for row in group]
    assert layout.positions[:, 9:].tolist() == [[0, 1, 1, 1, 1, 1, 0], [0, 1, 1, 1, 2, 2, 0], [0, 1, 1, 2, 1, 2, 0]]
    indices, groups, kept = layout.keep(np.array([1, 3]))
    assert np.array_equal(kept.positions, layout.positions[:, indices]) and groups.tolist() == [0, 1]


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: Embeddings([[1.0]], b"k"), TypeError, "values: expected a floating-point tensor; got list"),
        (lambda: Embeddings(torch.ones(2, 2, dtype=torch.int64), b"k"), TypeError, "values: .* got torch.int64"),
        (lambda: Embeddings(torch.ones(2), b"k"), ValueError, r"values: expected \[N, D\] .*; got \[2\]"),
        (lambda: Embeddings(torch.ones(0, 2), b"k"), ValueError, r"at least one vector; got \[0, 2\]"),
        (lambda: Embeddings(torch.tensor([[0.0], [np.nan]]), b"k"), ValueError, "finite numbers; got others in row 1"),
        (lambda: Embeddings(torch.ones(1, 2), "k"), TypeError, "key: expected bytes; got str"),
        (lambda: Embeddings(torch.ones(1, 2), b""), ValueError, "key: expected at least one byte"),
        (
            lambda: Embeddings(torch.ones(1, 2), b"k", [[0, 1]]),
            ValueError,
            r"positions: .* \[A, 1\]; got int64 \[1, 2\]",
        ),
        (lambda: Embeddings(torch.ones(1, 2), b"k", [[-1]]), ValueError, "positions: expected at least 0; got -1"),
        (lambda: Embeddings(torch.ones(1, 2), b"k", extent=3), ValueError, "extent: expected 1, .*; got 3"),
        (lambda: text_of([[1], "two"]), TypeError, "text: expected token ids or Embeddings; got str in segment 1"),
        (lambda: text_of([[1], [1.5]]), TypeError, r"text: expected token ids .*; got \[1.5\] in segment 1"),
        (
            lambda: PackedLayout.of([([POOL[3]], [[Embeddings(torch.ones(1, 4), b"k", [[0]])]])]),
            ValueError,
            r"groups: expected positions of one number of axes; got \[1, 3\]",
        ),
    ],
)
def test_refusals(make, error, message):
    with pytest.raises(error, match=message):
        make()


@settings(max_examples=20, deadline=None)
@given(st.data())
def test_vectors_are_read_wherever_they_lie(data):
    """Ids and their own embedding vectors in any mixture, in groups of any shape: the same hidden states."""
    backbone = _backbone()
    groups, mixed = [], []
    for _ in range(data.draw(st.integers(1, 3))):
        lengths = data.draw(st.lists(st.integers(1, 5), min_size=1, max_size=3))
        prefix = data.draw(st.lists(st.integers(1, 96), max_size=6))
        rows = [data.draw(st.lists(st.integers(1, 96), min_size=n, max_size=n)) for n in lengths]
        groups.append((prefix, rows))
        mixed.append((_mixed(backbone, prefix, data), [_mixed(backbone, row, data) for row in rows]))
    with torch.inference_mode():
        first, second = PackedBatch(backbone, groups), PackedBatch(backbone, mixed)
        torch.testing.assert_close(second.hidden, first.hidden)
        first.layer(1), second.layer(1)
        torch.testing.assert_close(second.peek_last(2), first.peek_last(2), atol=1e-5, rtol=1e-4)


def _backbone(made=[]):  # noqa: B006
    if not made:
        made.append(Decoder(tiny("Llama")))
    return made[0]


@torch.no_grad()
def _mixed(backbone, ids, data):
    cuts = sorted({0, len(ids), *data.draw(st.lists(st.integers(0, len(ids)), max_size=3))})
    parts = []
    for begin, end in pairwise(cuts):
        part = ids[begin:end]
        parts.append(Embeddings.of(backbone.embed(torch.tensor(part))) if data.draw(st.booleans()) else part)
    return parts


def test_threads_share_a_text():
    """What a text works out of itself is worked out by any number of threads at once."""
    text = text_of([[1, 2], POOL[2], [3]])
    keys = []
    threads = [threading.Thread(target=lambda: keys.append((text.key, tuple(text.ids)))) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(set(keys)) == 1 and len(keys) == 8
