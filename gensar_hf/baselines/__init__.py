"""Baselines behind the protocol of GenSAR's evaluation; `tuning.fit_baseline` fits one by its name."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from gensar_hf.baselines import dense_retrieval
from gensar_hf.baselines.bm25 import BM25, BM25Config
from gensar_hf.baselines.dense_retrieval import DenseRetrieval, DenseRetrievalConfig
from gensar_hf.baselines.gru4rec import GRU4RecConfig, GRU4RecModel
from gensar_hf.baselines.hybrid import HybridSearch, HybridSearchConfig
from gensar_hf.baselines.markov import MarkovChain, MarkovConfig
from gensar_hf.baselines.matching import JSRConfig, JSRModel, MatchingScorer, QEMConfig, QEMModel, fit_jsr, fit_qem
from gensar_hf.baselines.popularity import Popularity, PopularityConfig
from gensar_hf.baselines.sequential import NextItemScorer, fit_next_item_model
from gensar_hf.data.user_events import UserEvents
from gensar_hf.embeddings.configuration_sasrec import SASRecConfig
from gensar_hf.embeddings.modeling_sasrec import SASRecModel
from gensar_hf.evaluation import Scorer


@dataclass(frozen=True)
class Baseline:
    """How to fit one baseline.

    `fit` takes the training events, the item texts in catalogue order, the configuration and the training arguments
    (`seed`, and the training settings of models that have any).
    """

    config_class: type  # its fields are the baseline's settings
    fit: Callable[..., Scorer]
    defaults: Mapping[str, Any] = field(default_factory=dict)  # that are not those of the configuration


def _fit_hybrid(events: UserEvents, texts: Sequence[str], config: HybridSearchConfig, training: Any) -> HybridSearch:
    dense = dense_retrieval.fit(events, texts, config, training)
    return HybridSearch([BM25(texts, config.k1, config.b), dense], config.k)


BASELINES: dict[str, Baseline] = {
    "popularity": Baseline(PopularityConfig, lambda events, *_: Popularity(events)),
    "markov": Baseline(MarkovConfig, lambda events, texts, config, _: MarkovChain(events, config)),
    "bm25": Baseline(BM25Config, lambda events, texts, config, _: BM25(texts, config.k1, config.b)),
    "dense_retrieval": Baseline(DenseRetrievalConfig, dense_retrieval.fit),
    "hybrid": Baseline(HybridSearchConfig, _fit_hybrid),
    "sasrec": Baseline(SASRecConfig, partial(fit_next_item_model, SASRecModel, "SASRec")),
    "gru4rec": Baseline(GRU4RecConfig, partial(fit_next_item_model, GRU4RecModel, "GRU4Rec")),
    "qem": Baseline(QEMConfig, fit_qem),
    "jsr": Baseline(JSRConfig, fit_jsr),
    "jsr_personalized": Baseline(JSRConfig, fit_jsr, {"personalized_search": True}),
}

__all__ = [
    "BASELINES",
    "BM25",
    "DenseRetrieval",
    "GRU4RecModel",
    "HybridSearch",
    "JSRConfig",
    "JSRModel",
    "MarkovConfig",
    "MatchingScorer",
    "NextItemScorer",
    "Popularity",
    "QEMConfig",
    "QEMModel",
]
