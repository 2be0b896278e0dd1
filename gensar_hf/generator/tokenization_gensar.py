"""The tokenizer: words, behavior tokens and code tokens in one vocabulary; requests in, item ids out."""

import json
import logging
import os
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cached_property
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import AutoTokenizer, BatchEncoding, TokenizersBackend

from gensar_hf.data import Behavior
from gensar_hf.decoding import Trie
from gensar_hf.embeddings.text_encoder import TextEncoder
from gensar_hf.errors import InputError, shown
from gensar_hf.files import damage_reported
from gensar_hf.generator.catalogue import BEHAVIOR_TOKENS, Catalogue, check_fingerprint, table_fingerprint
from gensar_hf.generator.configuration_gensar import HISTORY_ENCODINGS, GenSARConfig
from gensar_hf.generator.history import EventArrays, History, as_batch, as_list, cut_query, is_list, parse_history
from gensar_hf.generator.item_vectors import NO_ITEM
from gensar_hf.generator.prompts import HISTORY_TASKS, PROMPTS, all_instructions
from gensar_hf.generator.text_matching import (
    CHANNELS,
    NUM_MATCHES,
    TEXT_VECTORS_FILE,
    QueryReading,
    TextIndex,
)
from gensar_hf.identifiers import IdentifierTable
from gensar_hf.model_folder import COPY_AGAIN, TEXT_ENCODER_DIR, open_folder

logger = logging.getLogger(__name__)

IDENTIFIERS_FILE = "identifiers.parquet"
TOKENIZER_FILES = (
    "config.json", "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", IDENTIFIERS_FILE,
    TEXT_VECTORS_FILE, f"{TEXT_ENCODER_DIR}/*",
)  # fmt: skip
# In tokenizer_config.json.
_FINGERPRINT, _TEXT_MATCHING, _TRAINED_TASKS = "identifiers_fingerprint", "text_matching", "training_tasks"
NO_EVENT = -1
_MOST_ANSWER_TOKENS = 160  # after a prompt: a behavior token, a query of 128 tokens and its end, or beams of 32
_MAX_TOKEN_CHARACTERS = 64  # more than a token of a text has on average
_MAX_TEXT_CHARACTERS, _MAX_WORD_CHARACTERS = 4096, 64  # of what teaches a vocabulary
_MAX_ALPHABET = 8000  # characters of a vocabulary; rarer ones are unknown
SPECIAL_TOKENS = PAD, EOS, UNK = ("<pad>", "</s>", "<unk>")


