"""The generator: a T5 whose encoder can read an event as one position."""

import copy
import os
from typing import Any

import torch
from torch import nn
from transformers import AutoConfig, AutoModelForSeq2SeqLM, T5ForConditionalGeneration
from transformers import initialization as init
from transformers.cache_utils import Cache
from transformers.modeling_outputs import BaseModelOutput, Seq2SeqLMOutput
from transformers.models.t5.modeling_t5 import T5LayerNorm, T5Stack

from gensar_hf.catalogue_loss import ItemSample, sampled_losses
from gensar_hf.generator.configuration_gensar import GenSARConfig
from gensar_hf.generator.item_vectors import FEATURE_MAP, ITEM_VECTOR_STD, ItemVectors, plain_weights
from gensar_hf.generator.text_matching import FIRST_SHARPNESS, FIRST_WEIGHT_BIAS, QueryInputs, TextMatching
from gensar_hf.model_folder import CheckedLoading

IGNORED_LABEL = -100


def pool_events(
    embeddings: torch.Tensor, event_ids: torch.Tensor, num_positions: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Sum the embeddings of each event's tokens and divide by the square root of their number.

    The square root keeps the variance of a sum of independent embeddings at that of one embedding, for queries of any
    length.

    Args:
        embeddings: `(batch_size, num_tokens, d_model)`.
        event_ids: `(batch_size, num_tokens)` long, the position that each token belongs to, -1 for padding.
        num_positions: above all of these.

    Returns:
        `(batch_size, num_positions, d_model)` pooled embeddings and `(batch_size, num_positions)` bool, true
        where a position holds an event.
    """
    batch_size, _, d_model = embeddings.shape
    # An extra position in each row collects the padding and is cut off again.
    slots = torch.where(event_ids < 0, num_positions, event_ids)
    slots = slots + torch.arange(batch_size, device=slots.device)[:, None] * (num_positions + 1)
    num_slots = batch_size * (num_positions + 1)
    sums = embeddings.new_zeros(num_slots, d_model).index_add_(0, slots.flatten(), embeddings.flatten(0, 1))
    counts = slots.new_zeros(num_slots).index_add_(0, slots.flatten(), torch.ones_like(slots).flatten())
    pooled = sums * counts.clamp(min=1).to(sums.dtype).rsqrt()[:, None]
    pooled = pooled.view(batch_size, num_positions + 1, d_model)[:, :-1]
    return pooled, counts.view(batch_size, num_positions + 1)[:, :-1] > 0


def event_positions(event_ids: torch.Tensor, num_positions: int) -> torch.Tensor:
    """`(batch_size, num_positions)` bool: the positions that hold an event (positions are filled from the left)."""
    return torch.arange(num_positions, device=event_ids.device) <= event_ids.amax(dim=1, keepdim=True)


def additive_mask(allowed: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """`(batch_size, queries, keys)` bool → `(batch_size, 1, queries, keys)`: 0 where allowed, very low elsewhere."""
    forbidden = torch.full((), torch.finfo(dtype).min, dtype=dtype, device=allowed.device)
    return torch.where(allowed, torch.zeros((), dtype=dtype, device=allowed.device), forbidden)[:, None]


class T5Initialization:
    """Keeps T5's initialization in subclasses of its models.

    transformers skips modules without direct parameters when it initializes a class outside the library, to protect
    loaded weights. T5 initializes its attention and feed-forward layers from such modules, so the weights would start
    with a standard deviation of 1 and hardly train.
    """

    @classmethod
    def is_custom_code(cls) -> bool:
        """False: the weights are initialized by T5's code."""
        return False


class EventProjection(nn.Module):
    """A residual feed-forward layer on each pooled event, which starts as the identity."""

    def __init__(self, config: GenSARConfig) -> None:
        super().__init__()
        self.layer_norm = T5LayerNorm(config.d_model, eps=config.layer_norm_epsilon)
        self.wi = nn.Linear(config.d_model, 2 * config.d_model, bias=False)
        self.wo = nn.Linear(2 * config.d_model, config.d_model, bias=False)

    def forward(self, pooled: torch.Tensor) -> torch.Tensor:
        """`(batch_size, num_positions, d_model)` in and out."""
        hidden = self.wi(self.layer_norm(pooled)).relu()
        # transformers keeps T5's layers of this name in float32 where the model is loaded in float16.
        return pooled + self.wo(hidden.to(self.wo.weight.dtype)).to(pooled.dtype)


class GenSAREncoder(T5Initialization, T5Stack):
    """T5's encoder; with `event_ids`, the tokens of one event share a position and positions look back only."""

    items: ItemVectors | None
    text: TextMatching | None

    def __init__(self, config: GenSARConfig) -> None:
        super().__init__(config)
        self.event_projection = EventProjection(config) if config.history_encoding == "events" else None
        self.items = ItemVectors(config) if config.num_items and not config.is_decoder else None
        self.text = TextMatching(config) if config.text_dim and not config.is_decoder else None
        self.post_init()

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if isinstance(module, EventProjection):
            init.normal_(module.wi.weight, mean=0.0, std=self.config.d_model**-0.5)
            init.zeros_(module.wo.weight)
        elif isinstance(module, ItemVectors):
            init.normal_(module.table.weight, mean=0.0, std=ITEM_VECTOR_STD)
            init.zeros_(module.bias)
            for projection in (module.read, module.request, module.gru_projection):
                if projection is not None:
                    init.normal_(projection.weight, mean=0.0, std=self.config.d_model**-0.5)
            for parameter in module.gru.parameters() if module.gru is not None else ():
                init.uniform_(parameter, -(self.config.d_model**-0.5), self.config.d_model**-0.5)  # torch's default
        elif isinstance(module, TextMatching):
            init.normal_(module.query.weight, mean=0.0, std=1.0)  # sentence embeddings have length 1
            if module.matched is not None:
                init.normal_(module.matched.weight, mean=0.0, std=self.config.d_model**-0.5)
            init.constant_(module.sharpness, FIRST_SHARPNESS)
            init.ones_(module.identifier_scale)
            init.zeros_(module.channel_weights.weight)
            init.constant_(module.channel_weights.bias, FIRST_WEIGHT_BIAS)

    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        event_ids: torch.Tensor | None = None,
        event_items: torch.Tensor | None = None,
        encoder_starts: torch.Tensor | None = None,
        inputs_embeds: torch.Tensor | None = None,
        query_vectors: torch.Tensor | None = None,
        query_matches: torch.Tensor | None = None,
        query_match_scores: torch.Tensor | None = None,
        query_match_codes: torch.Tensor | None = None,
        **kwargs: Any,
    ) -> BaseModelOutput:
        """Encode, with the arguments of `GenSARForConditionalGeneration.forward`.

        Without `event_ids` it is plain T5, where every token is a position and sees all others. Of `event_items` a
        model without item vectors reads the number of positions only.

        Returns:
            `last_hidden_state` `(batch_size, num_positions, d_model)`.
        """
        if event_ids is None:
            return super().forward(
                input_ids=input_ids, attention_mask=attention_mask, inputs_embeds=inputs_embeds, **kwargs
            )
        if inputs_embeds is None:
            inputs_embeds = self.embed_tokens(input_ids)
        # From a shape where there is one: reading the number would wait for the device.
        num_positions = int(event_ids.max()) + 1 if event_items is None else event_items.shape[1]
        pooled, is_event = pool_events(inputs_embeds, event_ids, num_positions)
        if self.event_projection is not None:
            pooled = self.event_projection(pooled)
        if self.items is not None and event_items is not None:
            pooled = pooled + self.items.event_vectors(event_items)
        copied: torch.Tensor | None = None
        if (
            self.text is not None
            and query_vectors is not None
            and query_matches is not None
            and query_match_scores is not None
            and query_match_codes is not None
        ):
            dtype = self.text.query.weight.dtype
            scores = query_match_scores.to(dtype)
            reading = QueryInputs(query_vectors.to(dtype), query_matches, scores, query_match_codes)
            look_up = None if self.items is None else self.items.scaled_look_up()
            read, copied = self.text.query_states(reading, look_up, self.embed_tokens)
            pooled = pooled + read
        allowed = is_event[:, None, :] & _causal(pooled.shape[1], pooled.device)
        if encoder_starts is not None:
            positions = torch.arange(pooled.shape[1], device=pooled.device)
            allowed = allowed & (positions >= encoder_starts[:, :, None])
        output = super().forward(inputs_embeds=pooled, attention_mask=additive_mask(allowed, pooled.dtype), **kwargs)
        if self.items is not None and event_items is not None:
            output.last_hidden_state = output.last_hidden_state + self.items.click_states(event_items, encoder_starts)
        if copied is not None:
            output.last_hidden_state = output.last_hidden_state + copied
        return output


