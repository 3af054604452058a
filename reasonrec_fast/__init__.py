"""LLM- and VLM-based recommendation, fast enough to use.

Models, data and whatever reads them are imported at their first use; operators and graphs immediately.

>>> import reasonrec_fast
>>> reasonrec_fast.InteractionGraph.from_edges([0, 1], [1, 0]).num_edges
2
>>> from reasonrec_fast import Interactions, Popularity, split_by_time
>>> Popularity.__module__
'reasonrec_fast.models.classical.popularity'
"""

import importlib
from typing import TYPE_CHECKING, Any

from reasonrec_fast import ops
from reasonrec_fast.graph import InteractionGraph

if TYPE_CHECKING:
    from reasonrec_fast.data import (
        Catalog,
        DataError,
        Histories,
        Instruction,
        Interactions,
        Split,
        load_explanations,
        load_instructions,
        load_interactions,
        load_movielens_100k,
        load_movielens_small,
        load_sequences,
        load_xrec,
        sample_of_users,
        split_by_time,
    )
    from reasonrec_fast.early_exit import EarlyExitRanker
    from reasonrec_fast.models.classical import (
        BPR,
        EASE,
        FM,
        SVD,
        AttributeKNN,
        AttributeKNNConfig,
        Bias,
        BiasConfig,
        BPRConfig,
        BSARec,
        BSARecConfig,
        ClassicalRecommender,
        DCNv2,
        DCNv2Config,
        DirectedItemKNN,
        DirectedItemKNNConfig,
        EASEConfig,
        FMConfig,
        HybridKNN,
        HybridKNNConfig,
        ItemKNN,
        ItemKNNConfig,
        LightGCN,
        LightGCNConfig,
        Popularity,
        PopularityConfig,
        RecBole,
        RecBoleConfig,
        Recommendations,
        SASRec,
        SASRecConfig,
        Stack,
        StackConfig,
        StackRanking,
        SVDConfig,
        TextKNN,
        TextKNNConfig,
        TextTower,
        TextTowerConfig,
        load_recommender,
    )
    from reasonrec_fast.models.optirag import CTRStack, CTRStackConfig, OptiRAG, OptiRAGConfig, Predictions
    from reasonrec_fast.models.reasonrec import AgentConfig, ChainConfig, ReasonRec, ReasonRecConfig, TitleAgentConfig
    from reasonrec_fast.models.registry import load

__version__ = "0.1.0"
__all__ = [
    "BPR",
    "EASE",
    "FM",
    "SVD",
    "AgentConfig",
    "AttributeKNN",
    "AttributeKNNConfig",
    "BPRConfig",
    "BSARec",
    "BSARecConfig",
    "Bias",
    "BiasConfig",
    "CTRStack",
    "CTRStackConfig",
    "Catalog",
    "ChainConfig",
    "ClassicalRecommender",
    "DCNv2",
    "DCNv2Config",
    "DataError",
    "DirectedItemKNN",
    "DirectedItemKNNConfig",
    "EASEConfig",
    "EarlyExitRanker",
    "FMConfig",
    "Histories",
    "HybridKNN",
    "HybridKNNConfig",
    "Instruction",
    "InteractionGraph",
    "Interactions",
    "ItemKNN",
    "ItemKNNConfig",
    "LightGCN",
    "LightGCNConfig",
    "OptiRAG",
    "OptiRAGConfig",
    "Popularity",
    "PopularityConfig",
    "Predictions",
    "ReasonRec",
    "ReasonRecConfig",
    "RecBole",
    "RecBoleConfig",
    "Recommendations",
    "SASRec",
    "SASRecConfig",
    "SVDConfig",
    "Split",
    "Stack",
    "StackConfig",
    "StackRanking",
    "TextKNN",
    "TextKNNConfig",
    "TextTower",
    "TextTowerConfig",
    "TitleAgentConfig",
    "load",
    "load_explanations",
    "load_instructions",
    "load_interactions",
    "load_movielens_100k",
    "load_movielens_small",
    "load_recommender",
    "load_sequences",
    "load_xrec",
    "ops",
    "sample_of_users",
    "split_by_time",
]

_MODULES = {
    "reasonrec_fast.data": [
        "Catalog",
        "DataError",
        "Histories",
        "Instruction",
        "Interactions",
        "Split",
        "load_explanations",
        "load_instructions",
        "load_interactions",
        "load_movielens_100k",
        "load_movielens_small",
        "load_sequences",
        "load_xrec",
        "sample_of_users",
        "split_by_time",
    ],
    "reasonrec_fast.early_exit": ["EarlyExitRanker"],
    "reasonrec_fast.models.classical": [
        "BPR",
        "EASE",
        "FM",
        "BPRConfig",
        "Bias",
        "BiasConfig",
        "DCNv2",
        "DCNv2Config",
        "DirectedItemKNN",
        "DirectedItemKNNConfig",
        "EASEConfig",
        "FMConfig",
        "HybridKNN",
        "HybridKNNConfig",
        "ItemKNN",
        "ItemKNNConfig",
        "LightGCN",
        "LightGCNConfig",
        "Popularity",
        "PopularityConfig",
        "RecBole",
        "RecBoleConfig",
        "Recommendations",
        "ClassicalRecommender",
        "SASRec",
        "SASRecConfig",
        "Stack",
        "StackConfig",
        "StackRanking",
        "SVD",
        "SVDConfig",
        "TextTower",
        "TextTowerConfig",
        "BSARec",
        "BSARecConfig",
        "TextKNN",
        "TextKNNConfig",
        "AttributeKNN",
        "AttributeKNNConfig",
        "load_recommender",
    ],
    "reasonrec_fast.models.optirag": ["CTRStack", "CTRStackConfig", "OptiRAG", "OptiRAGConfig", "Predictions"],
    "reasonrec_fast.models.reasonrec": [
        "AgentConfig",
        "ChainConfig",
        "ReasonRec",
        "ReasonRecConfig",
        "TitleAgentConfig",
    ],
    "reasonrec_fast.models.registry": ["load"],
}
_MODULE_OF = {name: module for module, names in _MODULES.items() for name in names}


def __getattr__(name: str) -> Any:
    """Load a name's module, and with it transformers or numba, at its first use."""
    if name not in _MODULE_OF:
        raise AttributeError(f"module 'reasonrec_fast' has no attribute {name!r}")
    value = globals()[name] = getattr(importlib.import_module(_MODULE_OF[name]), name)
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
