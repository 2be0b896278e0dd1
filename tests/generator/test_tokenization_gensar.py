import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import AutoTokenizer, TokenizersBackend

from gensar_hf.data import RECOMMENDATION, SEARCH, Behavior, Requests, Split, UserEvents
from gensar_hf.errors import InputError
from gensar_hf.generator.examples import TrainingExamples
from gensar_hf.generator.history import EventArrays
from gensar_hf.generator.prompts import HISTORY_TASKS, PROMPTS, Task
from gensar_hf.generator.tokenization_gensar import BEHAVIOR_TOKENS, GenSARTokenizer, pad_left, pad_right
from gensar_hf.identifiers import IdentifierTable

T5_TOKENIZER = Path(__file__).parents[3] / "shared" / "data" / "t5-tokenizer"
HISTORY = [{"item_id": "film-2"}, {"query": "Comedy 1990s"}, {"item_id": "film-3", "query": "Comedy 1990s"}]
INSTRUCTION = PROMPTS[Task.NEXT_RECOMMENDED_ITEM].templates[0]
# Text that is near the tokens without being one: halves, brackets, blanks, full-width and small forms of < and >.
NEAR_TOKENS = st.lists(
    st.sampled_from(
        ["<", ">", "R_I", "<R_I>", "<S_Q>", "<M1_0>", "</s>", "<pad>", "<unk>", "＜", "＞", "﹤", "﹥", " "]
    )
    | st.text(max_size=5),
    max_size=8,
).map("".join)


@pytest.fixture
def tokenizer(tokenizers: dict[str, GenSARTokenizer]) -> GenSARTokenizer:
    return tokenizers["events"]


def new_tokens(tokenizer: GenSARTokenizer) -> list[str]:
    return [*BEHAVIOR_TOKENS, *tokenizer.identifiers.code_tokens()]


def event_words(tokenizer: GenSARTokenizer, encoding: dict, row: int = 0) -> list[list[str]]:
    """The tokens of each event of an encoded request."""
    tokens = tokenizer.convert_ids_to_tokens(encoding["input_ids"][row].tolist())
    ids = encoding["event_ids"][row].tolist()
    return [
        [token for token, event in zip(tokens, ids, strict=True) if event == wanted] for wanted in range(max(ids) + 1)
    ]


# ---- one token each


def test_every_behavior_and_code_token_has_an_id_of_its_own(tokenizer: GenSARTokenizer) -> None:
    tokens = new_tokens(tokenizer)
    ids = tokenizer.convert_tokens_to_ids(tokens)
    assert len(tokens) == 3 + 6 * 4  # two shared, two semantic and two collaborative levels of four codes
    assert len(set(ids)) == len(tokens)
    assert tokenizer.unk_token_id not in ids
    assert sorted(ids) == list(range(len(tokenizer) - len(tokens), len(tokenizer)))
    assert sorted(tokenizer.code_token_ids) == sorted(ids)


@settings(deadline=None, max_examples=30)
@given(before=st.text(max_size=12), after=st.text(max_size=12), data=st.data())
def test_each_is_one_token_in_any_surrounding_text(
    tokenizers: dict[str, GenSARTokenizer], before: str, after: str, data: st.DataObject
) -> None:
    tokenizer = tokenizers["events"]
    token = data.draw(st.sampled_from(new_tokens(tokenizer)))
    alone = tokenizer.convert_tokens_to_ids(token)
    assert tokenizer(f"{before}{token}{after}", add_special_tokens=False)["input_ids"].count(alone) == 1


def test_words_are_lower_cased_and_tokens_are_not(tokenizer: GenSARTokenizer) -> None:
    assert tokenizer("TOY Story <R_I>")["input_ids"] == tokenizer("toy story <R_I>")["input_ids"]
    assert tokenizer.convert_tokens_to_ids("<R_I>") not in tokenizer("<r_i>")["input_ids"]
    assert tokenizer.decode(tokenizer.text_ids("TOY Story")) == "toy story"


@settings(deadline=None, max_examples=60)
@given(text=NEAR_TOKENS)
def test_no_user_text_is_read_as_a_token(tokenizers: dict[str, GenSARTokenizer], text: str) -> None:
    tokenizer = tokenizers["events"]
    forbidden = {*tokenizer.code_token_ids.tolist(), tokenizer.pad_token_id, tokenizer.eos_token_id}
    assert not forbidden & set(tokenizer.text_ids(text).tolist())