class GenSARForConditionalGeneration(CheckedLoading, T5Initialization, T5ForConditionalGeneration):  # type: ignore[misc]  # its `from_pretrained` loads completely
    """T5 that answers a request with the identifier of an item or the words of a query."""

    config_class = GenSARConfig
    encoder: GenSAREncoder
    # `forward` divides by `num_items_in_batch`, so gradient accumulation is exact.
    accepts_loss_kwargs = True
    _keys_to_ignore_on_load_unexpected = [rf"encoder\.items\.{FEATURE_MAP}"]  # noqa: RUF012 - as in transformers

    def __init__(self, config: GenSARConfig) -> None:
        # Not T5ForConditionalGeneration.__init__, whose encoder would have to be replaced afterwards.
        super(T5ForConditionalGeneration, self).__init__(config)
        self.model_dim = config.d_model
        self.shared = nn.Embedding(config.vocab_size, config.d_model)
        self.encoder = GenSAREncoder(_stack_config(config, is_decoder=False, num_layers=config.num_layers))
        self.decoder = T5Stack(
            _stack_config(config, is_decoder=True, num_layers=config.num_decoder_layers or config.num_layers)
        )
        self.lm_head = nn.Linear(config.d_model, config.vocab_size, bias=False)
        self.post_init()

    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        event_ids: torch.Tensor | None = None,
        event_items: torch.Tensor | None = None,
        encoder_starts: torch.Tensor | None = None,
        query_vectors: torch.Tensor | None = None,
        query_matches: torch.Tensor | None = None,
        query_match_scores: torch.Tensor | None = None,
        query_match_codes: torch.Tensor | None = None,
        decoder_input_ids: torch.Tensor | None = None,
        decoder_attention_mask: torch.Tensor | None = None,
        decoder_target_ids: torch.Tensor | None = None,
        decoder_starts: torch.Tensor | None = None,
        decoder_ends: torch.Tensor | None = None,
        encoder_outputs: BaseModelOutput | tuple | None = None,
        cache: Cache | None = None,
        inputs_embeds: torch.Tensor | None = None,
        decoder_inputs_embeds: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        item_positions: torch.Tensor | None = None,
        item_is_searched: torch.Tensor | None = None,
        item_labels: torch.Tensor | None = None,
        item_queries: torch.Tensor | None = None,
        text_scores: torch.Tensor | None = None,
        sampled_items: torch.Tensor | None = None,
        sample_log_weights: torch.Tensor | None = None,
        num_items_in_batch: torch.Tensor | int | None = None,
        use_cache: bool | None = None,
        **kwargs: Any,
    ) -> Seq2SeqLMOutput:
        """As `T5ForConditionalGeneration.forward`, with the arguments below added.

        Args:
            input_ids: `(batch_size, num_tokens)`.
            attention_mask: `(batch_size, num_tokens)`, 0 for padding.
            event_ids: `(batch_size, num_tokens)` long, the encoder position of each token, -1 for padding.
            event_items: `(batch_size, num_positions)` long, the item (row of the identifier table) clicked at each
                position, -1 for none.
            encoder_starts: `(batch_size, num_positions)` long, the first position that each position may see, if
                several examples are packed into one row; default 0.
            query_vectors: `(batch_size, num_positions, text_dim)` sentence embeddings of the queries, zeros elsewhere.
            query_matches: `(batch_size, num_positions, NUM_MATCHES)` long, the items whose texts fit a query best, -1
                for none.
            query_match_scores: `(batch_size, num_positions, NUM_MATCHES, 3)`, how well they fit.
            query_match_codes: `(batch_size, num_positions, NUM_MATCHES, num_levels)` long, their code tokens.
            decoder_input_ids: `(batch_size, num_decoder_tokens)`.
            decoder_attention_mask: `(batch_size, num_decoder_tokens)`.
            decoder_target_ids: `(batch_size, num_decoder_tokens)` long, the target that each token belongs to, -1 for
                padding, if several targets, none of which sees the others, are packed into one row.
            decoder_starts: the same shape, the first encoder position that each token may see.
            decoder_ends: the same shape, the position after the last one.
            encoder_outputs: of an earlier call, to skip encoding.
            cache: keys and values of the decoder.
            inputs_embeds: `(batch_size, num_tokens, d_model)` instead of `input_ids`.
            decoder_inputs_embeds: the same for the decoder.
            labels: `(batch_size, num_decoder_tokens)`, -100 is ignored.
            item_positions: `(batch_size, num_item_targets)` long, the last encoder position before each clicked item.
            item_is_searched: 1 where the click answers a query, 0 where it is a recommendation.
            item_labels: the clicked items, -100 is ignored. The cross entropy over all items by their vectors is added
                to the loss; an item weighs as much as one token.
            item_queries: where a click answers a query that is compared with all texts, its column in `text_scores`;
                -1 elsewhere.
            text_scores: `(batch_size, num_queries, 3, num_items)` of `TextIndex.scores`, or of the sampled items.
            sampled_items: `(batch_size, num_sampled)` long, the items that stand for the catalogue in the cross entropy
                over all items, the same in each row (`ItemSample`).
            sample_log_weights: the same shape, see `ItemSample`.
            num_items_in_batch: number of labels in the whole batch over all accumulation steps and processes, by which
                the summed loss is divided. Default: the number of labels in this call.
            use_cache: keep the decoder's keys and values.
            **kwargs: as for T5.

        Returns:
            `loss` scalar (mean next-token negative log-likelihood of the responses, as in GenSAR) and `logits`:
            `(batch_size, num_decoder_tokens, vocab_size)`; with packed targets and labels only those of the labelled
            tokens, `(num_labels, vocab_size)`.
        """
        if encoder_outputs is None:
            queries = query_vectors, query_matches, query_match_scores, query_match_codes
            encoder_outputs = self.encoder(
                input_ids, attention_mask, event_ids, event_items, encoder_starts, inputs_embeds, *queries, **kwargs
            )
        hidden_states = encoder_outputs[0]
        encoder_mask = attention_mask if event_ids is None else event_positions(event_ids, hidden_states.shape[1])
        if labels is not None and decoder_input_ids is None and decoder_inputs_embeds is None:
            decoder_input_ids = self._shift_right(labels)
        if decoder_target_ids is not None:
            if decoder_starts is None or decoder_ends is None:
                raise ValueError("`decoder_target_ids` needs `decoder_starts` and `decoder_ends`.")
            # A token sees the earlier tokens of its target. T5 has relative positions, and none in cross-attention,
            # so a packed target gets exactly the logits that it has in a row by itself.
            same_target = decoder_target_ids[:, :, None] == decoder_target_ids[:, None, :]
            earlier = same_target & _causal(same_target.shape[1], same_target.device)
            positions = torch.arange(hidden_states.shape[1], device=decoder_starts.device)
            visible = (positions >= decoder_starts[:, :, None]) & (positions < decoder_ends[:, :, None])
            decoder_attention_mask = additive_mask(earlier, hidden_states.dtype)
            encoder_mask = additive_mask(visible, hidden_states.dtype)
        decoder_outputs = self.decoder(
            input_ids=decoder_input_ids,
            attention_mask=decoder_attention_mask,
            inputs_embeds=decoder_inputs_embeds,
            cache=cache,
            encoder_hidden_states=hidden_states,
            encoder_attention_mask=encoder_mask,
            use_cache=use_cache,
            **kwargs,
        )
        states, loss = decoder_outputs[0], None
        if labels is not None and decoder_target_ids is not None:
            # Packed rows have different lengths; logits are computed for labelled tokens only.
            is_labelled = labels != IGNORED_LABEL
            states, labels = states[is_labelled], labels[is_labelled]
        logits = self.output_logits(states)
        if labels is not None:
            if num_items_in_batch is None:
                num_items_in_batch = (labels != IGNORED_LABEL).sum().clamp(min=1)
            loss = summed_cross_entropy(logits, labels, num_items_in_batch)
            if item_labels is not None and self.encoder.items is not None:
                if item_positions is None or item_is_searched is None:
                    raise ValueError("`item_labels` needs `item_positions` and `item_is_searched`.")
                sample = None
                if sampled_items is not None and sample_log_weights is not None:
                    sample = ItemSample(sampled_items[0], sample_log_weights[0])
                loss = loss + item_loss(
                    self.encoder.items, self.encoder.text, hidden_states, item_positions, item_is_searched, item_labels,
                    num_items_in_batch, item_queries, text_scores, sample,
                )  # fmt: skip
        return Seq2SeqLMOutput(
            loss=loss, logits=logits, cache=decoder_outputs.cache, encoder_last_hidden_state=hidden_states
        )

    def save_pretrained(  # type: ignore[override]  # the other arguments are keywords
        self,
        save_directory: str | os.PathLike,
        is_main_process: bool = True,
        state_dict: dict[str, torch.Tensor] | None = None,
        **kwargs: Any,
    ) -> None:
        """As in transformers, with plain item vectors, however they are trained (`share_features`)."""
        if self.encoder.items is not None:
            state_dict = plain_weights(self.encoder.items, self.state_dict() if state_dict is None else state_dict)
        super().save_pretrained(save_directory, is_main_process, state_dict, **kwargs)

    def output_logits(self, decoder_states: torch.Tensor) -> torch.Tensor:
        """`(…, d_model)` decoder states → `(…, vocab_size)` logits."""
        if self.config.scale_decoder_outputs:
            decoder_states = decoder_states * (self.model_dim**-0.5)
        return self.lm_head(decoder_states)


