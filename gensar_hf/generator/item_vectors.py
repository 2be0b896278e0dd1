"""A vector for each item, beside its identifiers: what a few codes cannot tell apart."""

import torch
import torch.nn.functional as F
from torch import nn

from gensar_hf.generator.configuration_gensar import GenSARConfig

NO_ITEM = -1
ITEM_VECTOR_STD = 0.1  # of new vectors: logits are then small beside the biases


class ItemVectors(nn.Module):
    """Reads clicked items into the encoder, and scores all items against what the encoder has made of a request.

    One table serves both, as in SASRec. An identifier shares its codes with other items, which is what lets a generator
    speak of them all with a small vocabulary; on a catalogue of some thousand items a vector of the item's own tells
    more. Generative and dense retrieval in one model is the idea of LIGER (Yang et al. 2024, "Unifying generative and
    dense retrieval for sequential recommendation"), whose item vectors are made from texts.
    """

    def __init__(self, config: GenSARConfig) -> None:
        super().__init__()
        self.table = nn.Embedding(config.num_items, config.d_model)
        self.bias = nn.Parameter(torch.zeros(config.num_items))
        self.read = nn.Linear(config.d_model, config.d_model, bias=False)
        self.request = nn.Linear(config.d_model, 2 * config.d_model, bias=False)
        self.dropout = nn.Dropout(config.item_dropout)

    def event_vectors(self, event_items: torch.Tensor) -> torch.Tensor:
        """`(batch_size, num_positions)` rows of the items, -1 for none → what is added to the pooled events."""
        vectors = self.read(self.dropout(self.table(event_items.clamp(min=0))))
        return vectors * (event_items >= 0)[:, :, None]

    def logits(self, states: torch.Tensor, is_searched: torch.Tensor) -> torch.Tensor:
        """How well each item answers each request.

        Args:
            states: `(num_requests, d_model)` of the encoder, at the last position of each request.
            is_searched: `(num_requests,)` long, 1 where the click answers a query, 0 where it is a recommendation.

        Returns:
            `(num_requests, num_items)`.
        """
        requests = self.request(self.dropout(states)).view(len(states), 2, -1)
        requests = requests[torch.arange(len(states), device=states.device), is_searched]
        return F.linear(requests, self.table.weight, self.bias)
