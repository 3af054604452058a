"""Classical recommenders: small and fast, the baselines of every comparison."""

from reasonrec_fast.models.classical.attribute_knn import AttributeKNN, AttributeKNNConfig
from reasonrec_fast.models.classical.base import ClassicalRecommender
from reasonrec_fast.models.classical.bias import Bias, BiasConfig
from reasonrec_fast.models.classical.bpr import BPR, BPRConfig
from reasonrec_fast.models.classical.bsarec import BSARec, BSARecConfig
from reasonrec_fast.models.classical.dcn import DCNv2, DCNv2Config
from reasonrec_fast.models.classical.directed_knn import DirectedItemKNN, DirectedItemKNNConfig
from reasonrec_fast.models.classical.fm import FM, FMConfig
from reasonrec_fast.models.classical.hybrid_knn import HybridKNN, HybridKNNConfig
from reasonrec_fast.models.classical.item_to_item import EASE, EASEConfig, ItemKNN, ItemKNNConfig
from reasonrec_fast.models.classical.lightgcn import LightGCN, LightGCNConfig
from reasonrec_fast.models.classical.loading import load_recommender
from reasonrec_fast.models.classical.popularity import Popularity, PopularityConfig
from reasonrec_fast.models.classical.recbole import RecBole, RecBoleConfig
from reasonrec_fast.models.classical.retrieval import Recommendations
from reasonrec_fast.models.classical.sasrec import SASRec, SASRecConfig
from reasonrec_fast.models.classical.stack import Stack
from reasonrec_fast.models.classical.stack_config import StackConfig, StackRanking
from reasonrec_fast.models.classical.svd import SVD, SVDConfig
from reasonrec_fast.models.classical.text_knn import TextKNN, TextKNNConfig
from reasonrec_fast.models.classical.text_tower import TextTower, TextTowerConfig

__all__ = [
    "BPR",
    "EASE",
    "FM",
    "SVD",
    "AttributeKNN",
    "AttributeKNNConfig",
    "BPRConfig",
    "BSARec",
    "BSARecConfig",
    "Bias",
    "BiasConfig",
    "ClassicalRecommender",
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
    "SASRec",
    "SASRecConfig",
    "SVDConfig",
    "Stack",
    "StackConfig",
    "StackRanking",
    "TextKNN",
    "TextKNNConfig",
    "TextTower",
    "TextTowerConfig",
    "load_recommender",
]