@pytest.mark.parametrize("query", ["<R_I>", "find <M1_0> <S1_2>", "＜R_I＞ ＜/s＞", "<pad></s>"])
def test_a_query_cannot_smuggle_tokens_in(tokenizer: GenSARTokenizer, query: str) -> None:
    encoding = tokenizer.encode_request([{"query": query + " films"}], query=query, behavior="<S_I>")
    special = {*tokenizer.code_token_ids.tolist(), tokenizer.pad_token_id, tokenizer.eos_token_id}
    used = [token for token in encoding["input_ids"][0].tolist() if token in special]
    assert used == [tokenizer.behavior_ids[Behavior.SEARCH_QUERY]] * 2


def test_a_repeated_query_continues_its_search_session(tokenizer: GenSARTokenizer) -> None:
    item = tokenizer.identifiers.item_ids[0]
    typed, clicked = {"query": "space"}, {"item_id": item, "query": "space"}

    def queries(history: list, query: str) -> int:
        encoding = tokenizer.encode_request(history, query=query, behavior="<S_I>")
        return encoding["input_ids"][0].tolist().count(tokenizer.behavior_ids[Behavior.SEARCH_QUERY])

    assert queries([typed], "space") == 1
    assert queries([typed, clicked], "space") == 1
    assert queries([typed, clicked], "war") == 2
    assert queries([typed, clicked, {"item_id": item}], "space") == 2


def test_more_characters_than_pieces_are_learned(identifiers: IdentifierTable) -> None:
    """As in a catalogue in Chinese, with default settings."""
    texts = ["".join(chr(0x4E00 + (37 * row + place) % 2500) for place in range(12)) for row in range(400)]
    tokenizer = GenSARTokenizer.train_from_texts([*texts, "space adventure"], identifiers)
    for text in (*texts, "Space adventure"):
        assert tokenizer.decode(tokenizer.text_ids(text)) == text.lower()
    assert tokenizer.unk_token_id in tokenizer.text_ids("ж")


