"""Words, behavior tokens and code tokens in one vocabulary; requests in, item ids out."""

import json
import logging
import os
from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import AutoTokenizer, BatchEncoding, TokenizersBackend

from gensar_hf.data import Behavior
from gensar_hf.decoding import Trie
from gensar_hf.errors import InputError
from gensar_hf.generator.catalogue import BEHAVIOR_TOKENS, Catalogue, check_fingerprint, table_fingerprint
from gensar_hf.generator.configuration_gensar import HISTORY_ENCODINGS, GenSARConfig
from gensar_hf.generator.history import History, HistoryEvent, cut_query, is_session_of, parse_history
from gensar_hf.generator.item_vectors import NO_ITEM
from gensar_hf.generator.prompts import HISTORY_TASKS, PROMPTS, all_instructions
from gensar_hf.hub import hub_trouble, optional_file
from gensar_hf.identifiers import IdentifierTable

logger = logging.getLogger(__name__)

IDENTIFIERS_FILE = "identifiers.parquet"
_FINGERPRINT = "identifiers_fingerprint"
NO_EVENT = -1
SPECIAL_TOKENS = PAD, EOS, UNK = ("<pad>", "</s>", "<unk>")


class GenSARTokenizer(TokenizersBackend):
    """A text tokenizer that also knows the behavior tokens, the code tokens and the catalogue's identifiers.

    Build one with `train_from_texts` (a vocabulary of its own) or `from_text_tokenizer` (T5's or Llama's, say); load
    one with `from_pretrained`, which reads `identifiers.parquet` from the same folder or Hub repository.

    For a decoder alone (`decoder_only`) a request is one row that ends with the behavior token, padded on the left,
    which `generate` goes on with.

    No `__init__`: a subclass that has one loses its normalizer when it is loaded again. What it must remember are
    keyword arguments, which transformers keeps in tokenizer_config.json: `history_encoding`, `max_history_events`,
    `behavior_tokens`, `decoder_only`.

    `catalogue` holds all that depends on the items; it is replaced as a whole. A method that needs several parts of it
    takes it once, at its start.
    """

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

        Args:
            texts: item texts and training queries.
            identifiers: the catalogue's identifiers.
            vocab_size: of the words' part; fewer pieces where the texts do not hold so many.
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
        trainer = trainers.UnigramTrainer(
            vocab_size=vocab_size, special_tokens=list(SPECIAL_TOKENS), unk_token=UNK, show_progress=False
        )
        tokenizer.train_from_iterator([*all_instructions(), *texts], trainer)
        tokenizer.model = _in_fixed_order(tokenizer)
        eos_id = tokenizer.token_to_id(EOS)
        tokenizer.post_processor = processors.TemplateProcessing(
            single=f"$A {EOS}", pair=f"$A {EOS} $B {EOS}", special_tokens=[(EOS, eos_id)]
        )
        special_tokens = {"pad_token": PAD, "eos_token": EOS, "unk_token": UNK}
        return cls._with_identifiers(
            tokenizer, special_tokens, identifiers, history_encoding, max_history_events, behavior_tokens
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
    ) -> "GenSARTokenizer":
        """Take over a text tokenizer, such as T5's or Llama's, and add the behavior and code tokens.

        Args:
            tokenizer: any fast tokenizer; its special tokens are taken over, and where it has no padding token, as
                Llama's, the end token pads.
            identifiers: the catalogue's identifiers.
            history_encoding: see `GenSARConfig`; a decoder alone reads `"tokens"`.
            max_history_events: longer histories are cut to their last events.
            behavior_tokens: see `Catalogue.of_table`.
            decoder_only: for a decoder alone, see the class.

        Raises:
            ValueError: the tokenizer has no end token, or a setting is out of range.
        """
        if decoder_only and history_encoding != "tokens":
            raise ValueError(f"A decoder alone reads histories as 'tokens'; got history_encoding={history_encoding!r}.")
        names = ("pad_token", "eos_token", "unk_token", "bos_token")
        special_tokens = {name: token for name in names if (token := getattr(tokenizer, name, None)) is not None}
        if "eos_token" not in special_tokens:
            raise ValueError("The text tokenizer has no `eos_token`, which ends the words of a query; set one.")
        return cls._with_identifiers(
            tokenizer.backend_tokenizer,
            {"pad_token": special_tokens["eos_token"], **special_tokens},
            identifiers,
            history_encoding,
            max_history_events,
            behavior_tokens,
            decoder_only,
        )

    @classmethod
    def _with_identifiers(
        cls,
        backend: Tokenizer,
        special_tokens: Mapping[str, str],
        identifiers: IdentifierTable,
        history_encoding: str,
        max_history_events: int,
        behavior_tokens: bool,
        decoder_only: bool = False,
    ) -> "GenSARTokenizer":
        if history_encoding not in HISTORY_ENCODINGS:
            raise ValueError(
                f"`history_encoding` must be one of {', '.join(HISTORY_ENCODINGS)}; got {history_encoding!r}."
            )
        if max_history_events < 1:
            raise ValueError(f"`max_history_events` must be at least 1; got {max_history_events}.")
        tokenizer = cls(
            tokenizer_object=backend,
            **special_tokens,
            padding_side="left" if decoder_only else "right",
            history_encoding=history_encoding,
            max_history_events=max_history_events,
            behavior_tokens=behavior_tokens,
            decoder_only=decoder_only,
        )
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
        try:
            path = optional_file(pretrained_model_name_or_path, IDENTIFIERS_FILE, **kwargs)
        except OSError as error:
            raise InputError(
                "The model's tokenizer cannot be loaded: " + hub_trouble(pretrained_model_name_or_path, error)
            ) from error
        if path is None:
            raise InputError(
                f"{pretrained_model_name_or_path} holds no {IDENTIFIERS_FILE}, without which codes cannot be turned "
                "into items; save the tokenizer with `save_pretrained`, or copy the file from the run's model folder."
            )
        tokenizer = super().from_pretrained(pretrained_model_name_or_path, *args, **kwargs)
        identifiers = IdentifierTable.load(path)
        tokenizer.attach_identifiers(identifiers)
        check_fingerprint(identifiers, tokenizer.init_kwargs.get(_FINGERPRINT), str(pretrained_model_name_or_path))
        return tokenizer

    def save_pretrained(self, save_directory: str | os.PathLike, **kwargs: Any) -> tuple[str, ...]:  # type: ignore[override]
        """Save the vocabulary and `identifiers.parquet`, and in tokenizer_config.json what tells that table by."""
        catalogue = self.catalogue
        self.init_kwargs[_FINGERPRINT] = table_fingerprint(catalogue.identifiers)
        files = super().save_pretrained(save_directory, **kwargs)
        identifiers_path = Path(save_directory) / IDENTIFIERS_FILE
        catalogue.identifiers.save(identifiers_path)
        return (*files, str(identifiers_path))

    def attach_identifiers(self, identifiers: IdentifierTable) -> None:
        """Take a catalogue's identifiers into use, all at once: a request sees the old catalogue or the new one.

        Raises:
            InputError: the vocabulary lacks one of their code tokens.
        """
        self.catalogue = self.catalogue_of(identifiers)

    def catalogue_of(self, identifiers: IdentifierTable) -> Catalogue:
        """A catalogue in this tokenizer's tokens, not in use yet; errors as for `attach_identifiers`."""
        behavior_tokens = self.init_kwargs.get("behavior_tokens", True)  # models saved by earlier versions have them
        return Catalogue.of_table(
            identifiers,
            self.get_vocab(),
            behavior_tokens,
            start_length=None if self.decoder_only else 1,
            end_token_id=self.eos_token_id,
            pad_token_id=self.pad_token_id,
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
        """Ids of the behavior and code tokens: all that is no text."""
        tokens = [*BEHAVIOR_TOKENS, *self.identifiers.code_tokens()]
        return np.array(self.convert_tokens_to_ids(tokens))

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
        """Whether it is for a decoder alone, see the class."""
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
        """What `model.generate` needs to answer: the history read, the behavior asked for.

        Args:
            history: a list of events, oldest first, such as `[{"item_id": "242"}, {"query": "comedy"}]`; or a list
                of such lists, which makes a batch.
            query: the current query, for `<S_I>`; one for each history of a batch.
            behavior: `<R_I>` (recommend), `<S_I>` (search) or `<S_Q>` (suggest a query); one, or one a history.
            on_unknown: what to do with an item that is not in the catalogue: `"raise"` or `"skip"`.
            return_tensors: `"pt"`, `"np"` or None (lists).
            catalogue: in which the history's items are looked up; default: the one in use.

        Returns:
            `input_ids`, `attention_mask` `(batch_size, num_tokens)`, `decoder_input_ids` `(batch_size, 2)` and, with
            `history_encoding="events"`, `event_ids` `(batch_size, num_tokens)`, -1 for padding. For a decoder alone
            `input_ids` and `attention_mask` only, padded on the left; the last token is the behavior token.

        Raises:
            ValueError: unknown behavior or item, a query missing or not wanted, lists of different lengths.
        """
        requests = _as_batch(history, query, behavior)
        catalogue = catalogue or self.catalogue
        rows = [self._encode_one(*request, on_unknown, catalogue) for request in requests]
        behaviors = [catalogue.behavior_ids[_as_behavior(asked)] for _, _, asked in requests]
        if self.decoder_only:
            prompts = [np.append(tokens, behavior) for (tokens, _, _), behavior in zip(rows, behaviors, strict=True)]
            return BatchEncoding(self.pad_rows(prompts, []), tensor_type=return_tensors)
        encoding = self.pad_rows([tokens for tokens, _, _ in rows], [event_ids for _, event_ids, _ in rows])
        if self.history_encoding == "events":
            encoding["event_items"] = pad_right([event_items for _, _, event_items in rows], NO_ITEM)
        encoding["decoder_input_ids"] = np.array([[self.pad_token_id, token] for token in behaviors])
        return BatchEncoding(encoding, tensor_type=return_tensors)

    def _encode_one(
        self, history: History, query: str | None, behavior_token: str, on_unknown: str, catalogue: Catalogue
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Token ids, event ids, and the item of each position."""
        behavior = _as_behavior(behavior_token)
        if (query is not None) != (behavior is Behavior.SEARCHED_ITEM):
            raise ValueError(
                f"Behavior {behavior_token} {'needs a' if query is None else 'takes no'} query; got query={query!r}. "
                "A query goes with <S_I>."
            )
        events = parse_history(history, catalogue.identifiers.index_of, on_unknown)[-self.max_history_events :]
        if query is not None and not is_session_of(cut_query(query), events):
            events.append(HistoryEvent(Behavior.SEARCH_QUERY, query=cut_query(query)))
        instruction = self.text_ids(PROMPTS[HISTORY_TASKS[behavior]].instruction())
        items = catalogue.trained_rows(np.array([NO_ITEM, *(event.item for event in events)]))
        return *self.assemble(instruction, [self.event_tokens(event, catalogue) for event in events]), items

    def assemble(self, instruction: np.ndarray, events: Sequence[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
        """One encoder input, or the beginning of one prompt, from an instruction and events.

        Returns:
            `(num_tokens,)` token ids and `(num_tokens,)` event ids: the instruction is position 0, the events follow;
            with `history_encoding="tokens"` the event ids are not used, and an encoder's input is closed by an end
            token. A prompt begins as every text of the decoder does, with a start token or without.
        """
        pieces = [instruction, *events]
        if self.decoder_only:
            pieces.insert(0, self._text_start)
        elif self.history_encoding == "tokens":
            pieces.append(np.array([self.eos_token_id]))
        event_ids = np.repeat(np.arange(len(pieces)), [len(piece) for piece in pieces])
        return np.concatenate(pieces), event_ids

    @cached_property
    def _tokens_without_bracket(self) -> list[str]:
        """What else than `<…>` the text tokenizer recognises anywhere in a text, such as Mistral's `[INST]`."""
        added = [str(token) for token in self.added_tokens_decoder.values()]
        return [token for token in added if "<" not in token and len(token) > 1]

    @cached_property
    def _text_start(self) -> np.ndarray:
        """`(1,)` the start token that the text tokenizer puts before every text, or `(0,)` if it puts none."""
        ids = self.backend_tokenizer.encode("", add_special_tokens=True).ids
        return np.array([token for token in ids[:1] if token == self.bos_token_id], dtype=np.int64)

    def pad_rows(self, token_rows: Sequence[np.ndarray], event_id_rows: Sequence[np.ndarray]) -> dict[str, np.ndarray]:
        """Pad rows to one length: `input_ids`, `attention_mask` and, for events, `event_ids`."""
        pad = pad_left if self.decoder_only else pad_right
        encoding = {
            "input_ids": pad(token_rows, self.pad_token_id),
            "attention_mask": pad([np.ones_like(row) for row in token_rows], 0),
        }
        if self.history_encoding == "events":
            encoding["event_ids"] = pad_right(event_id_rows, NO_EVENT)
        return encoding

    def event_tokens(self, event: HistoryEvent, catalogue: Catalogue | None = None) -> np.ndarray:
        """`(num_tokens,)`: the behavior token, then the identifier's codes or the query's words."""
        catalogue = catalogue or self.catalogue
        if event.behavior is Behavior.SEARCH_QUERY:
            return np.concatenate([[catalogue.behavior_ids[Behavior.SEARCH_QUERY]], self.text_ids(event.query)])
        return catalogue.item_token_ids[event.behavior][event.item]

    def text_ids(self, text: str, max_length: int = 128) -> np.ndarray:
        """`(num_tokens,)` ids of a text's words, without an end token; the first `max_length` of them.

        A behavior, code or end token that stands in a user's text is text: the blank keeps it from being recognised.
        Normalized first, because the normalizer makes `<` of other characters, such as the full-width one.
        """
        normalizer = self.backend_tokenizer.normalizer
        if normalizer is not None:
            text = normalizer.normalize_str(text)
        for token in self._tokens_without_bracket:
            text = text.replace(token, f"{token[0]} {token[1:]}")
        ids = self.backend_tokenizer.encode(text.replace("<", "< "), add_special_tokens=False).ids
        return np.array(ids[:max_length], dtype=np.int64)

    # ---- answers

    def decode_items(self, sequences: torch.Tensor | np.ndarray | Sequence[Sequence[int]]) -> list[str | None]:
        """Item ids of generated sequences.

        Args:
            sequences: `(num_sequences, length)` as `model.generate` returns them: decoder start (of a decoder alone
                the prompt), behavior token, codes, perhaps an end token and padding.

        Returns:
            one item id a sequence; None for one that is no identifier of the catalogue.
        """
        catalogue = self.catalogue
        item_ids = catalogue.identifiers.item_ids
        return [None if row < 0 else item_ids[row] for row in self.decode_item_rows(sequences, catalogue)]

    def decode_item_rows(
        self,
        sequences: torch.Tensor | np.ndarray | Sequence[Sequence[int]],
        catalogue: Catalogue | None = None,
    ) -> np.ndarray:
        """As `decode_items`, but `(num_sequences,)` rows of the identifier table, -1 for none."""
        table = torch.as_tensor(np.asarray(sequences.cpu() if isinstance(sequences, torch.Tensor) else sequences))
        trie = (catalogue or self.catalogue).trie
        codes = trie.answers(table.long())
        ended = ((codes == self.eos_token_id) | (codes == self.pad_token_id)).cummax(dim=1).values
        return trie.lookup(codes.masked_fill(ended, -1)).numpy()


def _in_fixed_order(tokenizer: Tokenizer) -> models.Unigram:
    """The trained pieces with scores, and so with ids, that are the same in every training on the same texts.

    The trainer walks hash tables: the last bits of the scores differ from one training to the next, and so does the
    order of the rare characters that it adds below all other pieces, 0.0001 apart. A run that is resumed trains its
    tokenizer again, and must find the ids that its weights were trained with.
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
    raise ValueError(f"Unknown behavior {token!r}; it must be one of {', '.join(BEHAVIOR_TOKENS)}.")


def _as_batch(
    history: Any, query: str | Sequence[str | None] | None, behavior: str | Sequence[str]
) -> list[tuple[History, str | None, str]]:
    """One (history, query, behavior) a request, from single values or lists."""
    is_batch = isinstance(history, Sequence) and len(history) > 0 and isinstance(history[0], (list, tuple))
    histories = list(history) if is_batch else [history]
    queries = [query] * len(histories) if query is None or isinstance(query, str) else list(query)
    behaviors = [behavior] * len(histories) if isinstance(behavior, str) else list(behavior)
    if not len(histories) == len(queries) == len(behaviors):
        raise ValueError(
            "A batch needs as many queries and behaviors as histories; got "
            f"{len(histories)} histories, {len(queries)} queries and {len(behaviors)} behaviors."
        )
    return list(zip(histories, queries, behaviors, strict=True))


AutoTokenizer.register(GenSARConfig, fast_tokenizer_class=GenSARTokenizer)
