"""Language models on packed batches: a decoder taken apart, shared prefixes, and what is cached of them."""

from reasonrec_fast.lm.decoder import Decoder
from reasonrec_fast.lm.layout import PackedLayout, TokenGroup
from reasonrec_fast.lm.packed_batch import PackedBatch
from reasonrec_fast.lm.prefix_cache import PrefixCache

__all__ = ["Decoder", "PackedBatch", "PackedLayout", "PrefixCache", "TokenGroup"]