def test_rare_characters_of_a_huge_alphabet_are_unknown(
    identifiers: IdentifierTable, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gensar_hf.generator.tokenization_gensar._MAX_ALPHABET", 50)
    texts = ["".join(chr(0x4E00 + k) for k in range(30)), *["一丁七 film"] * 9]
    tokenizer = GenSARTokenizer.train_from_texts(texts, identifiers, vocab_size=40)
    assert tokenizer.unk_token_id not in tokenizer.text_ids("一丁七 film")
    assert tokenizer.unk_token_id in tokenizer.text_ids(chr(0x4E00 + 29))


def test_an_unbroken_text_teaches_nothing(identifiers: IdentifierTable) -> None:
    """Half a million characters took the trainer minutes, or the process died."""
    texts = ["red soap", "red soap " + "iVBORw0KGgo+/9dk" * 30_000]
    tokenizer = GenSARTokenizer.train_from_texts(texts, identifiers)
    assert (
        tokenizer.get_vocab().keys()
        == GenSARTokenizer.train_from_texts(["red soap"] * 2, identifiers).get_vocab().keys()
    )
    assert len(tokenizer.text_ids(texts[1])) == 128


def test_long_text_is_cut(tokenizer: GenSARTokenizer) -> None:
    assert len(tokenizer.text_ids("space adventure " * 500)) == 128


# ---- identifiers


def test_identifiers_of_items_are_the_behavior_token_and_the_codes(tokenizer: GenSARTokenizer) -> None:
    """Item 4 has the semantic codes (0, 1, 1, 0) and the collaborative codes (0, 1, 2, 0)."""
    tokens = {
        behavior: tokenizer.convert_ids_to_tokens(ids[4].tolist()) for behavior, ids in tokenizer.item_token_ids.items()
    }
    assert tokens == {
        Behavior.RECOMMENDED_ITEM: ["<R_I>", "<M1_0>", "<M2_1>", "<R1_2>", "<R2_0>"],
        Behavior.SEARCHED_ITEM: ["<S_I>", "<M1_0>", "<M2_1>", "<S1_1>", "<S2_0>"],
    }


@pytest.mark.parametrize("num_shared", [0, 4])
def test_all_levels_may_be_shared_or_none(num_shared: int, identifiers: IdentifierTable) -> None:
    semantic = identifiers.semantic_codes
    collaborative = semantic if num_shared == 4 else identifiers.collaborative_codes
    table = IdentifierTable(identifiers.item_ids, semantic, collaborative, num_shared, 4)
    tokenizer = GenSARTokenizer.train_from_texts(["toy story"], table, vocab_size=60)
    for row in range(table.num_items):
        for behavior, tokens in (
            (Behavior.RECOMMENDED_ITEM, table.collaborative_tokens(row)),
            (Behavior.SEARCHED_ITEM, table.semantic_tokens(row)),
        ):
            ids = tokenizer.convert_tokens_to_ids([behavior.token, *tokens])
            assert tokenizer.item_token_ids[behavior][row].tolist() == ids
            assert tokenizer.decode_items([[0, *ids]]) == [table.item_ids[row]]


def test_decoding_finds_items_and_nothing_else(tokenizer: GenSARTokenizer) -> None:
    recommended = tokenizer.item_token_ids[Behavior.RECOMMENDED_ITEM]
    searched = tokenizer.item_token_ids[Behavior.SEARCHED_ITEM]
    eos, pad = tokenizer.eos_token_id, tokenizer.pad_token_id
    sequences = torch.tensor(
        [
            [pad, *recommended[3], eos, pad],
            [pad, *searched[7], pad, pad],
            [pad, *recommended[3][:-1], eos, pad, pad],  # a beginning only
            [pad, *searched[7], searched[7][-1], eos],  # too long
            [pad, recommended[3][0], *searched[3][1:], eos, pad],  # the other kind's codes
            [pad, *recommended[3][1:], eos, pad, pad],  # no behavior token
        ]
    )
    assert tokenizer.decode_items(sequences) == ["film-3", "film-7", None, None, None, None]
    assert tokenizer.decode_item_rows(sequences.numpy()).tolist() == [3, 7, -1, -1, -1, -1]


# ---- requests


def test_a_request_is_an_instruction_and_one_position_for_each_event(tokenizer: GenSARTokenizer) -> None:
    encoding = tokenizer.encode_request(HISTORY, behavior="<R_I>")
    words = event_words(tokenizer, encoding)
    assert words[0] == tokenizer.convert_ids_to_tokens(tokenizer.text_ids(INSTRUCTION).tolist())
    assert words[1] == ["<R_I>", *tokenizer.identifiers.collaborative_tokens(2)]
    assert words[2][0] == "<S_Q>"
    assert tokenizer.decode(tokenizer.convert_tokens_to_ids(words[2][1:])) == "comedy 1990s"
    assert words[3] == ["<S_I>", *tokenizer.identifiers.semantic_tokens(3)]
    assert len(words) == 4
    assert encoding["decoder_input_ids"].tolist() == [[0, tokenizer.convert_tokens_to_ids("<R_I>")]]


def test_as_tokens_a_request_holds_the_same_words_and_an_end_token(tokenizers: dict[str, GenSARTokenizer]) -> None:
    as_events = tokenizers["events"].encode_request(HISTORY, "space", "<S_I>")
    as_tokens = tokenizers["tokens"].encode_request(HISTORY, "space", "<S_I>")
    assert as_tokens["input_ids"].tolist() == [[*as_events["input_ids"][0].tolist(), 1]]
    assert set(as_tokens) == {"input_ids", "attention_mask", "decoder_input_ids"}


def test_the_current_query_is_the_last_event(tokenizer: GenSARTokenizer) -> None:
    words = event_words(tokenizer, tokenizer.encode_request(HISTORY, query="Space adventure", behavior="<S_I>"))
    assert words[-1] == ["<S_Q>", *tokenizer.convert_ids_to_tokens(tokenizer.text_ids("space adventure").tolist())]
    assert len(words) == 5


def test_a_long_history_keeps_its_last_events_and_the_query(tokenizer: GenSARTokenizer) -> None:
    history = [{"item_id": f"film-{item}"} for item in range(12)]
    words = event_words(tokenizer, tokenizer.encode_request(history, query="space", behavior="<S_I>"))
    assert len(words) == 1 + 8 + 1
    assert words[1] == ["<R_I>", *tokenizer.identifiers.collaborative_tokens(4)]


def test_a_batch_pads_what_single_requests_hold(tokenizers: dict[str, GenSARTokenizer], encoding: str) -> None:
    tokenizer = tokenizers[encoding]
    requests = [(HISTORY, None, "<R_I>"), ([], "space adventure", "<S_I>"), (HISTORY[:1], None, "<S_Q>")]
    batch = tokenizer.encode_request(*map(list, zip(*requests, strict=True)))
    for row, request in enumerate(requests):
        single = tokenizer.encode_request(*request)
        length = single["input_ids"].shape[1]
        assert torch.equal(batch["input_ids"][row, :length], single["input_ids"][0])
        assert torch.equal(batch["decoder_input_ids"][row], single["decoder_input_ids"][0])
        assert batch["attention_mask"][row].tolist() == [1] * length + [0] * (batch["input_ids"].shape[1] - length)
        if encoding == "events":
            assert (batch["event_ids"][row, length:] == -1).all()
            assert torch.equal(batch["event_ids"][row, :length], single["event_ids"][0])


@pytest.mark.parametrize("kind", ["events", "tokens", "vectors", "causal"])
def test_training_serving_and_evaluation_encode_a_history_alike(
    kind: str, pipelines: dict, tiny_events: UserEvents, tiny_split: Split
) -> None:
    """From a user's events as training arrays, as arrays of a held-out request, and as the dicts of a caller."""
    tokenizer = pipelines[kind].tokenizer
    examples = TrainingExamples(tokenizer, tiny_events, tiny_split.train_ends)
    targets = {Behavior.RECOMMENDED_ITEM: (4, 7), Behavior.SEARCHED_ITEM: (3, 6, 12)}  # 3 is in the middle of a session
    requests = [(behavior, target) for behavior, clicks in targets.items() for target in clicks]
    for behavior, target in requests:
        task = SEARCH if behavior is Behavior.SEARCHED_ITEM else RECOMMENDATION
        request = Requests(task, tiny_events, np.array([target]))
        query = request.query_texts[0] or None
        first = int(tiny_events.offsets[request.users[0]])
        instruction = tokenizer.text_ids(PROMPTS[HISTORY_TASKS[behavior]].instruction())
        window = slice(max(first, target - tokenizer.max_history_events), target)
        trained, _ = tokenizer.assemble(instruction, examples.event_tokens(examples.event_arrays(window)))
        arrays = EventArrays.of_user_events(tiny_events, request.history(0), examples.item_rows)
        evaluated = tokenizer.encode_events([arrays], query, behavior.token)
        history = [
            {"item_id": None if item < 0 else tiny_events.item_ids[item], "query": text}
            for _, item, text in zip(*arrays, strict=True)
        ]
        served = tokenizer.encode_request(history, query, behavior.token)
        assert all(torch.equal(evaluated[name], served[name]) for name in served)
        ids = served["input_ids"][0].tolist()
        assert (ids[:-1] if tokenizer.decoder_only else ids) == trained.tolist()


def test_one_query_and_behavior_may_serve_a_whole_batch(tokenizer: GenSARTokenizer) -> None:
    batch = tokenizer.encode_request([HISTORY, []], "space", "<S_I>")
    listed = tokenizer.encode_request([HISTORY, []], ["space", "space"], ["<S_I>", "<S_I>"])
    assert all(torch.equal(batch[name], listed[name]) for name in batch)


@pytest.mark.parametrize(("kind", "expected"), [("pt", torch.Tensor), ("np", np.ndarray)])
def test_the_kind_of_tensors_can_be_chosen(tokenizer: GenSARTokenizer, kind: str, expected: type) -> None:
    encoding = tokenizer.encode_request(HISTORY, return_tensors=kind)
    assert all(isinstance(value, expected) for value in encoding.values())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((HISTORY, None, "<X_X>"), r"Unknown behavior '<X_X>'; it must be one of <R_I>, <S_Q>, <S_I>\."),
        ((HISTORY, None, "<S_I>"), r"Behavior <S_I> needs a query; got query=None"),
        ((HISTORY, "space", "<R_I>"), r"Behavior <R_I> takes no query; got query='space'"),
        ((HISTORY, "  ", "<S_I>"), r"A query must be text with at least one word; got '  '"),
        (([HISTORY, []], ["space"], "<S_I>"), r"2 histories, 1 queries and 2 behaviors"),
        (([HISTORY, []], None, ["<R_I>"]), r"2 histories, 2 queries and 1 behaviors"),
        (([{"item_id": "film-99"}],), r"history\[0\]: item 'film-99' is not in the model's catalogue"),
    ],
)
def test_what_cannot_be_encoded_is_named(tokenizer: GenSARTokenizer, arguments: tuple, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        tokenizer.encode_request(*arguments)


# ---- saving and loading


@pytest.fixture
def saved(tokenizer: GenSARTokenizer, tmp_path: Path) -> Path:
    tokenizer.save_pretrained(tmp_path / "tokenizer")
    return tmp_path / "tokenizer"


@pytest.mark.parametrize("loader", [AutoTokenizer, GenSARTokenizer])
def test_everything_survives_saving_and_loading(loader: type, saved: Path, tokenizer: GenSARTokenizer) -> None:
    loaded = loader.from_pretrained(saved)
    assert type(loaded) is GenSARTokenizer
    assert loaded.get_vocab() == tokenizer.get_vocab()
    assert (loaded.history_encoding, loaded.max_history_events) == ("events", 8)
    assert loaded.identifiers.item_ids == tokenizer.identifiers.item_ids
    for token in new_tokens(tokenizer):
        assert loaded.tokenize(f"Toy{token}Story") == tokenizer.tokenize(f"Toy{token}Story")
    for text in ("TOY Story", "ﬁlm Noir — Ünïcode", "<r_i>"):
        assert loaded(text)["input_ids"] == tokenizer(text)["input_ids"]
    ours, theirs = (tok.encode_request(HISTORY, "Space", "<S_I>") for tok in (tokenizer, loaded))
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    sequences = np.insert(tokenizer.item_token_ids[Behavior.SEARCHED_ITEM], 0, 0, axis=1)
    assert loaded.decode_items(sequences) == tokenizer.identifiers.item_ids


def test_saving_twice_gives_the_same_files(saved: Path, tmp_path: Path) -> None:
    GenSARTokenizer.from_pretrained(saved).save_pretrained(tmp_path / "again")
    names = sorted(path.name for path in saved.iterdir())
    assert names == sorted(path.name for path in (tmp_path / "again").iterdir())
    assert (saved / "tokenizer.json").read_text() == (tmp_path / "again" / "tokenizer.json").read_text()


def test_a_folder_without_identifiers_is_refused(saved: Path) -> None:
    (saved / "identifiers.parquet").unlink()
    for loader in (AutoTokenizer, GenSARTokenizer):
        with pytest.raises(InputError, match=r"holds no identifiers\.parquet, without which") as error:
            loader.from_pretrained(saved)
        assert str(saved) in str(error.value)


def test_a_folder_that_does_not_exist_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="nowhere"):
        GenSARTokenizer.from_pretrained(tmp_path / "nowhere")


