"""Requests as token ids, and as groups that share what they begin with."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence, Set
from dataclasses import dataclass
from operator import index
from typing import Any

import numpy as np
import torch

from reasonrec_fast.early_exit.batching import batches_of
from reasonrec_fast.lm.chat import check_unicode
from reasonrec_fast.lm.decoder import Decoder
from reasonrec_fast.lm.inputs import Text, TextInput, boundary, common_prefix, has_segments, joined, text_of
from reasonrec_fast.lm.layout import TokenGroup, text_groups

Request = tuple[str | TextInput, str | TextInput]
"""What a user's candidates share, and one candidate: texts, token ids, or segments with embeddings among them."""

EncodedRequest = tuple[list[int] | Text, int]
"""A request's whole text, and how much of it its prefix is."""


@dataclass(frozen=True)
class GroupInputs:
    """What goes with the ``R`` rows of token groups.

    Attributes:
        features: standardised, float32 ``[R, F]``; None for heads that read none.
        offset: logits of depth 0, float32 ``[R]``, for heads that correct them; else None.
        strata: row of the policy's thresholds, int64 ``[R]``; None: the first.
    """

    features: torch.Tensor | None = None
    offset: torch.Tensor | None = None
    strata: torch.Tensor | None = None

    def of(self, rows: slice | np.ndarray) -> GroupInputs:
        """Of some of the rows."""
        at = torch.from_numpy(rows) if isinstance(rows, np.ndarray) else rows
        return GroupInputs(
            *(None if values is None else values[at] for values in (self.features, self.offset, self.strata))
        )

    @classmethod
    def joined(cls, parts: Sequence[GroupInputs]) -> GroupInputs:
        """One after the other, on the devices of the first; all have the same of the three."""
        columns = zip(*((part.features, part.offset, part.strata) for part in parts), strict=True)
        return cls(
            *(None if column[0] is None else torch.cat([x.to(column[0].device) for x in column]) for column in columns)
        )


def encode_requests(requests: Sequence[Request], tokenizer: Any, backbone: Decoder) -> list[EncodedRequest]:
    """Every request's token ids (or its text with embeddings), and how many of them its prefix has.

    Args:
        requests: (prefix, candidate) pairs.
        tokenizer: for texts; None where there are none.
        backbone: whose ids and vectors they must be.

    Raises:
        TypeError: requests that are no pairs, or token ids that are no whole numbers.
        ValueError: an empty request, texts without a tokenizer, or ids that the backbone does not know.
    """
    requests = listed(requests)
    mixed = [row for row, pair in enumerate(requests) if has_segments(pair[0]) or has_segments(pair[1])]
    for row in mixed:
        requests[row] = _in_one_form(requests[row])
    if not all(any(map(len, request)) for request in requests):
        raise ValueError("requests: expected (prefix, candidate) pairs with at least one token; got an empty one")
    if any(isinstance(start, str) != isinstance(candidate, str) for start, candidate in requests):
        raise ValueError("requests: expected two texts or two lists of token ids; got one of each")
    texts = [row for row, request in enumerate(requests) if isinstance(request[0], str)]
    if texts and tokenizer is None:
        raise ValueError("requests: expected token ids, since there is no tokenizer; got texts")
    encoded: dict[int, EncodedRequest] = {}
    for row in mixed:
        start, candidate = requests[row]
        if isinstance(start, Text) or isinstance(candidate, Text):
            encoded[row] = joined(start, candidate, "requests"), len(start)  # type: ignore[arg-type]
    if texts:
        pairs = [(str(requests[row][0]), str(requests[row][1])) for row in texts]
        for row, pair in zip(texts, pairs, strict=True):
            for written in pair:
                check_unicode(written, f"requests: request {row}")
        prefixes = list(dict.fromkeys(prefix for prefix, _ in pairs))
        starts = dict(zip(prefixes, tokenizer(prefixes)["input_ids"], strict=True))
        wholes = tokenizer([prefix + candidate for prefix, candidate in pairs])["input_ids"]
        for row, (prefix, _), whole in zip(texts, pairs, wholes, strict=True):
            # Where the two texts meet a token may span both.
            encoded[row] = list(whole), common_prefix(starts[prefix], whole)
    for row, (start, candidate) in enumerate(requests):
        if row not in encoded:
            encoded[row] = _whole([*start, *candidate], row), len(start)
    for row, (text, _) in encoded.items():
        check_text(text, backbone, "requests", f"request {row}")
    return [encoded[row] for row in range(len(requests))]


