"""Distillation: items that a trained SASRec expects next, as further training targets."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from tqdm.auto import tqdm

from gensar_hf.data import UserEvents

if TYPE_CHECKING:
    from gensar_hf.embeddings.modeling_sasrec import SASRecModel

_BATCH_SIZE = 128  # windows a forward
_ARRAYS = {"items": np.int32, "cumulative": np.float32}


@dataclass(frozen=True, eq=False)
class TeacherItems:
    """The most probable next items at every training click, from which targets are drawn.

    Training on items drawn from the teacher's distribution gives, in expectation, the gradient of the cross entropy
    with the teacher (Hinton et al. 2015, "Distilling the knowledge in a neural network").

    Attributes:
        items: `(num_events, num_kept)` int32, items of the events, the most probable first.
        cumulative: `(num_events, num_kept)` float32 cumulative probabilities, ending in 1; zeros at events without a
            prediction.

    The two take 512 bytes an event. `load` maps their files into memory, of which draws read single rows.
    """

    items: np.ndarray
    cumulative: np.ndarray

    @classmethod
    def load(cls, folder: Path) -> "TeacherItems":
        """Map what `teacher_of_sasrec` wrote."""
        return cls(*(np.load(folder / f"{name}.npy", mmap_mode="r", allow_pickle=False) for name in _ARRAYS))

    def draw(self, event: int, rng: np.random.Generator) -> int | None:
        """An item that replaces the clicked one; None at an event without a prediction."""
        cumulative = self.cumulative[event]
        if cumulative[-1] == 0:
            return None
        place = int(np.searchsorted(cumulative, rng.random(), side="right"))
        return int(self.items[event, min(place, len(cumulative) - 1)])


@torch.inference_mode()
def teacher_of_sasrec(
    model: "SASRecModel", events: UserEvents, train_ends: np.ndarray, folder: Path, num_kept: int = 64
) -> TeacherItems:
    """SASRec's predictions for every training click that has another one before it.

    Args:
        model: trained on the training events, with the events' item order.
        events: only `events.offsets[u]:train_ends[u]` of each user is read.
        train_ends: `(num_users,)`, see `Split`.
        folder: for the arrays, `items.npy` and `cumulative.npy`.
        num_kept: number of items to keep of each distribution.
    """
    from gensar_hf.embeddings.modeling_sasrec import pad_histories

    num_kept = min(num_kept, events.num_items)
    items, cumulative = (
        np.lib.format.open_memmap(folder / f"{name}.npy", "w+", dtype, (events.num_events, num_kept))
        for name, dtype in _ARRAYS.items()
    )  # of zeros
    windows = _windows(events, train_ends, model.config.max_length)
    was_training = model.training
    model.eval()
    for start in tqdm(range(0, len(windows), _BATCH_SIZE), desc="distilling SASRec", leave=False, delay=2):
        chunk = windows[start : start + _BATCH_SIZE]
        inputs = pad_histories([events.items[clicks[:-1]] for clicks, _ in chunk], model.config.max_length)
        inputs = inputs.to(model.device)
        # With ignored labels the model skips the logits of all positions.
        states = model(input_ids=inputs, labels=torch.zeros_like(inputs)).last_hidden_state
        rows = np.repeat(np.arange(len(chunk)), [len(clicks) - 1 - first for clicks, first in chunk])
        columns = np.concatenate([np.arange(first, len(clicks) - 1) for clicks, first in chunk])
        predicted = np.concatenate([clicks[first + 1 :] for clicks, first in chunk])
        logits = states[rows, columns] @ model.item_embeddings().T
        probabilities, best = logits.float().softmax(dim=-1).topk(num_kept)
        items[predicted] = best.cpu().numpy()
        cumulative[predicted] = (probabilities.cumsum(dim=-1) / probabilities.sum(dim=-1, keepdim=True)).cpu().numpy()
    model.train(was_training)
    items.flush()
    cumulative.flush()
    return TeacherItems(items, cumulative)


def _windows(events: UserEvents, train_ends: np.ndarray, max_length: int) -> list[tuple[np.ndarray, int]]:
    """Windows of clicks (event indices) for at most `max_length` predictions, and the first new prediction in each.

    Windows overlap by half, so that nearly every prediction has half a window of clicks before it.
    """
    windows: list[tuple[np.ndarray, int]] = []
    half = max_length // 2
    step = max(1, half)
    for start, end in zip(events.offsets[:-1], train_ends, strict=True):
        clicks = np.arange(start, end)
        clicks = clicks[events.items[clicks] >= 0]
        for first in range(0, len(clicks) - 1, step):
            before = max(0, first - half)
            windows.append((clicks[before : first + step + 1], first - before))
    return windows