def test_identifiers_of_a_larger_catalogue_are_refused(saved: Path, make_identifiers: Callable) -> None:
    make_identifiers(codebook_size=8).save(saved / "identifiers.parquet")
    with pytest.raises(InputError, match=r"lacks 24 tokens of the identifier table, first '<M1_4>'"):
        GenSARTokenizer.from_pretrained(saved)


def test_damaged_identifiers_are_named(saved: Path) -> None:
    path = saved / "identifiers.parquet"
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(InputError, match=r"identifiers\.parquet is damaged"):
        GenSARTokenizer.from_pretrained(saved)


def test_a_copied_folder_is_enough(saved: Path, tmp_path: Path) -> None:
    shutil.copytree(saved, tmp_path / "elsewhere")
    shutil.rmtree(saved)
    assert GenSARTokenizer.from_pretrained(tmp_path / "elsewhere").encode_request(HISTORY)["input_ids"].shape[0] == 1


def test_unknown_history_encoding_and_lengths_are_refused(identifiers: IdentifierTable) -> None:
    with pytest.raises(ValueError, match="must be one of events, tokens; got 'words'"):
        GenSARTokenizer.train_from_texts(["a"], identifiers, history_encoding="words")
    with pytest.raises(ValueError, match="`max_history_events` must be at least 1; got 0"):
        GenSARTokenizer.train_from_texts(["a"], identifiers, max_history_events=0)