def listed(requests: Sequence[Request]) -> list[Request]:
    """Requests by position: a table's column would be read by its index.

    Raises:
        TypeError: no sequence, or a request that is not a pair; a single pair of texts would be read letter by letter.

    >>> listed([("a", "b"), "cd"])
    Traceback (most recent call last):
    TypeError: requests: expected (prefix, candidate) pairs; got 'cd' in row 1
    """
    if isinstance(requests, str | bytes | Set | Mapping) or not hasattr(requests, "__len__"):
        raise TypeError(f"requests: expected a sequence of (prefix, candidate) pairs; got {requests!r}")
    found = list(requests)
    for row, request in enumerate(found):
        pair = not isinstance(request, str | bytes | Set | Mapping) and hasattr(request, "__len__")
        if not pair or len(request) != 2 or not all(hasattr(text, "__len__") for text in request):
            raise TypeError(f"requests: expected (prefix, candidate) pairs; got {request!r} in row {row}")
    return found


def request_batches(
    encoded: Sequence[EncodedRequest], max_tokens: int, *, cached: bool
) -> Iterator[tuple[list[TokenGroup], np.ndarray]]:
    """Groups of at most ``max_tokens`` tokens together (one row at least), and the requests that their rows are.

    Args:
        encoded: of :func:`encode_requests`.
        max_tokens: of a batch.
        cached: whether prefixes are kept from call to call; else candidates that begin alike share that too.
    """
    groups: list[TokenGroup] = []
    order: list[int] = []
    for prefix, positions in _grouped(encoded, cached):
        groups.append((prefix, [encoded[position][0][len(prefix) :] for position in positions]))
        order += positions
    requests = np.array(order, dtype=np.int64)
    for batch, rows in batches_of(groups, max_tokens):
        yield batch, requests[rows]


def _grouped(encoded: Sequence[EncodedRequest], cached: bool) -> Iterator[tuple[Any, list[int]]]:
    """Prefixes, and the requests that begin with each."""
    by_prefix: dict[tuple[int, ...] | Text, list[int]] = {}
    for row, (ids, start) in enumerate(encoded):
        # The heads read the last token, so it is never shared.
        prefix: Any = ids[: boundary(ids, min(start, len(ids) - 1))]
        by_prefix.setdefault(prefix if isinstance(prefix, Text) else tuple(prefix), []).append(row)
    for prefix, rows in by_prefix.items():
        ids, shared = encoded[rows[0]][0], len(prefix)
        if not cached and len(rows) > 1:
            # Candidates may begin alike. A cached prefix ends where its text does, to be found again.
            shared = min(min(common_prefix(ids, encoded[row][0]), len(encoded[row][0]) - 1) for row in rows)
        yield ids[: boundary(ids, shared)], rows


def check_groups(groups: Sequence[TokenGroup], backbone: Decoder) -> None:
    """Refuse groups that the backbone cannot read: they would fail the batch that other callers share.

    Raises:
        ValueError: a group without rows, a row without tokens, or a text that the backbone cannot read.
    """
    for number, (prefix, suffixes) in enumerate(text_groups(groups)):
        if not suffixes or not all(map(len, suffixes)):
            raise ValueError(f"groups: expected suffixes of at least one token; got none in group {number}")
        backbone.check_length(len(prefix) + max(map(len, suffixes)), "groups")
        for text in (prefix, *suffixes):
            check_text(text, backbone, "groups", f"group {number}")


def check_text(text: Any, backbone: Decoder, argument: str, owner: str) -> None:
    """Refuse token ids and vectors that are not the backbone's; on a GPU such an id would end all work of the process.

    Raises:
        ValueError: which, and whose.
    """
    ids, most = text, backbone.vocabulary
    if isinstance(text, Text):
        ids = text.ids.tolist()
        for _, segment in text.embeddings:
            backbone.check_embeddings(segment, f"{argument}: {owner}")
    if len(ids) and (min(ids) < 0 or max(ids) >= most):
        strange = next(value for value in ids if not 0 <= value < most)
        raise ValueError(f"{argument}: expected token ids in [0, {most}); got {strange} in {owner}")


def _whole(ids: list[Any], request: int) -> list[int]:
    """Token ids, of any type of whole numbers.

    Raises:
        TypeError: 1.5 is none.
    """
    try:
        return list(map(index, ids))
    except TypeError:
        strange = next(value for value in ids if not _is_whole(value))
        raise TypeError(f"requests: expected token ids, whole numbers; got {strange!r} in request {request}") from None


def _is_whole(value: Any) -> bool:
    try:
        index(value)
    except TypeError:
        return False
    return True


def _in_one_form(request: Request) -> Request:
    """A request whose segments, if it is given in any, are joined to texts."""
    first: Any
    second: Any
    first, second = (text_of(text, "requests") if has_segments(text) else text for text in request)  # type: ignore[arg-type]
    return first, second