class GenSARTokenizer(TokenizersBackend):
    """A text tokenizer with behavior tokens, code tokens and the catalogue's identifiers.

    Build one with `train_from_texts` (a new vocabulary) or `from_text_tokenizer` (that of T5 or Llama, for example).
    Load one with `from_pretrained`, which reads `identifiers.parquet` from the same folder or Hub repository.

    For a decoder-only model (`decoder_only`) a request is one prompt that ends with the behavior token, padded on the
    left.

    There is no `__init__`, because a subclass that has one loses its normalizer when it is loaded. Its settings are
    keyword arguments that transformers keeps in tokenizer_config.json: `history_encoding`, `max_history_events`,
    `behavior_tokens`, `decoder_only`.

    Requests are read, and files are written, by a copy of the tokenizer as it was made (`_made`). Its callers may
    therefore pad and truncate, add tokens or set special tokens, in any thread, and no answer changes.

    `catalogue` holds everything that depends on the items and is replaced as a whole. A method that needs several parts
    of it reads it once, at its start.
    """

    _made: "GenSARTokenizer"

    def __getstate__(self) -> dict[str, Any]:
        """Without what is made at its first use, so that the hash of `datasets`' cache stays."""
        kind = type(self)
        return {name: v for name, v in self.__dict__.items() if not isinstance(getattr(kind, name, 0), cached_property)}

    model_input_names = ["input_ids", "attention_mask"]  # noqa: RUF012 - transformers declares it so

    # ---- building, saving, loading

    @classmethod
    def train_from_texts(
        cls,
        texts: Iterable[str],
        identifiers: IdentifierTable,
        vocab_size: int = 2000,
        history_encoding: str = "events",
        max_history_events: int = 50,
        behavior_tokens: bool = True,
    ) -> "GenSARTokenizer":
        """Train a lower-cased Unigram vocabulary on the catalogue's text and add the behavior and code tokens.

        Words of more than 64 characters, such as images in base64, teach the vocabulary nothing and are left out.

        Args:
            texts: item texts and training queries.
            identifiers: the catalogue's identifiers.
            vocab_size: upper bound on the number of word pieces. Where the alphabet alone has more characters, as that
                of Chinese has, there is room for these (at most 8,000, the frequent ones) and `vocab_size` pieces.
            history_encoding: see `GenSARConfig`.
            max_history_events: longer histories are cut to their last events.
            behavior_tokens: see `Catalogue.of_table`.
        """
        tokenizer = Tokenizer(models.Unigram())
        tokenizer.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Lowercase()])
        tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
            [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Metaspace()]
        )
        tokenizer.decoder = decoders.Metaspace()
        read = [_teaching_text(text, tokenizer.normalizer) for text in (*all_instructions(), *texts)]
        counts = Counter(chain.from_iterable(read))
        alphabet = sorted(counts, key=lambda character: (-counts[character], character))
        rare = str.maketrans(dict.fromkeys(alphabet[_MAX_ALPHABET:], " "))
        needed = min(len(alphabet), _MAX_ALPHABET) + len(SPECIAL_TOKENS) + 1  # and the mark of a word's beginning
        trainer = trainers.UnigramTrainer(
            vocab_size=vocab_size if needed < vocab_size else vocab_size + needed,
            special_tokens=list(SPECIAL_TOKENS),
            unk_token=UNK,
            show_progress=False,
        )
        tokenizer.train_from_iterator([text.translate(rare) for text in read] if rare else read, trainer)
        tokenizer.model = _in_fixed_order(tokenizer)
        eos_id = tokenizer.token_to_id(EOS)
        tokenizer.post_processor = processors.TemplateProcessing(
            single=f"$A {EOS}", pair=f"$A {EOS} $B {EOS}", special_tokens=[(EOS, eos_id)]
        )
        return cls._with_identifiers(
            tokenizer,
            identifiers,
            pad_token=PAD,
            eos_token=EOS,
            unk_token=UNK,
            history_encoding=history_encoding,
            max_history_events=max_history_events,
            behavior_tokens=behavior_tokens,
        )

    @classmethod
    def from_text_tokenizer(
        cls,
        tokenizer: TokenizersBackend,
        identifiers: IdentifierTable,
        history_encoding: str = "tokens",
        max_history_events: int = 20,
        behavior_tokens: bool = True,
        decoder_only: bool = False,
        num_positions: int | None = None,
    ) -> "GenSARTokenizer":
        """Add the behavior and code tokens to a copy of a text tokenizer.

        Args:
            tokenizer: any fast tokenizer. The end token is used for padding if it has no padding token, as in Llama.
            identifiers: as in `train_from_texts`, like the next three arguments.
            history_encoding: `"tokens"` for a decoder-only model.
            max_history_events: number of events.
            behavior_tokens: whether both kinds of identifiers begin with different tokens.
            decoder_only: for a decoder-only model.
            num_positions: tokens of the longest prompt with its answer, for a decoder-only model that has such a bound
                (`context_length`); the oldest events of a longer prompt are left out.

        Raises:
            ValueError: the tokenizer has no end token, or a setting is out of range.
        """
        if decoder_only and history_encoding != "tokens":
            raise ValueError(
                f"A decoder-only model reads histories as 'tokens'; got history_encoding={history_encoding!r}."
            )
        names = ("pad_token", "eos_token", "unk_token", "bos_token")
        special_tokens = {name: token for name in names if (token := getattr(tokenizer, name, None)) is not None}
        if "eos_token" not in special_tokens:
            raise ValueError("The text tokenizer has no `eos_token`, which ends the words of a query; set one.")
        return cls._with_identifiers(
            tokenizer.backend_tokenizer,
            identifiers,
            **{"pad_token": special_tokens["eos_token"], **special_tokens},
            history_encoding=history_encoding,
            max_history_events=max_history_events,
            behavior_tokens=behavior_tokens,
            decoder_only=decoder_only,
            **({} if num_positions is None else {"model_max_length": num_positions}),
        )

    @classmethod
    def _with_identifiers(
        cls, backend: Tokenizer, identifiers: IdentifierTable, decoder_only: bool = False, **settings: Any
    ) -> "GenSARTokenizer":
        if settings["history_encoding"] not in HISTORY_ENCODINGS:
            raise ValueError(
                f"`history_encoding` must be one of {', '.join(HISTORY_ENCODINGS)}; got "
                f"{settings['history_encoding']!r}."
            )
        if settings["max_history_events"] < 1:
            raise ValueError(f"`max_history_events` must be at least 1; got {settings['max_history_events']}.")
        side = "left" if decoder_only else "right"
        tokenizer = cls(tokenizer_object=backend, padding_side=side, decoder_only=decoder_only, **settings)
        # Not `normalized`: a lower-casing normalizer would turn <R_I> into <r_i>, which is no token.
        new_tokens = [*BEHAVIOR_TOKENS, *identifiers.code_tokens()]
        tokenizer.add_tokens([AddedToken(token, special=False, normalized=False) for token in new_tokens])
        tokenizer.attach_identifiers(identifiers)
        return tokenizer

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str | os.PathLike, *args: Any, **kwargs: Any) -> Any:
        """Load the vocabulary and the identifiers from a folder or a Hub repository.

        Raises:
            InputError: there is no such folder or repository, or `identifiers.parquet` is missing or is not the table
                that the tokenizer was saved with.
        """
        folder, kwargs = open_folder(pretrained_model_name_or_path, TOKENIZER_FILES, kwargs, "model's tokenizer")
        path = folder / IDENTIFIERS_FILE
        if not path.is_file():
            raise InputError(
                f"{folder} holds no {IDENTIFIERS_FILE}, without which codes cannot be turned into items; save the "
                "tokenizer with `save_pretrained`, or copy the file from the run's model folder."
            )
        with damage_reported(f"The tokenizer in {folder} (tokenizer.json and tokenizer_config.json)", COPY_AGAIN):
            tokenizer = super().from_pretrained(folder, *args, **kwargs)
            _check_settings(folder, tokenizer.init_kwargs)
        with damage_reported(path, COPY_AGAIN):
            identifiers = IdentifierTable.load(path)
        texts = None
        if tokenizer.init_kwargs.get(_TEXT_MATCHING, False):
            for name in (TEXT_VECTORS_FILE, TEXT_ENCODER_DIR):
                if not (folder / name).exists():
                    raise InputError(f"{folder} holds no {name}, which its tokenizer needs; {COPY_AGAIN}.")
            with damage_reported(f"{TEXT_VECTORS_FILE} or {TEXT_ENCODER_DIR} in {folder}", COPY_AGAIN):
                encoder = TextEncoder.load(folder / TEXT_ENCODER_DIR)
                texts = TextIndex.load(folder / TEXT_VECTORS_FILE, encoder, *titles_and_texts(identifiers))
        with damage_reported(f"The tokenizer in {folder}", COPY_AGAIN):
            tokenizer.attach_identifiers(identifiers, texts)
            check_fingerprint(identifiers, tokenizer.init_kwargs.get(_FINGERPRINT), str(pretrained_model_name_or_path))
        taken = {tokenizer.pad_token_id, tokenizer.eos_token_id}.intersection(tokenizer.code_token_ids.tolist())
        if taken or None in (tokenizer.pad_token_id, tokenizer.eos_token_id):
            raise InputError(
                f"{folder / 'tokenizer_config.json'} names no token for padding and for the end that is not a code; "
                f"{COPY_AGAIN}."
            )
        return tokenizer

    def save_pretrained(self, save_directory: str | os.PathLike, **kwargs: Any) -> tuple[str, ...]:  # type: ignore[override]
        """Save the vocabulary, `identifiers.parquet` and, in tokenizer_config.json, a fingerprint of that table."""
        catalogue = self.catalogue
        self._made.init_kwargs[_FINGERPRINT] = table_fingerprint(catalogue.identifiers)
        self._made.init_kwargs[_TEXT_MATCHING] = catalogue.texts is not None
        if self.decoder_only:
            # Without an entry, `AutoTokenizer` takes the class that transformers has for the type of the model, such as
            # Qwen2's. It takes the class of `tokenizer_class` where code of this name is not trusted.
            self._made._auto_map = {"AutoTokenizer": [None, "gensar_hf.GenSARTokenizer"]}
        files = super(GenSARTokenizer, self._made).save_pretrained(save_directory, **kwargs)
        identifiers_path = Path(save_directory) / IDENTIFIERS_FILE
        if catalogue.texts is not None:
            catalogue.texts.save(save_directory)
        catalogue.identifiers.save(identifiers_path)
        return (*files, str(identifiers_path))

    def attach_identifiers(self, identifiers: IdentifierTable, texts: TextIndex | None = None) -> None:
        """Swap the catalogue atomically; running requests keep the old one.

        Args:
            identifiers: the new table.
            texts: its texts, if the model matches texts; default: those of the present catalogue, continued.

        Raises:
            InputError: the vocabulary lacks one of the code tokens.
        """
        if "_made" not in self.__dict__:
            self._made = type(self)(tokenizer_object=self.backend_tokenizer, **self.init_kwargs)
            self._made.backend_tokenizer.no_truncation()  # what an earlier version may have saved
            self._made.backend_tokenizer.no_padding()
        self.catalogue = self.catalogue_of(identifiers, texts)

    def catalogue_of(self, identifiers: IdentifierTable, texts: TextIndex | None = None) -> Catalogue:
        """The catalogue of an identifier table, without using it yet. Errors as in `attach_identifiers`."""
        present: Catalogue | None = getattr(self, "catalogue", None)
        if texts is None and present is not None and present.texts is not None:
            texts = present.texts.with_items(*titles_and_texts(identifiers))
        behavior_tokens = self.init_kwargs.get("behavior_tokens", True)  # models saved by earlier versions have them
        return Catalogue.of_table(
            identifiers,
            self.get_vocab(),
            behavior_tokens,
            texts,
            start_length=None if self.decoder_only else 1,
            end_token_id=self._made.eos_token_id,
            pad_token_id=self._made.pad_token_id,
        )

    @property
    def identifiers(self) -> IdentifierTable:
        """Item id ↔ the two identifiers."""
        return self.catalogue.identifiers

    @property
    def item_token_ids(self) -> Mapping[Behavior, np.ndarray]:
        """Per kind of click, `(num_items, 1 + num_levels)` token ids of each item's behavior-aware identifier."""
        return self.catalogue.item_token_ids

    @property
    def behavior_ids(self) -> Mapping[Behavior, int]:
        """Token id of each behavior."""
        return self.catalogue.behavior_ids

    @property
    def trie(self) -> Trie:
        """All `[behavior token, code 1 … code L]` of the available items; values are rows of the identifier table."""
        return self.catalogue.trie

    @property
    def code_token_ids(self) -> np.ndarray:
        """Ids of the behavior and code tokens."""
        tokens = [*BEHAVIOR_TOKENS, *self.identifiers.code_tokens()]
        return np.array(self.convert_tokens_to_ids(tokens))

    @property
    def trained_tasks(self) -> frozenset[str] | None:
        """Names of the tasks that the model next to this tokenizer was trained on; None: not recorded."""
        names = self._made.init_kwargs.get(_TRAINED_TASKS)
        return frozenset(map(str, names)) if isinstance(names, list) else None

    def record_tasks(self, tasks: Iterable[str]) -> None:
        """Add to `trained_tasks`, which are saved with an adapter as well as with a model."""
        self._made.init_kwargs[_TRAINED_TASKS] = sorted({*(self.trained_tasks or ()), *map(str, tasks)})

    @property
    def history_encoding(self) -> str:
        """`"events"` or `"tokens"`, see `GenSARConfig`."""
        return self.init_kwargs["history_encoding"]

    @property
    def max_history_events(self) -> int:
        """Longer histories are cut to their last events."""
        return self.init_kwargs["max_history_events"]

    @property
    def decoder_only(self) -> bool:
        """Whether it belongs to a decoder-only model."""
        return self.init_kwargs.get("decoder_only", False)

    # ---- requests

    def encode_request(
        self,
        history: History | Sequence[History],
        query: str | Sequence[str | None] | None = None,
        behavior: str | Sequence[str] = Behavior.RECOMMENDED_ITEM.token,
        on_unknown: str = "raise",
        return_tensors: str | None = "pt",
        catalogue: Catalogue | None = None,
    ) -> BatchEncoding:
        """Encode requests as inputs of `model.generate`.

        Args:
            history: a list of events, oldest first, such as `[{"item_id": "242"}, {"query": "comedy"}]`; or a list
                of such lists, which makes a batch.
            query: the current query, for `<S_I>`; one for each history of a batch.
            behavior: `<R_I>` (recommend), `<S_I>` (search) or `<S_Q>` (suggest a query); one, or one per history.
            on_unknown: `"raise"` or `"skip"` for an item that is not in the catalogue.
            return_tensors: `"pt"`, `"np"` or None (lists).
            catalogue: where the history's items are looked up; default: `self.catalogue`.

        Returns:
            `input_ids`, `attention_mask` `(batch_size, num_tokens)`, `decoder_input_ids` `(batch_size, 2)`. With
            `history_encoding="events"` also `event_ids` `(batch_size, num_tokens)`, -1 for padding, and `event_items`
            `(batch_size, num_positions)`, -1 for no item; if the model matches texts, the `query_…` inputs of
            `GenSARForConditionalGeneration.forward`. For a decoder-only model `input_ids` and `attention_mask`
            only, padded on the left; the last token is the behavior token.

        Raises:
            ValueError: unknown behavior or item, a missing or superfluous query, lists of different lengths.
        """
        requests = _as_batch(history, query, behavior)
        catalogue = catalogue or self.catalogue
        index_of = catalogue.identifiers.index_of
        histories, queries, behaviors = (list(column) for column in zip(*requests, strict=True))
        arrays = [parse_history(history, index_of, on_unknown) for history in histories]
        return self.encode_events(arrays, queries, behaviors, return_tensors, catalogue)

    def encode_events(
        self,
        histories: Sequence[EventArrays],
        query: str | Sequence[str | None] | None = None,
        behavior: str | Sequence[str] = Behavior.RECOMMENDED_ITEM.token,
        return_tensors: str | None = "pt",
        catalogue: Catalogue | None = None,
    ) -> BatchEncoding:
        """As `encode_request`, for a batch of histories that are already arrays (`EventArrays.of_user_events`)."""
        requests = _as_batch(list(histories), query, behavior, is_batch=True)
        catalogue, query_tokens = catalogue or self.catalogue, dict[str, np.ndarray]()
        rows = [self._encode_one(*request, catalogue, query_tokens) for request in requests]
        starts = [catalogue.behavior_ids[_as_behavior(token)] for _, _, token in requests]
        if self.decoder_only:
            prompts = [np.append(tokens, start) for (tokens, *_), start in zip(rows, starts, strict=True)]
            return BatchEncoding(self.pad_rows(prompts, []), tensor_type=return_tensors)
        encoding = self.pad_rows([tokens for tokens, *_ in rows], [event_ids for _, event_ids, *_ in rows])
        if self.history_encoding == "events":
            encoding["event_items"] = pad_right([event_items for _, _, event_items, _ in rows], NO_ITEM)
            queries = [own_queries for *_, own_queries in rows]
            if catalogue.texts is not None:
                encoding |= query_inputs(queries, catalogue.texts.read, catalogue)
        encoding["decoder_input_ids"] = np.array([[self._made.pad_token_id, start] for start in starts])
        return BatchEncoding(encoding, tensor_type=return_tensors)

    def _encode_one(
        self, events: EventArrays, query: str | None, token: str, catalogue: Catalogue, cache: dict[str, np.ndarray]
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray, list[str]]:
        """Token ids, event ids, and item and query of each position; `cache` holds the tokens of queries."""
        behavior = _as_behavior(token)
        if (query is not None) != (behavior is Behavior.SEARCHED_ITEM):
            raise ValueError(
                f"Behavior {token} {'needs a' if query is None else 'takes no'} query; got query={shown(query)}. "
                "A query goes with <S_I>."
            )
        # Inserted query events only move earlier events out, so the rest of the history is not needed.
        events = events.last(self.max_history_events).with_query_events().last(self.max_history_events)
        if query is not None:
            query = cut_query(query)
            if not events.is_session_of(query):
                events = events.followed_by(Behavior.SEARCH_QUERY, NO_ITEM, query)
        for text in {query for query in events.queries if query} - cache.keys():
            cache[text] = self.query_tokens(text, catalogue)
        instruction = self.text_ids(PROMPTS[HISTORY_TASKS[behavior]].instruction())
        items = catalogue.trained_rows(np.array([NO_ITEM, *events.items]))
        queries = ["", *queries_of(events)]
        return *self.assemble(instruction, self.event_tokens(events, cache, catalogue)), items, queries

    def event_tokens(
        self, events: EventArrays, query_tokens: Mapping[str, np.ndarray], catalogue: Catalogue | None = None
    ) -> list[np.ndarray]:
        """The one tokenization of events: `(num_tokens,)` ids per event, the behavior token first.

        Args:
            events: of one history.
            query_tokens: query → its tokens (`query_tokens`), of all queries in the events.
            catalogue: default: `self.catalogue`.
        """
        items = (catalogue or self.catalogue).item_token_ids
        return [
            query_tokens[query] if behavior == Behavior.SEARCH_QUERY else items[behavior][item]  # type: ignore[index]
            for behavior, item, query in zip(*events, strict=True)
        ]

    def query_tokens(self, query: str, catalogue: Catalogue | None = None) -> np.ndarray:
        """`(num_tokens,)`: `<S_Q>` and the words of a query."""
        start = (catalogue or self.catalogue).behavior_ids[Behavior.SEARCH_QUERY]
        return np.insert(self.text_ids(cut_query(query)), 0, start)

    def assemble(self, instruction: np.ndarray, events: Sequence[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
        """Join an instruction and events to one encoder input or prompt.

        Returns:
            `(num_tokens,)` token ids and `(num_tokens,)` event ids: position 0 is the instruction, the events follow.
            With `history_encoding="tokens"` the event ids are unused and an encoder input ends with an end token. A
            prompt begins with the start token that the text tokenizer puts before every text, if any.
        """
        pieces = [instruction, *events]
        if self.decoder_only:
            pieces.insert(0, self._text_start)
            too_long = sum(map(len, pieces)) + _MOST_ANSWER_TOKENS - self._made.model_max_length
            while too_long > 0 and len(pieces) > 3:  # 3: the latest event, which may be the query
                too_long -= len(pieces.pop(2))
        elif self.history_encoding == "tokens":
            pieces.append(np.array([self._made.eos_token_id]))
        event_ids = np.repeat(np.arange(len(pieces)), [len(piece) for piece in pieces])
        return np.concatenate(pieces), event_ids

    @cached_property
    def _tokens_without_bracket(self) -> list[str]:
        """Added tokens of the text tokenizer that are not written as `<…>`, such as Mistral's `[INST]`."""
        added = [str(token) for token in self._made.added_tokens_decoder.values()]
        return [token for token in added if "<" not in token and len(token) > 1]

    @cached_property
    def _text_start(self) -> np.ndarray:
        """`(1,)` the start token that the text tokenizer puts before every text, or `(0,)` if it puts none."""
        ids = self._made.backend_tokenizer.encode("", add_special_tokens=True).ids
        return np.array([token for token in ids[:1] if token == self._made.bos_token_id], dtype=np.int64)

    def pad_rows(self, token_rows: Sequence[np.ndarray], event_id_rows: Sequence[np.ndarray]) -> dict[str, np.ndarray]:
        """Pad rows to one length: `input_ids`, `attention_mask` and, for events, `event_ids`."""
        pad = pad_left if self.decoder_only else pad_right
        encoding = {
            "input_ids": pad(token_rows, self._made.pad_token_id),
            "attention_mask": pad([np.ones_like(row) for row in token_rows], 0),
        }
        if self.history_encoding == "events":
            encoding["event_ids"] = pad_right(event_id_rows, NO_EVENT)
        return encoding

    def text_ids(self, text: str, max_length: int = 128) -> np.ndarray:
        """`(num_tokens,)` ids of a text's words, without an end token; at most the first `max_length`.

        Behavior, code and end tokens in a user's text are read as plain text: an inserted blank keeps the tokenizer
        from recognizing them. The text is normalized first, because the normalizer maps other characters to `<`, such
        as the full-width one.
        """
        backend = self._made.backend_tokenizer
        text = text[: max_length * _MAX_TOKEN_CHARACTERS]
        if backend.normalizer is not None:
            text = backend.normalizer.normalize_str(text)
        for token in self._tokens_without_bracket:
            text = text.replace(token, f"{token[0]} {token[1:]}")
        ids = backend.encode(text.replace("<", "< "), add_special_tokens=False).ids
        return np.array(ids[:max_length], dtype=np.int64)

    # ---- answers

    def decode_words(self, sequences: torch.Tensor) -> list[str]:
        """The words of generated queries, `(num_sequences, length)` tokens without the prompt."""
        return self._made.batch_decode(sequences, skip_special_tokens=True)

    def decode_items(self, sequences: torch.Tensor | np.ndarray | Sequence[Sequence[int]]) -> list[str | None]:
        """Item ids of generated sequences.

        Args:
            sequences: `(num_sequences, length)` from `model.generate`: decoder start (or the prompt of a decoder-only
                model), behavior token, codes, optional end token and padding.

        Returns:
            one item id per sequence; None if it is not an identifier of the catalogue.
        """
        catalogue = self.catalogue
        item_ids = catalogue.identifiers.item_ids
        return [None if row < 0 else item_ids[row] for row in self.decode_item_rows(sequences, catalogue)]

    def decode_item_rows(
        self, sequences: torch.Tensor | np.ndarray | Sequence[Sequence[int]], catalogue: Catalogue | None = None
    ) -> np.ndarray:
        """As `decode_items`, but `(num_sequences,)` rows of the identifier table, -1 for None."""
        table = torch.as_tensor(np.asarray(sequences.cpu() if isinstance(sequences, torch.Tensor) else sequences))
        trie = (catalogue or self.catalogue).trie
        codes = trie.answers(table.long())
        ended = ((codes == self._made.eos_token_id) | (codes == self._made.pad_token_id)).cummax(dim=1).values
        return trie.lookup(codes.masked_fill(ended, -1)).numpy()


def queries_of(events: EventArrays) -> list[str]:
    """The query of each event that is one, "" for a click."""
    return [
        query if behavior == Behavior.SEARCH_QUERY else ""
        for behavior, query in zip(events.behaviors, events.queries, strict=True)
    ]


def query_inputs(
    rows: Sequence[Sequence[str]], read: Callable[[Sequence[str]], QueryReading], catalogue: Catalogue
) -> dict[str, np.ndarray]:
    """The inputs of the encoder at the positions of queries.

    Args:
        rows: for each row of the batch the query at each position, "" for none.
        read: distinct queries → what the encoder reads of them.
        catalogue: with texts.

    Returns:
        `query_vectors`, `query_matches`, `query_match_scores` and `query_match_codes` of
        `GenSARForConditionalGeneration.forward`.
    """
    shape, texts = (len(rows), max(map(len, rows), default=0)), catalogue.texts
    vectors = np.zeros((*shape, 0 if texts is None else texts.dim), dtype=np.float32)
    matches = np.full((*shape, NUM_MATCHES), NO_ITEM)
    scores = np.zeros((*shape, NUM_MATCHES, len(CHANNELS)), dtype=np.float32)
    identifiers = catalogue.item_token_ids[Behavior.SEARCHED_ITEM][:, 1:]
    codes = np.zeros((*shape, NUM_MATCHES, identifiers.shape[1]), dtype=np.int64)
    places = [(row, column) for row, queries in enumerate(rows) for column, query in enumerate(queries) if query]
    if places:
        queries = [rows[row][column] for row, column in places]
        distinct = {query: number for number, query in enumerate(dict.fromkeys(queries))}
        reading, which = read(list(distinct)), [distinct[query] for query in queries]
        at = tuple(np.array(places).T)
        vectors[at], scores[at] = reading.vectors[which], reading.scores[which]
        # An item that was added after training has its own codes, and the vector of its nearest trained item.
        matches[at] = np.where(reading.items < 0, NO_ITEM, catalogue.trained_rows(reading.items))[which]
        codes[at] = identifiers[reading.items][which]
    return {
        "query_vectors": vectors, "query_matches": matches, "query_match_scores": scores, "query_match_codes": codes,
    }  # fmt: skip


def titles_and_texts(table: IdentifierTable) -> tuple[list[str], list[str]]:
    """A title and a text for each item; either stands in for the other."""
    titles = table.titles or table.texts or [""] * table.num_items
    return titles, table.texts or titles


def _check_settings(folder: Path, settings: Mapping[str, Any]) -> None:
    """Refuse settings of tokenizer_config.json that no tokenizer has."""
    for name, is_valid in {
        "history_encoding": lambda value: value in HISTORY_ENCODINGS,
        "max_history_events": lambda value: type(value) is int and value > 0,
        "decoder_only": lambda value: isinstance(value, bool),
        "behavior_tokens": lambda value: isinstance(value, bool),
        _TEXT_MATCHING: lambda value: isinstance(value, bool),
    }.items():
        value = settings.get(name, False if name not in ("history_encoding", "max_history_events") else None)
        if not is_valid(value):
            raise InputError(
                f"{folder / 'tokenizer_config.json'} sets `{name}` to {value!r}, which is none of its values; "
                f"{COPY_AGAIN}."
            )


def _teaching_text(text: str, normalizer: Any) -> str:
    """The beginning of a text as a vocabulary is trained on it, without overlong words.

    The trainer's time grows steeply with the length of the longest word, and beyond some 400,000 characters it crashes.
    """
    words = normalizer.normalize_str(text[:_MAX_TEXT_CHARACTERS]).split()
    return " ".join(word for word in words if len(word) <= _MAX_WORD_CHARACTERS)


def _in_fixed_order(tokenizer: Tokenizer) -> models.Unigram:
    """The trained pieces with deterministic scores, and so with deterministic ids.

    The trainer walks hash tables. The last bits of the scores differ from one training to the next, and so does the
    order of the rare characters that it adds below all other pieces, 0.0001 apart. A resumed run trains its tokenizer
    again and must get the same ids.
    """
    pieces = json.loads(tokenizer.to_str())["model"]["vocab"]
    special, pieces = pieces[: len(SPECIAL_TOKENS)], pieces[len(SPECIAL_TOKENS) :]
    num_characters = sum(len(piece) == 1 for piece, _ in pieces)
    lowest = min(score for _, score in pieces)
    rare = lowest + 1e-4 * num_characters
    fixed = [(piece, round(lowest if len(piece) == 1 and score <= rare else score, 6)) for piece, score in pieces]
    fixed.sort(key=lambda entry: (-entry[1], entry[0]))
    return models.Unigram([*map(tuple, special), *fixed], unk_id=SPECIAL_TOKENS.index(UNK))


def pad_right(rows: Sequence[np.ndarray], value: int) -> np.ndarray:
    """`(num_rows, longest)` int64."""
    table = np.full((len(rows), max((len(row) for row in rows), default=0)), value, dtype=np.int64)
    for target, row in zip(table, rows, strict=True):
        target[: len(row)] = row
    return table


def pad_left(rows: Sequence[np.ndarray], value: int) -> np.ndarray:
    """`(num_rows, longest)` int64."""
    return pad_right([row[::-1] for row in rows], value)[:, ::-1].copy()


def _as_behavior(token: str) -> Behavior:
    for behavior in Behavior:
        if behavior.token == token:
            return behavior
    raise ValueError(f"Unknown behavior {shown(token)}; it must be one of {', '.join(BEHAVIOR_TOKENS)}.")


def _as_batch(
    history: Any, query: str | Sequence[str | None] | None, behavior: str | Sequence[str], is_batch: bool = False
) -> list[tuple[Any, str | None, str]]:
    """One (history, query, behavior) per request, from single values or lists."""
    histories = history if is_batch else as_batch(history)[0]
    queries = as_list(query, "`query`", "of texts") if is_list(query) else [query] * len(histories)
    behaviors = as_list(behavior, "`behavior`", "of tokens") if is_list(behavior) else [behavior] * len(histories)
    if not len(histories) == len(queries) == len(behaviors):
        raise ValueError(
            "A batch needs as many queries and behaviors as histories; got "
            f"{len(histories)} histories, {len(queries)} queries and {len(behaviors)} behaviors."
        )
    return list(zip(histories, queries, behaviors, strict=True))


AutoTokenizer.register(GenSARConfig, fast_tokenizer_class=GenSARTokenizer)