# ---- T5's own vocabulary


@pytest.fixture(scope="module")
def t5_tokenizer() -> TokenizersBackend:
    if not T5_TOKENIZER.is_dir():
        pytest.skip("needs the T5 vocabulary in shared/data/t5-tokenizer")
    return AutoTokenizer.from_pretrained(T5_TOKENIZER)


def test_the_vocabulary_of_t5_takes_the_new_tokens(
    t5_tokenizer: TokenizersBackend, identifiers: IdentifierTable, tmp_path: Path
) -> None:
    num_before, text = len(t5_tokenizer), "The Godfather, a crime drama from 1972"
    GenSARTokenizer.from_text_tokenizer(t5_tokenizer, identifiers).save_pretrained(tmp_path)
    tokenizer = GenSARTokenizer.from_pretrained(tmp_path)
    assert len(t5_tokenizer) == num_before  # the argument is not changed
    assert len(tokenizer) == num_before + 27
    assert tokenizer.history_encoding == "tokens"
    assert tokenizer(text)["input_ids"] == t5_tokenizer(text)["input_ids"]
    assert tokenizer.decode(tokenizer.text_ids(text)) == text
    for token in new_tokens(tokenizer):
        assert tokenizer(f"The{token}.")["input_ids"].count(tokenizer.convert_tokens_to_ids(token)) == 1
    assert tokenizer.encode_request(HISTORY)["input_ids"][0, -1] == tokenizer.eos_token_id


