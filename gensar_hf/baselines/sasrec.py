"""SASRec as a baseline: the next item from the clicked items alone."""

from typing import TYPE_CHECKING

import numpy as np

from gensar_hf.data.splits import RECOMMENDATION, Requests

if TYPE_CHECKING:
    from gensar_hf.embeddings.modeling_sasrec import SASRecModel


class SASRecScorer:
    """Score = SASRec's logit of the candidate after the user's most recent clicks (Kang and McAuley, ICDM 2018).

    The model that gives GenSAR its collaborative embeddings, asked directly. Clicks after a search are part of the
    history like others; queries are not read. Differs from the paper: the model is trained with full-softmax cross
    entropy, which is the stronger baseline. A user without any click gets equal scores, that is, a random order.

    Args:
        model: trained on the split's training events, with the catalogue's item order.
        batch_size: requests per forward pass.
        name: the row's name in tables.
    """

    tasks = frozenset({RECOMMENDATION})

    def __init__(self, model: "SASRecModel", batch_size: int = 256, name: str = "SASRec"):
        self.model = model
        self.batch_size = batch_size
        self.name = name

    def score(self, requests: Requests, candidates: np.ndarray) -> np.ndarray:
        """Logit of each candidate as the next item, `(num_requests, num_candidates)` float32."""
        import torch

        from gensar_hf.embeddings.modeling_sasrec import pad_histories

        input_ids = pad_histories(clicked_items(requests), self.model.config.max_length)
        scores = np.zeros(candidates.shape, dtype=np.float32)
        was_training = self.model.training
        self.model.eval()
        with torch.inference_mode():
            for start in range(0, len(requests), self.batch_size):
                rows = slice(start, start + self.batch_size)
                item_scores = self.model.score(input_ids[rows].to(self.model.device)).float().cpu().numpy()
                scores[rows] = np.take_along_axis(item_scores, candidates[rows], axis=1)
        self.model.train(was_training)
        return scores


def clicked_items(requests: Requests) -> list[np.ndarray]:
    """Each request's history as item indices, oldest first, without the queries."""
    histories = [requests.events.items[requests.history(row)] for row in range(len(requests))]
    return [items[items >= 0] for items in histories]
