"""Text that grows token by token."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from lm.tokenizers_of_tests import bytes_tokenizer, pieces_tokenizer

from reasonrec_fast.lm.detokenizer import Detokenizer, special_tokens

BYTES = bytes_tokenizer()
PIECES = pieces_tokenizer(["▁the", "▁end", "s", ".", "▁", "en", "d", "▁é"])


def pieces_of(tokenizer, tokens, stop=()):
    detokenizer = Detokenizer(tokenizer, stop, special_tokens(tokenizer))
    pieces = [detokenizer.add(token) for token in tokens]
    return [*pieces, detokenizer.end()], detokenizer.stopped


def whole(tokenizer, tokens):
    return tokenizer.decode(tokens, skip_special_tokens=True, clean_up_tokenization_spaces=False)


@settings(max_examples=150, deadline=None)
@given(st.text(max_size=20))
def test_pieces_of_bytes_make_up_the_text(text):
    tokens = BYTES(text)["input_ids"]
    pieces, _ = pieces_of(BYTES, tokens)
    assert "".join(pieces) == text == whole(BYTES, tokens)
    if "�" not in text:
        assert not any("�" in piece for piece in pieces)
        assert all(piece == "" or len(piece) == 1 for piece in pieces)


@settings(max_examples=150, deadline=None)
@given(st.lists(st.integers(0, len(BYTES) - 1), max_size=20))
def test_bytes_that_are_no_text_are_decoded_as_a_whole_would_be(tokens):
    assert "".join(pieces_of(BYTES, tokens)[0]) == whole(BYTES, tokens)


@settings(max_examples=100, deadline=None)
@given(st.lists(st.sampled_from(range(258, len(PIECES))), max_size=12), st.sampled_from(["", "é", "日", "🙂"]))
def test_pieces_of_sentencepiece_make_up_the_text(tokens, letter):
    tokens = [*tokens, *(2 + byte for byte in letter.encode()), *tokens]
    pieces, _ = pieces_of(PIECES, tokens)
    assert "".join(pieces) == whole(PIECES, tokens)
    assert not any("�" in piece for piece in pieces)


def test_special_tokens_have_no_text_and_no_effect():
    ids = PIECES.convert_tokens_to_ids(["▁the", "</s>", "▁end", "<s>", "s"])
    assert "".join(pieces_of(PIECES, ids)[0]) == "the ends" == whole(PIECES, ids)
    assert special_tokens(BYTES) == {0, 1}


@settings(max_examples=300, deadline=None)
@given(st.text("ab é", max_size=14), st.lists(st.text("ab é", min_size=1, max_size=4), min_size=1, max_size=3))
def test_text_ends_before_the_first_stop_string(text, stop):
    pieces, stopped = pieces_of(BYTES, BYTES(text)["input_ids"], stop)
    begins = [text.find(each) for each in stop if each in text]
    # Token by token: the stop string that ends first, and of those that end together the one that begins first.
    ends = min((text.find(each) + len(each) for each in stop if each in text), default=None)
    assert stopped == bool(begins)
    if ends is None:
        assert "".join(pieces) == text
    else:
        first = min(text.find(each) for each in stop if each in text[:ends])
        assert "".join(pieces) == text[:first]


@pytest.mark.parametrize(
    ("stop", "expected"),
    [(["ends."], "the "), (["d"], "the en"), ([" en"], "the"), (["e e"], "th"), (["ends. x"], "the ends.")],
)
def test_stop_strings_span_tokens_and_begin_inside_them(stop, expected):
    ids = PIECES.convert_tokens_to_ids(["▁the", "▁end", "s", "."])
    pieces, stopped = pieces_of(PIECES, ids, stop)
    assert "".join(pieces) == expected
    assert stopped == (expected != "the ends.")


def test_nothing_of_a_stop_string_is_released_early():
    detokenizer = Detokenizer(BYTES, ["###"])
    tokens = BYTES("a##b###c")["input_ids"]
    assert [detokenizer.add(token) for token in tokens] == ["a", "", "", "##b", "", "", "", ""]
    assert detokenizer.stopped and detokenizer.end() == ""