def test_no_user_text_is_read_as_a_token_by_the_vocabulary_of_t5(
    t5_tokenizer: TokenizersBackend, identifiers: IdentifierTable
) -> None:
    tokenizer = GenSARTokenizer.from_text_tokenizer(t5_tokenizer, identifiers)
    forbidden = {*tokenizer.code_token_ids.tolist(), *tokenizer.all_special_ids} - {tokenizer.unk_token_id}
    for text in ("<R_I> <M1_0>", "</s>", "＜/s＞", "a<pad>b", "＜pad＞", "<extra_id_0>", "＜extra_id_0＞"):
        assert not forbidden & set(tokenizer.text_ids(text).tolist()), text


# ---- for decoder-only models


@pytest.fixture(scope="module")
def byte_tokenizer(identifiers: IdentifierTable) -> TokenizersBackend:
    """As Llama's: pieces of bytes, a start token before every text, no padding token; and brackets like Mistral's."""
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer, backend.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=300, special_tokens=["[BOS]", "<|end|>", "[INST]"], initial_alphabet=alphabet, show_progress=False
    )
    backend.train_from_iterator(identifiers.texts, trainer)
    backend.post_processor = processors.TemplateProcessing(single="[BOS] $A", special_tokens=[("[BOS]", 0)])
    return TokenizersBackend(tokenizer_object=backend, bos_token="[BOS]", eos_token="<|end|>")


@pytest.fixture(scope="module")
def causal(byte_tokenizer: TokenizersBackend, identifiers: IdentifierTable) -> GenSARTokenizer:
    return GenSARTokenizer.from_text_tokenizer(byte_tokenizer, identifiers, max_history_events=2, decoder_only=True)


def test_a_prompt_begins_as_a_text_and_ends_with_the_behavior_token(causal: GenSARTokenizer) -> None:
    encoding = causal.encode_request([HISTORY, []], [None, "Space"], ["<R_I>", "<S_I>"])
    assert set(encoding) == {"input_ids", "attention_mask"}
    ids, mask = encoding["input_ids"].tolist(), encoding["attention_mask"].tolist()
    searched = causal.item_token_ids[Behavior.SEARCHED_ITEM]
    words = [causal.text_ids(text) for text in (INSTRUCTION, PROMPTS[Task.NEXT_SEARCHED_ITEM].templates[0])]
    ends = [[causal.behavior_ids[kind]] for kind in (Behavior.RECOMMENDED_ITEM, Behavior.SEARCHED_ITEM)]
    expected = [
        [0, *words[0], *causal.query_tokens("Comedy 1990s"), *searched[3], *ends[0]],
        [0, *words[1], *causal.query_tokens("Space"), *ends[1]],
    ]
    for row, tokens in enumerate(expected):
        num_padded = len(ids[row]) - len(tokens)
        assert ids[row] == [1] * num_padded + tokens  # the end token pads
        assert mask[row] == [0] * num_padded + [1] * len(tokens)


