"""The systems that every run is compared with, made from what its stages left."""

from pathlib import Path
from typing import Any

from gensar_hf.baselines.bm25 import BM25
from gensar_hf.baselines.dense_retrieval import DenseRetrieval
from gensar_hf.baselines.hybrid import HybridSearch
from gensar_hf.baselines.popularity import Popularity
from gensar_hf.baselines.sequential import NextItemScorer
from gensar_hf.data import InteractionDataset, training_events
from gensar_hf.embeddings.modeling_sasrec import SASRecModel
from gensar_hf.embeddings.text_encoder import TextEncoder
from gensar_hf.files import damage_reported
from gensar_hf.item_embeddings import load_item_embeddings
from gensar_hf.training.stages import COLLABORATIVE, EMBEDDINGS_FILE, SEMANTIC


def run_systems(run_dir: Path, dataset: InteractionDataset) -> list[Any]:
    """What a run's model is compared with: its SASRec, popularity, BM25, dense retrieval by its encoder, hybrid."""
    with damage_reported(run_dir / COLLABORATIVE):
        sasrec = SASRecModel.from_pretrained(run_dir / COLLABORATIVE)
    semantic = load_item_embeddings(run_dir / SEMANTIC / EMBEDDINGS_FILE, dataset.item_ids)
    encoder = TextEncoder.load(run_dir / SEMANTIC / "text_encoder")
    bm25, dense = BM25(dataset.item_texts()), DenseRetrieval(semantic, encoder.encode)
    popularity = Popularity(training_events(dataset.split))
    return [NextItemScorer(sasrec), popularity, bm25, dense, HybridSearch([bm25, dense])]
