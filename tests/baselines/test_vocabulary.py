import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from gensar_hf.baselines.vocabulary import MAX_WORDS, Vocabulary, split_words

WORDS = ["space", "war", "1990s", "émile"]


def test_words_are_lower_cased_and_numbered_in_one_order_whatever_that_of_the_texts():
    texts = ["Space war", "", "war, ÉMILE's space"]
    for vocabulary in (Vocabulary.from_texts(texts), Vocabulary.from_texts(texts[::-1])):
        assert vocabulary.words == ["s", "space", "war", "émile"]
        assert len(vocabulary) == 4


@given(st.lists(st.lists(st.sampled_from([*WORDS, "unknown", "other"]), max_size=80), max_size=4))
@settings(max_examples=30, deadline=None)
def test_ids_are_the_known_words_in_order(texts):
    table = Vocabulary(WORDS).encode([" ".join(words) for words in texts])
    assert table.shape[0] == len(texts)
    assert table.shape[1] >= 1
    for row, words in zip(table, texts, strict=True):
        known = [word for word in words if word in WORDS][:MAX_WORDS]
        assert [WORDS[i - 1] for i in row if i] == known
        assert (row[len(known) :] == 0).all()


def test_round_trip(tmp_path):
    vocabulary = Vocabulary.from_texts(["ünlü space", "war"])
    vocabulary.save(tmp_path)
    loaded = Vocabulary.load(tmp_path)
    assert loaded.words == vocabulary.words
    np.testing.assert_array_equal(loaded.encode(["war ünlü"]), [[2, 3]])


def test_no_text_has_no_words():
    assert split_words(" ,; ") == []
    assert Vocabulary.from_texts([]).encode(["space"]).tolist() == [[0]]
