import json
import logging
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from transformers import AutoTokenizer

from gensar_hf.data import Behavior
from gensar_hf.errors import InputError
from gensar_hf.generator.catalogue import Catalogue, check_fingerprint, table_fingerprint
from gensar_hf.generator.tokenization_gensar import GenSARTokenizer
from gensar_hf.identifiers import IdentifierTable

R, S = Behavior.RECOMMENDED_ITEM, Behavior.SEARCHED_ITEM


@pytest.fixture
def catalogue(tokenizers: dict[str, GenSARTokenizer]) -> Catalogue:
    return tokenizers["events"].catalogue


@pytest.fixture
def saved(tokenizers: dict[str, GenSARTokenizer], tmp_path: Path) -> Path:
    tokenizers["events"].save_pretrained(tmp_path)
    return tmp_path


def of_items(tokenizer: GenSARTokenizer, table: IdentifierTable) -> Catalogue:
    return Catalogue.of_table(table, tokenizer.get_vocab())


# ---- what may be found


def test_the_trie_holds_the_available_items_only(
    tokenizers: dict[str, GenSARTokenizer], identifiers: IdentifierTable
) -> None:
    removed = of_items(tokenizers["events"], identifiers.remove_items(["film-2", "film-7"]))
    assert removed.trie.num_sequences == 2 * 10
    for behavior in (R, S):
        rows = removed.trie.lookup(removed.item_token_ids[behavior])
        assert rows.tolist() == [row if row not in (2, 7) else -1 for row in range(12)]


def test_without_behavior_tokens_one_token_stands_before_both_kinds(
    tokenizers: dict[str, GenSARTokenizer], identifiers: IdentifierTable, tmp_path: Path
) -> None:
    plain = GenSARTokenizer.train_from_texts(["red films"], identifiers, vocab_size=60, behavior_tokens=False)
    first = {int(ids[0]) for kind in (R, S) for ids in plain.item_token_ids[kind]}
    assert first == {plain.behavior_ids[R]} == {plain.behavior_ids[S]}
    assert plain.trie.num_sequences == 2 * identifiers.num_items
    for kind in (R, S):
        assert plain.trie.lookup(plain.item_token_ids[kind]).tolist() == list(range(identifiers.num_items))
    prompts = plain.encode_request([[], []], [None, "red"], ["<R_I>", "<S_I>"])["decoder_input_ids"]
    assert prompts[0].tolist() == prompts[1].tolist()
    plain.save_pretrained(tmp_path)
    again = AutoTokenizer.from_pretrained(tmp_path)
    assert again.behavior_ids == plain.behavior_ids
    assert tokenizers["events"].behavior_ids[R] != tokenizers["events"].behavior_ids[S]


def test_removed_items_keep_their_tokens(
    tokenizers: dict[str, GenSARTokenizer], identifiers: IdentifierTable, catalogue: Catalogue
) -> None:
    removed = of_items(tokenizers["events"], identifiers.remove_items(["film-2"]))
    for behavior in (R, S):
        assert np.array_equal(removed.item_token_ids[behavior], catalogue.item_token_ids[behavior])


def test_a_catalogue_cannot_be_changed(catalogue: Catalogue, identifiers: IdentifierTable) -> None:
    with pytest.raises(AttributeError):
        catalogue.identifiers = identifiers  # type: ignore[misc]


def test_the_tokenizer_s_parts_are_those_of_its_catalogue(
    saved: Path, identifiers: IdentifierTable, make_identifiers: Callable
) -> None:
    tokenizer = GenSARTokenizer.from_pretrained(saved)
    before = tokenizer.catalogue
    tokenizer.attach_identifiers(make_identifiers(num_items=18))
    assert tokenizer.catalogue is not before
    assert (before.identifiers.num_items, before.trie.num_sequences) == (12, 24)
    assert (tokenizer.identifiers.num_items, tokenizer.trie.num_sequences) == (18, 36)
    assert tokenizer.item_token_ids is tokenizer.catalogue.item_token_ids
    history = [{"item_id": "film-17"}]
    assert tokenizer.encode_request(history)["input_ids"].shape[0] == 1
    with pytest.raises(ValueError, match="film-17"):
        tokenizer.encode_request(history, catalogue=before)


# ---- rows of items


