"""SASRec as a baseline: the next item from the clicked items alone."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from gensar_hf.baselines.baseline import TrainingData
from gensar_hf.baselines.sequential import NextItemScorer, TrainingSettings, checked_config, fit_sequential, new_model
from gensar_hf.embeddings.configuration_sasrec import SASRecConfig

if TYPE_CHECKING:
    from gensar_hf.embeddings.modeling_sasrec import SASRecModel

NAME = "SASRec"
REFERENCE = (
    "Wang-Cheng Kang and Julian McAuley: Self-Attentive Sequential Recommendation, ICDM 2018; the loss as in Anton "
    "Klenitskiy and Alexey Vasilev: Turning Dross Into Gold Loss: is BERT4Rec really better than SASRec?, RecSys 2023"
)


@dataclass
class Settings(TrainingSettings):
    """Of the training, and of `SASRecConfig`, where they are explained; the defaults are the same."""

    hidden_size: int = SASRecConfig.hidden_size
    num_layers: int = SASRecConfig.num_layers
    num_heads: int = SASRecConfig.num_heads
    max_length: int = SASRecConfig.max_length
    dropout: float = SASRecConfig.dropout
    event_dropout: float = SASRecConfig.event_dropout
    label_smoothing: float = SASRecConfig.label_smoothing

    def __post_init__(self) -> None:
        super().__post_init__()
        checked_config(SASRecConfig, **self.model_values())


class SASRecScorer(NextItemScorer):
    """Score = SASRec's logit of the candidate after the user's most recent clicks (Kang and McAuley, ICDM 2018).

    As `NextItemScorer`: clicks after a search are part of the history like others, queries are not read. Differs from
    the paper as `SASRecModel` does, above all in being trained with full-softmax cross entropy, which is the stronger
    baseline.

    Args:
        model: trained on the split's training events, with the catalogue's item order.
        batch_size: requests per forward pass.
        name: the row's name in tables.
    """

    def __init__(self, model: "SASRecModel", batch_size: int = 256, name: str = NAME) -> None:
        super().__init__(model, name, batch_size)


def fit(data: TrainingData, settings: Settings, seed: int, folder: Path, checkpoints: Path) -> SASRecScorer:
    """Train SASRec by itself, whatever the collaborative stage has trained; see `baseline.fit_by_name`."""
    from gensar_hf.embeddings.modeling_sasrec import SASRecModel

    config = SASRecConfig(num_items=data.events.num_items, **settings.model_values())
    model = new_model(SASRecModel, config, seed)
    fit_sequential(model, data, settings, seed, checkpoints)
    model.save_pretrained(folder)
    return SASRecScorer(model)
