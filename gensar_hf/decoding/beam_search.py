"""Beam search through a trie: the results of `generate`, several times faster."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from transformers import (
    EosTokenCriteria,
    GenerationConfig,
    LogitsProcessorList,
    MaxLengthCriteria,
    StoppingCriteriaList,
)
from transformers.generation import GenerateBeamDecoderOnlyOutput, GenerateBeamEncoderDecoderOutput

from gensar_hf.decoding.logits_process import DEAD_SCORE, ItemLists, Values, refuse_nan
from gensar_hf.decoding.tree_decoder import DecodingContext, EncoderContext, PromptContext
from gensar_hf.decoding.trie import Trie


@dataclass(frozen=True)
class Beams:
    """The sequences found for each request, best first.

    Attributes:
        tokens: `(batch_size, num_beams, length)` from the trie's first edge on, including those of the prompt.
        scores: `(batch_size, num_beams)` sums of natural logarithms of the tokens after the prompt; -inf where there
            are fewer sequences than beams. There are at most as many beams as the trie has sequences.
        values: `(batch_size, num_beams)` the trie's values (rows of the catalogue), -1 where the score is -inf.
    """

    tokens: torch.Tensor
    scores: torch.Tensor
    values: torch.Tensor


class TrieBeamSearch:
    """The beam search of `generate` under a trie, exact and several times faster.

    >>> search = TrieBeamSearch(tokenizer.trie)  # doctest: +SKIP
    >>> model.generate(**inputs, custom_generate=search, num_beams=30, num_return_sequences=10)  # doctest: +SKIP

    It returns the sequences, in the order and with the scores, of `generate` with `TrieLogitsProcessor`: scores are the
    model's own log-probabilities, softmax over the whole vocabulary. Three things differ. Where fewer sequences are
    allowed than `num_beams`, the remaining rows hold the prompt and an end token, scored -1e9, instead of duplicates.
    `num_beams=1` is a search with one beam, with a score, where `generate` decodes greedily without one. And the output
    has `sequences` and `sequences_scores` only, no scores or states of single steps.

    It is faster because the keys and values of the encoder, or of a decoder-only model's prompt, are computed and kept
    once per request instead of once per beam (`TreeDecoder`), the logits are never written (`OutputHead`), only the
    children of the beams' nodes are sorted, not the vocabulary, and no step follows the last code.

    Args:
        trie: the allowed sequences.
        excluded: for each request (not for each beam) the trie values that must not be generated, such as the items
            that the user has seen.
        allowed: for each request the only trie values that may be generated; None for a request that may generate all.
            Lists that are used often are prepared once, as a `ValueList`.
    """

    def __init__(
        self,
        trie: Trie,
        excluded: Sequence[Values] | None = None,
        allowed: Sequence[Values | None] | None = None,
    ) -> None:
        self.trie = trie
        self.lists = None if excluded is None and allowed is None else ItemLists(trie, excluded, allowed)

    def __call__(
        self,
        model: Any,
        input_ids: torch.Tensor,
        logits_processor: LogitsProcessorList,
        stopping_criteria: StoppingCriteriaList,
        generation_config: GenerationConfig,
        **model_kwargs: Any,
    ) -> GenerateBeamEncoderDecoderOutput | GenerateBeamDecoderOnlyOutput | torch.Tensor:
        """Called by `generate`, with its inputs repeated for each beam.

        `input_ids` `(batch_size * num_beams, length)` holds the decoder start (for a causal language model the prompt,
        padded on the left), optionally followed by the first tokens of the trie. `model` is any T5 with a head for
        language modeling, or a causal language model. The output is that of `generate` with beams: `sequences`
        `(batch_size * num_return_sequences, length)`, ended by an end token where `max_length` leaves room for it, and
        `sequences_scores`.

        Raises:
            ValueError: an unsupported option or model, a prompt of free text, a `max_length` shorter than the trie's
                sequences, NaN in the model's scores.
        """
        _refuse_options(logits_processor, stopping_criteria, generation_config)
        num_beams, max_length = generation_config.num_beams, generation_config.max_length
        prompts = input_ids[::num_beams]
        start_length = 1 if model.config.is_encoder_decoder else self._prompt_length(prompts)
        prefixes = prompts[:, start_length:]
        num_new = self._num_new_tokens(prefixes)
        if prompts.shape[1] + num_new > max_length:
            raise ValueError(
                f"The trie's sequences have {num_new} more tokens after the prompt, but only "
                f"{max_length - prompts.shape[1]} may be generated; set max_new_tokens={num_new}."
            )
        names = [name for name in ("attention_mask", "event_ids") if model_kwargs.get(name) is not None]
        masks = {name: model_kwargs[name][::num_beams] for name in names}
        if model.config.is_encoder_decoder:
            states = model_kwargs["encoder_outputs"].last_hidden_state[::num_beams]
            context: DecodingContext = EncoderContext(model, states, _encoder_mask(states, **masks), prompts[:, 0])
        else:
            mask = masks["attention_mask"][:, :start_length] if masks else None
            context = PromptContext.of_prompts(model, prompts[:, :start_length], mask)
        beams = self.search(context, prefixes, num_beams)
        return _as_generated(beams, prompts, start_length, generation_config, model.config.is_encoder_decoder)

    @torch.no_grad()
    def search(self, context: DecodingContext, prefixes: torch.Tensor, num_beams: int) -> Beams:
        """Search without `generate`, for requests that the model has read already.

        Args:
            context: the requests.
            prefixes: `(batch_size, length)` the first tokens of the trie, such as the behavior token; may be empty.
            num_beams: beams per request.

        Raises:
            ValueError: a request for free text, a vocabulary smaller than the trie's, `excluded` or `allowed` for
                another number of requests, or NaN in the model's scores.
        """
        self._check(context, prefixes)
        num_beams = min(num_beams, self.trie.num_sequences)
        prefix_length, num_steps = prefixes.shape[1], self._num_new_tokens(prefixes)
        tokens = prefixes[:, None]
        nodes = self.trie.walk(prefixes)[:, None]
        parents = torch.zeros_like(nodes)
        scores = torch.zeros(nodes.shape, dtype=torch.float32, device=nodes.device).masked_fill(
            nodes == self.trie.dead_node, -torch.inf
        )
        if num_steps > 0:
            decoder = context.tree_decoder(1 + prefix_length + (num_steps - 1) * num_beams, prefix_length + num_steps)
            states = decoder.read_prefix(torch.cat([context.start_tokens[:, None], prefixes], dim=1))
            head = context.output_head()
        for level in range(prefix_length, prefix_length + num_steps):
            if level > prefix_length:
                states = decoder.read_children(tokens[:, :, -1], parents, level)
            log_probabilities = head.range_log_probabilities(states, *self.trie.token_ranges[level])
            parents, next_tokens, nodes, scores = self._best_children(
                nodes, scores, log_probabilities, level, num_beams
            )
            tokens = tokens.gather(1, parents[:, :, None].expand(-1, -1, level))
            tokens = torch.cat([tokens, next_tokens[:, :, None]], dim=2)
        # The last scores suffice: NaN sorts first at every step and stays NaN.
        refuse_nan(scores, "for request")
        return Beams(tokens, scores, self.trie.values_at(nodes).masked_fill(scores == -torch.inf, -1))

    def _best_children(
        self, nodes: torch.Tensor, scores: torch.Tensor, log_probabilities: torch.Tensor, level: int, num_beams: int
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
        """The best `num_beams` children of all beams of each request: parent indices, tokens, nodes and scores.

        `nodes` and `scores` `(batch_size, num_parents)` are those of `level`, `log_probabilities` `(batch_size,
        num_parents, num_tokens)` those of the next level's range of tokens. Results are `(batch_size, num_kept)`.
        """
        children, codes = self.trie.padded_children(nodes, level)
        totals = scores[:, :, None] + log_probabilities.gather(2, codes)
        totals = totals.masked_fill(self._is_forbidden(children), -torch.inf).flatten(1)
        best_scores, indices = totals.topk(min(num_beams, totals.shape[1]))
        tokens = codes.flatten(1).gather(1, indices) + self.trie.token_ranges[level][0]
        return indices // codes.shape[2], tokens, children.flatten(1).gather(1, indices), best_scores

    def _is_forbidden(self, children: torch.Tensor) -> torch.Tensor:
        """Bool, `(batch_size, num_parents, num_children)` as `children`: no allowed sequence is below the child."""
        if self.lists is None:
            return children == self.trie.dead_node
        return self.lists.forbid(children, torch.arange(len(children), device=children.device)[:, None, None])

    def _prompt_length(self, prompts: torch.Tensor) -> int:
        """Number of tokens before the first edge, the same in every row."""
        lengths = self.trie.prompt_lengths(prompts)
        if (lengths != lengths[0]).any():
            raise ValueError(
                "The answers must begin at the same position in all rows of a batch; pad the prompts on the left, and "
                "give each the same number of the answer's tokens."
            )
        return int(lengths[0])

    def _num_new_tokens(self, prefixes: torch.Tensor) -> int:
        return max(0, self.trie.max_length - prefixes.shape[1])

    def _check(self, context: DecodingContext, prefixes: torch.Tensor) -> None:
        self.trie.check_vocabulary(context.vocab_size)
        if self.lists is not None and self.lists.num_requests != len(context):
            raise ValueError(
                f"`excluded` or `allowed` has lists for {self.lists.num_requests} requests, but the batch has "
                f"{len(context)}; pass one list of items for each request of the batch."
            )
        if self.trie.free_text_token_id is not None and prefixes.shape[1] > 0:
            is_free_text = prefixes[:, 0] == self.trie.free_text_token_id
            if is_free_text.any():
                raise ValueError(
                    f"Request {int(is_free_text.int().argmax())} asks for free text, which is not in the trie; "
                    "generate it with a TrieLogitsProcessor, in the same batch or another."
                )


def _encoder_mask(
    states: torch.Tensor, attention_mask: torch.Tensor | None = None, event_ids: torch.Tensor | None = None
) -> torch.Tensor:
    """`(batch_size, num_positions)` bool: the encoder positions that are not padding, filled from the left."""
    if event_ids is not None:
        positions = torch.arange(states.shape[1], device=states.device)
        return positions <= event_ids.amax(dim=1, keepdim=True)
    if attention_mask is None:
        return torch.ones(states.shape[:2], dtype=torch.bool, device=states.device)
    return attention_mask.bool()


def _as_generated(
    beams: Beams, prompts: torch.Tensor, start_length: int, config: GenerationConfig, is_encoder_decoder: bool
) -> GenerateBeamEncoderDecoderOutput | GenerateBeamDecoderOnlyOutput | torch.Tensor:
    """The beams in the output format of `generate`, with its length penalty."""
    batch_size, num_found, _ = beams.tokens.shape
    prompt_length, num_returned = prompts.shape[1], config.num_return_sequences
    end_token = config.eos_token_id[0] if isinstance(config.eos_token_id, list) else config.eos_token_id
    pad_token = config.pad_token_id if config.pad_token_id is not None else end_token or 0
    sequences = torch.cat([prompts[:, None, :start_length].expand(-1, num_found, -1), beams.tokens], dim=2)
    if sequences.shape[2] < config.max_length and end_token is not None:
        sequences = torch.cat([sequences, sequences.new_full((batch_size, num_found, 1), end_token)], dim=2)
    num_generated = sequences.shape[2] - prompt_length
    scores = beams.scores / max(num_generated, 1) ** config.length_penalty
    if num_found < num_returned:
        missing = num_returned - num_found
        sequences = torch.cat([sequences, sequences[:, :1].expand(-1, missing, -1)], dim=1)
        scores = torch.cat([scores, scores.new_full((batch_size, missing), -torch.inf)], dim=1)
    sequences, scores = sequences[:, :num_returned], scores[:, :num_returned]
    is_dead = scores == -torch.inf
    dead = torch.full_like(sequences[0, 0, prompt_length:], pad_token)
    dead[:1] = pad_token if end_token is None else end_token
    sequences[:, :, prompt_length:] = torch.where(is_dead[:, :, None], dead, sequences[:, :, prompt_length:])
    sequences, scores = sequences.flatten(0, 1), scores.masked_fill(is_dead, DEAD_SCORE).flatten()
    if not config.return_dict_in_generate:
        return sequences
    output_class = GenerateBeamEncoderDecoderOutput if is_encoder_decoder else GenerateBeamDecoderOnlyOutput
    return output_class(
        sequences=sequences,  # type: ignore[arg-type]
        sequences_scores=scores if config.output_scores else None,
    )


def _refuse_options(processors: LogitsProcessorList, criteria: StoppingCriteriaList, config: GenerationConfig) -> None:
    """Refuse options of `generate` that this search does not support."""
    refused = [type(processor).__name__ for processor in processors]
    refused += [
        type(criterion).__name__
        for criterion in criteria
        if not isinstance(criterion, (MaxLengthCriteria, EosTokenCriteria))
    ]
    options = ("do_sample", "output_logits", "output_attentions", "output_hidden_states")
    refused += [f"{option}=True" for option in options if getattr(config, option)]
    if refused:
        raise ValueError(
            f"TrieBeamSearch does not support {', '.join(refused)}; leave this out, or call `generate` with a "
            "TrieLogitsProcessor instead of `custom_generate`."
        )
