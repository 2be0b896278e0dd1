"""Two small tables and the settings of a training of a few seconds, for tests of training and of the command line."""

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from gensar_hf.data import InteractionDataset

WORDS = ["red", "blue", "green", "cream", "soap", "lotion", "brush", "shampoo", "gel", "mask", "oil", "balm"]
SIZES = {"d_model": 16, "d_kv": 8, "d_ff": 16, "num_layers": 1, "num_decoder_layers": 1, "num_heads": 2}
SETTINGS: dict[str, Any] = {
    "text_encoder": None, "sasrec_epochs": 0.5, "sasrec_config": {"hidden_size": 8}, "rqvae_epochs": 1,
    "codebook_size": 8, "rqvae_config": {"latent_dim": 8, "hidden_sizes": [16]}, "generator_config": SIZES,
    "text_vocab_size": 60, "max_steps": 4, "save_steps": 2, "per_device_train_batch_size": 4, "num_negatives": 9,
    "item_weight": 2.0, "disable_tqdm": True, "use_cpu": True, "bf16": False,
}  # fmt: skip
HISTORY = [{"item_id": "B03"}, {"query": "red"}, {"item_id": "B07", "query": "red"}]


def make_tables(
    num_users: int = 12, num_items: int = 30, num_clicks: int = 10, query_share: float = 0.4, seed: int = 0
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Items with titles and string ids; each user's clicks at 0, 10, 20, …, some of them after a query."""
    rng = np.random.default_rng(seed)
    titles = [" ".join(rng.choice(WORDS, 3, replace=False)) for _ in range(num_items)]
    items = pd.DataFrame({"item_id": [f"B{item:02d}" for item in range(num_items)], "title": titles})
    rows = []
    for user in range(num_users):
        for click in range(num_clicks):
            item = int(rng.integers(num_items))
            query = titles[item].split()[0] if rng.random() < query_share else ""
            rows.append((f"user {user}", items["item_id"][item], 10.0 * click + user % 3, query))
    return items, pd.DataFrame(rows, columns=["user_id", "item_id", "timestamp", "query"])


def make_dataset(**options: Any) -> InteractionDataset:
    """A dataset of `make_tables`."""
    return InteractionDataset(*make_tables(), **options)


def arguments(folder: str | Path, **changes: Any) -> Any:
    """Arguments of a training of a few seconds."""
    from gensar_hf.training.arguments import GenSARTrainingArguments

    return GenSARTrainingArguments(str(folder), **{**SETTINGS, **changes})


def answers(pipe: Any) -> list[Any]:
    """Answers to requests of all kinds for items, to compare two pipelines."""
    return [
        pipe.recommend(HISTORY, top_k=5),
        pipe.search("blue soap", HISTORY, top_k=5),
        pipe.rank(HISTORY, ["B01", "B02", "B03"], query="red"),
    ]


def assert_same_answers(pipe: Any, other: Any) -> None:
    """Both answer alike, up to rounding."""
    for one, two in zip(answers(pipe), answers(other), strict=True):
        assert [answer["item_id"] for answer in one] == [answer["item_id"] for answer in two]
        np.testing.assert_allclose([a["score"] for a in one], [a["score"] for a in two], atol=1e-3)
