"""What another recommender expects next, as further training targets for the generator."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from tqdm.auto import tqdm

from gensar_hf.data import UserEvents

if TYPE_CHECKING:
    from gensar_hf.embeddings.modeling_sasrec import SASRecModel

_BATCH_SIZE = 128  # windows a forward


@dataclass(frozen=True, eq=False)
class TeacherItems:
    """The most probable next items at every training click, from which targets are drawn.

    A click says of one item that it was right; the teacher's distribution also says which others would have been
    (Hinton et al. 2015, "Distilling the knowledge in a neural network"). Drawing an item from it and training on that
    item gives the gradient of the cross entropy with the teacher in expectation.

    Attributes:
        items: `(num_events, num_kept)` int32, the most probable items first.
        cumulative: `(num_events, num_kept)` float32 cumulative probabilities, the last of them 1; 0 where the teacher
            was not asked.
    """

    items: np.ndarray
    cumulative: np.ndarray

    def draw(self, event: int, rng: np.random.Generator) -> int | None:
        """An item in place of the one that was clicked; None where the teacher has nothing to say."""
        cumulative = self.cumulative[event]
        if cumulative[-1] == 0:
            return None
        place = int(np.searchsorted(cumulative, rng.random(), side="right"))
        return int(self.items[event, min(place, len(cumulative) - 1)])


@torch.inference_mode()
def teacher_of_sasrec(
    model: "SASRecModel", events: UserEvents, train_ends: np.ndarray, num_kept: int = 64
) -> TeacherItems:
    """Ask SASRec for every training click that has another one before it.

    Args:
        model: trained on training events, with the log's item order.
        events: only `events.offsets[u]:train_ends[u]` of each user is read.
        train_ends: `(num_users,)`, see `Split`.
        num_kept: items that are kept of each distribution.
    """
    from gensar_hf.embeddings.modeling_sasrec import pad_histories

    num_kept = min(num_kept, events.num_items)
    items = np.zeros((events.num_events, num_kept), dtype=np.int32)
    cumulative = np.zeros((events.num_events, num_kept), dtype=np.float32)
    windows = _windows(events, train_ends, model.config.max_length)
    was_training = model.training
    model.eval()
    for start in tqdm(range(0, len(windows), _BATCH_SIZE), desc="asking the teacher", leave=False, delay=2):
        chunk = windows[start : start + _BATCH_SIZE]
        inputs = pad_histories([events.items[clicks[:-1]] for clicks, _ in chunk], model.config.max_length)
        inputs = inputs.to(model.device)
        # With labels, none of which count, so that the model computes no logits that are not asked for.
        states = model(input_ids=inputs, labels=torch.zeros_like(inputs)).last_hidden_state
        rows = np.repeat(np.arange(len(chunk)), [len(clicks) - 1 - first for clicks, first in chunk])
        columns = np.concatenate([np.arange(first, len(clicks) - 1) for clicks, first in chunk])
        asked = np.concatenate([clicks[first + 1 :] for clicks, first in chunk])
        logits = states[rows, columns] @ model.item_embeddings().T
        probabilities, best = logits.float().softmax(dim=-1).topk(num_kept)
        items[asked] = best.cpu().numpy()
        cumulative[asked] = (probabilities.cumsum(dim=-1) / probabilities.sum(dim=-1, keepdim=True)).cpu().numpy()
    model.train(was_training)
    return TeacherItems(items, cumulative)


def _windows(events: UserEvents, train_ends: np.ndarray, max_length: int) -> list[tuple[np.ndarray, int]]:
    """Clicks (event indices) of at most `max_length` predictions, and the first prediction that is asked for.

    Windows overlap by half, so that nearly every prediction has half a window of clicks before it.
    """
    windows: list[tuple[np.ndarray, int]] = []
    half = max(1, max_length // 2)
    for start, end in zip(events.offsets[:-1], train_ends, strict=True):
        clicks = np.arange(start, end)
        clicks = clicks[events.items[clicks] >= 0]
        for first in range(0, len(clicks) - 1, half):
            before = max(0, first - half)
            windows.append((clicks[before : first + half + 1], first - before))
    return windows
