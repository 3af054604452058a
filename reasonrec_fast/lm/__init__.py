"""Language models on packed batches: decoders run layer by layer, shared prefixes, and their cache."""

from reasonrec_fast.lm.adapters import AdapterMerger
from reasonrec_fast.lm.decoder import Decoder
from reasonrec_fast.lm.generate import Generation, Piece, TextGenerator
from reasonrec_fast.lm.inputs import Embeddings, Text, text_of
from reasonrec_fast.lm.layout import PackedLayout, TokenGroup
from reasonrec_fast.lm.multimodal import segments_of
from reasonrec_fast.lm.output import OutputHead
from reasonrec_fast.lm.packed_batch import PackedBatch
from reasonrec_fast.lm.prefix_cache import PrefixCache
from reasonrec_fast.lm.sampling import SamplingParams

__all__ = [
    "AdapterMerger",
    "Decoder",
    "Embeddings",
    "Generation",
    "OutputHead",
    "PackedBatch",
    "PackedLayout",
    "Piece",
    "PrefixCache",
    "SamplingParams",
    "Text",
    "TextGenerator",
    "TokenGroup",
    "segments_of",
    "text_of",
]