def test_answers_are_found_behind_the_prompt(causal: GenSARTokenizer) -> None:
    """Although the history holds complete identifiers as well."""
    prompt = causal.encode_request(HISTORY)["input_ids"][0].tolist()
    answers = causal.item_token_ids[Behavior.RECOMMENDED_ITEM][[4, 9], 1:].tolist()
    rows = [[*prompt, *answers[0], 1], [1, *prompt, *answers[1]], [*prompt, 1, 1, 1, 1, 1]]
    assert causal.decode_items(rows) == ["film-4", "film-9", None]


def test_a_tokenizer_for_a_decoder_only_model_is_loaded_as_it_was_saved(
    causal: GenSARTokenizer, tmp_path: Path
) -> None:
    causal.save_pretrained(tmp_path)
    loaded = AutoTokenizer.from_pretrained(tmp_path)
    assert type(loaded) is GenSARTokenizer
    assert loaded.decoder_only
    assert (loaded.pad_token, loaded.eos_token, loaded.bos_token) == ("<|end|>", "<|end|>", "[BOS]")
    ours, theirs = (tok.encode_request([HISTORY, []], "Space", "<S_I>") for tok in (causal, loaded))
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    assert (loaded.trie.start_length, loaded.trie.end_token_id, loaded.trie.pad_token_id) == (None, 1, 1)
    assert loaded.decode(loaded.text_ids("Ünïcode, a film")) == "Ünïcode, a film"


def test_no_user_text_is_read_as_a_token_of_another_tokenizer(causal: GenSARTokenizer) -> None:
    forbidden = {*causal.code_token_ids.tolist(), *causal.all_special_ids, causal.convert_tokens_to_ids("[INST]")}
    for text in ("<R_I> <M1_0>", "[BOS]", "a [INST] b", "<|end|>", "[INST][INST]"):
        assert not forbidden & set(causal.text_ids(text).tolist()), text


def test_what_a_decoder_only_model_cannot_do_is_refused(
    byte_tokenizer: TokenizersBackend, identifiers: IdentifierTable
) -> None:
    with pytest.raises(
        ValueError, match="A decoder-only model reads histories as 'tokens'; got history_encoding='events'"
    ):
        GenSARTokenizer.from_text_tokenizer(byte_tokenizer, identifiers, "events", decoder_only=True)
    no_end = TokenizersBackend(tokenizer_object=byte_tokenizer.backend_tokenizer)
    with pytest.raises(ValueError, match="has no `eos_token`, which ends the words of a query"):
        GenSARTokenizer.from_text_tokenizer(no_end, identifiers, decoder_only=True)


def test_padding_on_either_side() -> None:
    rows = [np.array([1, 2, 3]), np.array([4]), np.array([], dtype=int)]
    assert pad_right(rows, -7).tolist() == [[1, 2, 3], [4, -7, -7], [-7, -7, -7]]
    assert pad_left(rows, -7).tolist() == [[1, 2, 3], [-7, -7, 4], [-7, -7, -7]]
    assert pad_right(rows, -7).dtype == pad_left(rows, -7).dtype == np.int64


def test_training_twice_on_the_same_texts_gives_the_same_vocabulary(identifiers: IdentifierTable) -> None:
    """A run that is resumed trains its tokenizer again; the weights must find their ids where they were."""
    texts = [*(identifiers.texts or []), "a quick brown fox jumps over the lazy dog", "0 1 2 3 4 5 6 7 8 9"]
    models = [
        GenSARTokenizer.train_from_texts(texts, identifiers, vocab_size=70).backend_tokenizer.to_str() for _ in range(6)
    ]
    assert len(set(models)) == 1
