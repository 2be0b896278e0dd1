"""Configuration of the generator."""

from huggingface_hub.dataclasses import strict
from transformers import T5Config

HISTORY_ENCODINGS = ("events", "tokens")


@strict
class GenSARConfig(T5Config):
    """A T5 that reads a mixed history of search and recommendation (GenSAR, Shi et al., RecSys 2025).

    Args:
        history_encoding: `"tokens"`, the paper's: every token is a position of the encoder, which looks both ways;
            right for pretrained T5 weights. `"events"`, ours: the embeddings of one event's tokens are pooled into
            one position, and the encoder is causal, so that one history trains as many targets as it has events.

    All other arguments are those of `T5Config`.
    """

    model_type = "gensar"

    history_encoding: str = "events"
    decoder_start_token_id: int | None = 0

    def validate_history_encoding(self) -> None:
        """Called by `@strict` after every change."""
        if self.history_encoding not in HISTORY_ENCODINGS:
            raise ValueError(
                f"`history_encoding` must be one of {', '.join(HISTORY_ENCODINGS)}; got {self.history_encoding!r}."
            )
