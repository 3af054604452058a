"""Data sets: loading, splits by time, and look-ups of the events before a moment."""

from reasonrec_fast.data.errors import DataError
from reasonrec_fast.data.explanations import Explanation, load_explanations, load_xrec
from reasonrec_fast.data.histories import Histories
from reasonrec_fast.data.instructions import Instruction, is_instruction_file, load_instructions
from reasonrec_fast.data.interactions import UNLABELLED, Catalog, Interactions
from reasonrec_fast.data.movielens import load_movielens_100k, load_movielens_small
from reasonrec_fast.data.sequences import load_sequences
from reasonrec_fast.data.split import Split, sample_of_users, split_by_time
from reasonrec_fast.data.tables import load_interactions
from reasonrec_fast.data.timeline import Timeline

__all__ = [
    "UNLABELLED",
    "Catalog",
    "DataError",
    "Explanation",
    "Histories",
    "Instruction",
    "Interactions",
    "Split",
    "Timeline",
    "is_instruction_file",
    "load_explanations",
    "load_instructions",
    "load_interactions",
    "load_movielens_100k",
    "load_movielens_small",
    "load_sequences",
    "load_xrec",
    "sample_of_users",
    "split_by_time",
]