def summed_cross_entropy(
    logits: torch.Tensor, labels: torch.Tensor, num_items_in_batch: torch.Tensor | int
) -> torch.Tensor:
    """Cross entropy summed over the labels, divided by the number of labels of the whole (accumulated) batch."""
    labels = labels.to(logits.device).flatten()
    total = nn.functional.cross_entropy(
        logits.flatten(0, -2).float(), labels, ignore_index=IGNORED_LABEL, reduction="sum"
    )
    return total / num_items_in_batch


def item_loss(
    items: ItemVectors,
    text: TextMatching | None,
    states: torch.Tensor,
    positions: torch.Tensor,
    is_searched: torch.Tensor,
    labels: torch.Tensor,
    num_items_in_batch: torch.Tensor | int,
    queries: torch.Tensor | None = None,
    text_scores: torch.Tensor | None = None,
    sample: ItemSample | None = None,
) -> torch.Tensor:
    """Cross entropy of the clicked items over all items, by their vectors and texts, divided like that of the tokens.

    `states` `(batch_size, num_positions, d_model)` are those of the encoder; the targets are `item_positions`,
    `item_is_searched`, `item_labels`, `item_queries` and `text_scores` of `GenSARForConditionalGeneration.forward`.
    `sample`: items that stand for all; default: all.
    """
    rows, columns = torch.nonzero(labels != IGNORED_LABEL, as_tuple=True)
    labels = labels[rows, columns]
    request_states = states[rows, positions[rows, columns]]
    logits = items.logits(request_states, is_searched[rows, columns], None if sample is None else sample.items)
    if text is not None and queries is not None and text_scores is not None:
        own_queries = queries[rows, columns]
        answers_query = own_queries >= 0
        scores = text_scores[rows[answers_query], own_queries[answers_query]].to(logits.dtype)
        weights = text.weights(request_states[answers_query], scores)
        by_text = torch.bmm(weights[:, None], scores)[:, 0]
        logits = logits.index_put((answers_query.nonzero(as_tuple=True)[0],), by_text, accumulate=True)
    if sample is not None:
        return sampled_losses(logits, sample, labels).sum() / num_items_in_batch
    return summed_cross_entropy(logits, labels, num_items_in_batch)


def _stack_config(config: GenSARConfig, is_decoder: bool, num_layers: int) -> GenSARConfig:
    stack_config = copy.deepcopy(config)
    stack_config.is_decoder, stack_config.use_cache = is_decoder, is_decoder and config.use_cache
    stack_config.num_layers = num_layers
    return stack_config


def _causal(length: int, device: torch.device) -> torch.Tensor:
    return torch.ones(length, length, dtype=torch.bool, device=device).tril_()


AutoConfig.register(GenSARConfig.model_type, GenSARConfig)
AutoModelForSeq2SeqLM.register(GenSARConfig, GenSARForConditionalGeneration)