def test_rows_of_a_history(catalogue: Catalogue) -> None:
    history = [{"item_id": "film-3"}, {"query": "a"}, {"item_id": "film-9", "query": "a"}, {"item_id": "nothing"}, {}]
    assert catalogue.rows_in(history) == {3, 9}
    assert catalogue.rows_in([{"item_id": " film-3"}, {"item_id": float("nan")}, {"item_id": ["film-9"]}]) == {3}


def test_rows_of_candidates(
    tokenizers: dict[str, GenSARTokenizer], identifiers: IdentifierTable, caplog: pytest.LogCaptureFixture
) -> None:
    catalogue = of_items(tokenizers["events"], identifiers.remove_items(["film-2"]))
    assert catalogue.candidate_rows(["film-5", "film-0", "film-5"]).tolist() == [5, 0, 5]
    assert catalogue.candidate_rows([]).tolist() == []
    assert catalogue.candidate_rows([" film-5 ", np.str_("film-0")]).tolist() == [5, 0]
    with pytest.raises(ValueError, match=r"candidates\[1\]: item 'film-2' was removed from the catalogue"):
        catalogue.candidate_rows(["film-5", "film-2"])
    with caplog.at_level(logging.WARNING):
        assert catalogue.candidate_rows(["film-2", 77, "film-5"], on_unknown="skip").tolist() == [5]
    (record,) = caplog.records
    assert (
        record.getMessage()
        == "candidates[0]: item 'film-2' was removed from the catalogue and was skipped, and 1 more."
    )


# ---- tables that do not belong to the tokenizer


def changed(identifiers: IdentifierTable, change: str) -> IdentifierTable:
    item_ids, semantic = list(identifiers.item_ids), identifiers.semantic_codes.copy()
    if change == "other item ids":
        item_ids[4] = "another"
    elif change == "items in another order":
        item_ids[4], item_ids[5] = item_ids[5], item_ids[4]
    elif change == "other codes":
        semantic[[4, 5]] = semantic[[5, 4]]
    size = 11 if change == "fewer items" else 12
    return IdentifierTable(item_ids[:size], semantic[:size], identifiers.collaborative_codes[:size], 2, 4)


@pytest.mark.parametrize("change", ["other item ids", "items in another order", "other codes", "fewer items"])
@pytest.mark.parametrize("loader", [AutoTokenizer, GenSARTokenizer])
def test_another_table_is_refused(saved: Path, identifiers: IdentifierTable, change: str, loader: type) -> None:
    changed(identifiers, change).save(saved)
    with pytest.raises(InputError, match="not those that the tokenizer in the folder was saved with") as error:
        loader.from_pretrained(saved)
    assert str(saved) in str(error.value)


def test_the_same_table_with_more_items_or_removed_ones_is_accepted(
    saved: Path, identifiers: IdentifierTable, make_identifiers: Callable
) -> None:
    for table in (identifiers.remove_items(["film-1"]), make_identifiers(num_items=18)):
        table.save(saved)
        loaded = GenSARTokenizer.from_pretrained(saved)
        assert (loaded.identifiers.num_items, loaded.identifiers.num_available) == (
            table.num_items,
            table.num_available,
        )


def test_what_is_attached_on_purpose_is_saved_and_loaded(saved: Path, identifiers: IdentifierTable) -> None:
    tokenizer = GenSARTokenizer.from_pretrained(saved)
    tokenizer.attach_identifiers(changed(identifiers, "other codes"))
    tokenizer.save_pretrained(saved)
    assert np.array_equal(
        GenSARTokenizer.from_pretrained(saved).identifiers.semantic_codes, tokenizer.identifiers.semantic_codes
    )


def test_a_folder_saved_without_a_fingerprint_is_loaded(saved: Path, identifiers: IdentifierTable) -> None:
    config_path = saved / "tokenizer_config.json"
    config = json.loads(config_path.read_text())
    assert config.pop("identifiers_fingerprint") == table_fingerprint(identifiers)
    config_path.write_text(json.dumps(config))
    assert GenSARTokenizer.from_pretrained(saved).identifiers.num_items == 12


def test_fingerprints_tell_tables_apart_by_ids_and_codes_only(identifiers: IdentifierTable) -> None:
    assert table_fingerprint(identifiers.remove_items(["film-3"])) == table_fingerprint(identifiers)
    tables = [changed(identifiers, change) for change in ("nothing", "other item ids", "other codes", "fewer items")]
    assert len({table_fingerprint(table) for table in tables}) == 4
    check_fingerprint(identifiers, None, "nowhere")
