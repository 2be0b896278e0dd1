"""Beam search through a trie, with the scores of `generate` and a fraction of its work."""

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

from gensar_hf.decoding.context import DecodingContext, EncoderContext, PromptContext
from gensar_hf.decoding.excluded_items import AllowedItems, ExcludedItems, ItemCollections
from gensar_hf.decoding.logits_process import DEAD_SCORE
from gensar_hf.decoding.output_head import OutputHead
from gensar_hf.decoding.trie import Trie

SOFTMAXES = ("vocabulary", "level")
_MASKS = ("attention_mask", "event_ids")


@dataclass(frozen=True)
class Beams:
    """What was found for each request, the best first.

    Attributes:
        tokens: `(batch_size, num_beams, length)` from the trie's first edge on, that of the prompt included.
        scores: `(batch_size, num_beams)` sums of natural logarithms of the tokens after the prompt; -inf for places
            that no sequence is left for. No more beams are kept than the trie can fill, so there may be fewer of them
            than asked for.
        values: `(batch_size, num_beams)` the trie's values (rows of the catalogue), -1 where the score is -inf.
    """

    tokens: torch.Tensor
    scores: torch.Tensor
    values: torch.Tensor


class TrieBeamSearch:
    """The beam search of `generate` under a trie, exactly, several times faster.

    >>> search = TrieBeamSearch(tokenizer.trie)  # doctest: +SKIP
    >>> model.generate(**inputs, custom_generate=search, num_beams=30, num_return_sequences=10)  # doctest: +SKIP

    It returns the sequences, in the order and with the scores, of `generate` with `TrieLogitsProcessor`: scores are the
    model's own log-probabilities, softmax over the whole vocabulary. Three things differ. Where fewer sequences are
    allowed than beams are asked for, the places left over hold the prompt and an end token, scored -1e9, instead of
    duplicates. `num_beams=1` is a search of one beam, with a score, where `generate` decodes greedily without one. And
    the output holds `sequences` and `sequences_scores` only, no scores or states of single steps.

    What is saved: the keys and values of the encoder, or of the prompt of a decoder alone, are computed and kept once
    per request instead of once per beam (`TreeDecoder`); the logits are never written out (`OutputHead`); only the
    children of the beams' nodes are sorted, not the vocabulary; and no step follows the last code.

    Args:
        trie: the sequences allowed, all of one length.
        excluded: for each request (not for each beam) the trie values that must not be generated, such as the items
            already seen.
        allowed: for each request the only trie values that may be generated.
        softmax: `"vocabulary"`, the model's own probabilities, or `"level"`: each code's probability among the codes
            that its level and behavior can have. The head is then multiplied with those codes' rows only, a hundredth
            of a large vocabulary. Scores are higher, and another ranking: what the model gave to words and to other
            levels' codes, which differs from beam to beam, no longer counts.

    Raises:
        ValueError: the trie's sequences differ in length (use `TrieLogitsProcessor` then), or an unknown softmax.
    """

    def __init__(
        self,
        trie: Trie,
        excluded: ItemCollections | None = None,
        allowed: ItemCollections | None = None,
        softmax: str = "vocabulary",
    ) -> None:
        if softmax not in SOFTMAXES:
            raise ValueError(f"`softmax` must be one of {', '.join(SOFTMAXES)}; got {softmax!r}.")
        if not trie.is_uniform:
            raise ValueError(
                "TrieBeamSearch needs a trie whose sequences all have the same length; for this one, give `generate` a "
                "TrieLogitsProcessor instead."
            )
        self.trie, self.softmax = trie, softmax
        self.excluded = None if excluded is None else ExcludedItems(trie, excluded)
        self.allowed = None if allowed is None else AllowedItems(trie, allowed)

    def __call__(
        self,
        model: Any,
        input_ids: torch.Tensor,
        logits_processor: LogitsProcessorList,
        stopping_criteria: StoppingCriteriaList,
        generation_config: GenerationConfig,
        **model_kwargs: Any,
    ) -> GenerateBeamEncoderDecoderOutput | GenerateBeamDecoderOnlyOutput | torch.Tensor:
        """What `generate` calls, its inputs repeated for each beam.

        Args:
            model: any T5 with a language-model head, or a causal language model.
            input_ids: `(batch_size * num_beams, length)` decoder start (of a causal language model the prompt, padded
                on the left) and, perhaps, the first tokens of the trie.
            logits_processor: must be empty.
            stopping_criteria: none but the length and the end token.
            generation_config: `num_beams`, `num_return_sequences`, `length_penalty`, `max_length`, special tokens.
            **model_kwargs: the mask, and of a T5 `encoder_outputs` and what the encoder was given.

        Returns:
            as `generate` with beams: `sequences` `(batch_size * num_return_sequences, length)`, ended by an end token
            where `max_length` leaves room for it, and `sequences_scores`.

        Raises:
            ValueError: an option or a model that this search does not know, a prompt of free text, fewer tokens
                allowed than the trie's sequences have, NaN in the model's scores.
        """
        _refuse_options(logits_processor, stopping_criteria, generation_config)
        num_beams, max_length = generation_config.num_beams, generation_config.max_length
        prompts = input_ids[::num_beams]
        start_length = 1 if model.config.is_encoder_decoder else self._prompt_length(prompts)
        beginnings = prompts[:, start_length:]
        num_new = self._num_new_tokens(beginnings)
        if prompts.shape[1] + num_new > max_length:
            raise ValueError(
                f"The trie's sequences go on for {num_new} tokens after the prompt, but only "
                f"{max_length - prompts.shape[1]} may be generated; set max_new_tokens={num_new}."
            )
        given = {name: tensor[::num_beams] for name in _MASKS if (tensor := model_kwargs.get(name)) is not None}
        if model.config.is_encoder_decoder:
            states = model_kwargs["encoder_outputs"].last_hidden_state[::num_beams]
            context: DecodingContext = EncoderContext(model, states, _encoder_mask(states, **given), prompts[:, 0])
        else:
            mask = given["attention_mask"][:, :start_length] if given else None
            context = PromptContext.of_prompts(model, prompts[:, :start_length], mask)
        beams = self.search(context, beginnings, num_beams)
        return _as_generated(beams, prompts, start_length, generation_config, model.config.is_encoder_decoder)

    @torch.no_grad()
    def search(self, context: DecodingContext, beginnings: torch.Tensor, num_beams: int) -> Beams:
        """Search without `generate`, for callers whose model has read their requests.

        Args:
            context: the requests.
            beginnings: `(batch_size, length)` the first tokens of the trie, such as the behavior token; perhaps none.
            num_beams: beams of each request.

        Raises:
            ValueError: free text is asked for, the model's vocabulary is smaller than the trie's, `excluded` or
                `allowed` are those of another number of requests, or the model's scores hold NaN.
        """
        self._check(context, beginnings)
        num_beams = min(num_beams, self.trie.num_sequences)
        num_given, num_steps = beginnings.shape[1], self._num_new_tokens(beginnings)
        tokens = beginnings[:, None]
        nodes = self.trie.walk(tokens[:, 0])[:, None]
        parents = torch.zeros_like(nodes)
        scores = torch.zeros(nodes.shape, device=nodes.device).masked_fill(nodes == self.trie.dead_node, -torch.inf)
        if num_steps > 0:
            decoder = context.tree_decoder(1 + num_given + (num_steps - 1) * num_beams, num_given + num_steps)
            prefixes = torch.cat([context.start_tokens[:, None], beginnings], dim=1)
            states, head = decoder.read_prefix(prefixes), context.output_head()
        for step in range(num_steps):
            if step > 0:
                states = decoder.read_children(tokens[:, :, -1], parents, num_given + step)
            level = num_given + step
            log_probabilities = self._log_probabilities(head, states, tokens, level)
            parents, next_tokens, nodes, scores = self._best_children(
                nodes, scores, log_probabilities, level, num_beams
            )
            tokens = torch.cat([_of_beams(tokens, parents), next_tokens[:, :, None]], dim=2)
        _refuse_nan(scores)
        return Beams(tokens, scores, self.trie.values_at(nodes).masked_fill(scores == -torch.inf, -1))

    def _log_probabilities(
        self, head: OutputHead, states: torch.Tensor, tokens: torch.Tensor, level: int
    ) -> torch.Tensor:
        """`(batch_size, num_parents, num_tokens)`: of the range of tokens below `level`; `tokens`: the beams so far."""
        token_range = self.trie.token_ranges[level]
        if self.softmax == "vocabulary":
            return head.range_log_probabilities(states, *token_range)
        can_occur = self.trie.level_tokens(level + 1, states.device)
        if level == 0:
            can_occur = can_occur.any(dim=0)
        else:
            first_nodes = self.trie.step(torch.full_like(tokens[:, :, 0], self.trie.root), tokens[:, :, 0])
            can_occur = can_occur[(first_nodes - 1).clamp(max=len(can_occur) - 1)]  # a dead beam's do not matter
        return head.range_logits(states, *token_range).masked_fill(~can_occur, -torch.inf).log_softmax(dim=-1)

    def _best_children(
        self, nodes: torch.Tensor, scores: torch.Tensor, log_probabilities: torch.Tensor, level: int, num_beams: int
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
        """The best children of all beams of each request.

        Args:
            nodes: `(batch_size, num_parents)` of `level`.
            scores: `(batch_size, num_parents)`.
            log_probabilities: `(batch_size, num_parents, num_tokens)` of the next level's range of tokens.
            level: of the parents.
            num_beams: how many to keep, fewer where there are not so many places for them.

        Returns:
            `(batch_size, num_kept)` each, the best first: the place of the parent, the token, the node, the score.
        """
        children, codes = self.trie.padded_children(nodes, level)
        totals = scores[:, :, None] + log_probabilities.gather(2, codes)
        totals = totals.masked_fill(self._is_forbidden(children), -torch.inf).flatten(1)
        best_scores, places = totals.topk(min(num_beams, totals.shape[1]))
        tokens = codes.flatten(1).gather(1, places) + self.trie.token_ranges[level][0]
        return places // codes.shape[2], tokens, children.flatten(1).gather(1, places), best_scores

    def _is_forbidden(self, children: torch.Tensor) -> torch.Tensor:
        """Bool, `(batch_size, num_parents, num_children)` as `children`: no sequence of the request lies below."""
        forbidden = children == self.trie.dead_node
        requests = torch.arange(len(children), device=children.device)[:, None, None]
        if self.excluded is not None:
            forbidden |= self.excluded.covers(children, requests)
        if self.allowed is not None:
            forbidden |= self.allowed.misses(children, requests)
        return forbidden

    def _prompt_length(self, prompts: torch.Tensor) -> int:
        """Tokens before the first edge, in every row the same."""
        lengths = self.trie.prompt_lengths(prompts)
        if (lengths != lengths[0]).any():
            raise ValueError(
                "The answers must begin at the same place in all rows of a batch; pad the prompts on the left, and "
                "give each the same number of the answer's tokens."
            )
        return int(lengths[0])

    def _num_new_tokens(self, beginnings: torch.Tensor) -> int:
        return max(0, self.trie.max_length - beginnings.shape[1])

    def _check(self, context: DecodingContext, beginnings: torch.Tensor) -> None:
        if self.trie.token_limit > context.vocab_size:
            raise ValueError(
                f"The trie holds the token {self.trie.token_limit - 1}, but the model scores only "
                f"{context.vocab_size} tokens; resize the model's embeddings to the tokenizer that the trie was "
                "built with."
            )
        for name, items in (("excluded", self.excluded), ("allowed", self.allowed)):
            if items is not None and items.num_requests != len(context):
                raise ValueError(
                    f"`{name}` names {items.num_requests} requests, but the batch has {len(context)}; give one set of "
                    "items for each request of the batch."
                )
        if self.trie.free_text_token_id is not None and beginnings.shape[1] > 0:
            is_free_text = beginnings[:, 0] == self.trie.free_text_token_id
            if is_free_text.any():
                raise ValueError(
                    f"Request {int(is_free_text.int().argmax())} asks for free text, which no trie holds; generate it "
                    "with a TrieLogitsProcessor, in a batch of its own or together with the others."
                )


def _of_beams(values: torch.Tensor, parents: torch.Tensor) -> torch.Tensor:
    """`(batch_size, num_parents, length)` and `(batch_size, num_kept)` places → `(batch_size, num_kept, length)`."""
    return values.gather(1, parents[:, :, None].expand(-1, -1, values.shape[2]))


def _encoder_mask(
    states: torch.Tensor, attention_mask: torch.Tensor | None = None, event_ids: torch.Tensor | None = None
) -> torch.Tensor:
    """`(batch_size, num_positions)` bool: the encoder positions that hold something.

    `event_ids` `(batch_size, num_tokens)` are the positions of the tokens, filled from the left, where the encoder
    pools several tokens into one position.
    """
    if event_ids is not None:
        positions = torch.arange(states.shape[1], device=states.device)
        return positions <= event_ids.amax(dim=1, keepdim=True)
    if attention_mask is None:
        return torch.ones(states.shape[:2], dtype=torch.bool, device=states.device)
    return attention_mask.bool()


def _as_generated(
    beams: Beams, prompts: torch.Tensor, start_length: int, config: GenerationConfig, is_encoder_decoder: bool
) -> GenerateBeamEncoderDecoderOutput | GenerateBeamDecoderOnlyOutput | torch.Tensor:
    """The beams in the form, and with the length penalty, of `generate`."""
    batch_size, num_found, _ = beams.tokens.shape
    prompt_length, num_returned = prompts.shape[1], config.num_return_sequences
    pad_token, end_token = _special_tokens(config)
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


def _special_tokens(config: GenerationConfig) -> tuple[int, int | None]:
    """What finished rows are filled with, and the (first) end token."""
    ends = config.eos_token_id if isinstance(config.eos_token_id, list) else [config.eos_token_id]
    return (config.pad_token_id if config.pad_token_id is not None else ends[0] or 0), ends[0]


def _refuse_options(processors: LogitsProcessorList, criteria: StoppingCriteriaList, config: GenerationConfig) -> None:
    """What `generate` would do and this search does not."""
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
            f"TrieBeamSearch does not know {', '.join(refused)}; leave this out, or call `generate` with a "
            "TrieLogitsProcessor instead of `custom_generate`."
        )


def _refuse_nan(scores: torch.Tensor) -> None:
    """`(batch_size, num_beams)`: NaN counts as largest and stays so from step to step."""
    is_nan = scores.isnan().any(dim=1)
    if is_nan.any():
        raise ValueError(
            f"The model's scores are NaN for request {int(is_nan.int().argmax())} of {len(scores)}; the weights or the "
            "inputs hold NaN, or a lower precision overflowed."
        )
