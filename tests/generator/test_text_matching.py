"""Text matching: three channels against hand-computed values, and what the model makes of them."""

import math
import shutil
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from huggingface_hub.errors import StrictDataclassClassValidationError

from gensar_hf import GenSARPipeline
from gensar_hf.data import Behavior
from gensar_hf.embeddings.text_encoder import TextEncoder
from gensar_hf.errors import InputError
from gensar_hf.generator import text_matching, text_sampling
from gensar_hf.generator.configuration_gensar import GenSARConfig
from gensar_hf.generator.text_matching import NUM_MATCHES, QueryInputs, TextIndex, TextMatching
from gensar_hf.generator.text_sampling import SampledTexts
from gensar_hf.generator.tokenization_gensar import GenSARTokenizer

TITLES = ["Star Wars", "Star Trek", "Toy Story"]
TEXTS = ["Star Wars. space", "Star Trek. space", "Toy Story. comedy for all"]
ODD_QUERIES = [
    "2001",
    "a",
    "the of and",
    "STAR WARS!!!",
    "Étoile",
    "звёздные войны",
    "星球大战",
    "🎬",
    "?!",
    "wars " * 2500,
]


class CountingEncoder(TextEncoder):
    """Embeds a text as its numbers of the letters s and o, and counts the texts that it reads."""

    def __init__(self) -> None:
        super().__init__(None)
        self.num_read = self.num_calls = 0

    def encode(self, texts: Sequence[str], batch_size: int = 64) -> np.ndarray:
        self.num_read += len(texts)
        self.num_calls += 1
        return np.array([[text.lower().count("s"), text.lower().count("o")] for text in texts], dtype=np.float32)


@pytest.fixture
def index() -> TextIndex:
    encoder = CountingEncoder()
    vectors = encoder.encode(TEXTS)
    return TextIndex(TITLES, TEXTS, vectors / np.linalg.norm(vectors, axis=1, keepdims=True), encoder)


def test_words_are_compared_by_bm25(index: TextIndex) -> None:
    """By Lucene's formula with k1 = 1.5 and b = 0.75, divided by the sum of the inverse document frequencies."""
    lengths = np.array([3, 3, 5])
    idf = {"star": math.log(1 + 1.5 / 2.5), "wars": math.log(1 + 2.5 / 1.5), "unknown": math.log(1 + 3.5 / 0.5)}
    frequency = 1 / (1 + 1.5 * (0.25 + 0.75 * lengths / lengths.mean()))
    expected = np.array([idf["star"] + idf["wars"], idf["star"], 0]) * frequency / sum(idf.values())
    np.testing.assert_allclose(index.scores(["wars UNKNOWN star"])[0, 0], expected, rtol=1e-5)


def test_characters_find_a_misspelled_title(index: TextIndex) -> None:
    scores = index.scores(["Star Wars", "sta wrs", "toystory"])[:, 1]
    assert scores[0, 0] == pytest.approx(1, abs=1e-6)
    assert scores.argmax(axis=1).tolist() == [0, 0, 2]
    assert scores[1, 2] < 0.1  # both have a word that begins with s
    assert (scores <= 1 + 1e-6).all()


def test_meaning_is_the_cosine_of_the_embeddings(index: TextIndex) -> None:
    np.testing.assert_allclose(
        index.scores(["ssso"])[0, 2], index.vectors @ np.array([3, 1]) / math.sqrt(10), atol=1e-3
    )


def test_a_large_catalogue_is_compared_in_float16(index: TextIndex, monkeypatch: pytest.MonkeyPatch) -> None:
    exact = index.scores(["ssso", "star"])
    monkeypatch.setattr(text_matching, "_FLOAT_ITEMS", 2)
    large = TextIndex(index.titles, index.texts, index.vectors, index.encoder)
    np.testing.assert_allclose(large.scores(["ssso", "star"]), exact, atol=2e-3)


def test_a_query_is_encoded_once_and_with_the_others_of_its_batch(index: TextIndex) -> None:
    index.encoder.num_read = index.encoder.num_calls = 0
    index.match(["sos", "so", "sos"])
    index.read(["sos", "so"])
    assert (index.encoder.num_read, index.encoder.num_calls) == (2, 1)


def test_scores_and_matches_do_not_depend_on_the_batch() -> None:
    """Items of the same text among them, of which ten match."""
    rng = np.random.default_rng(0)
    texts = [" ".join(rng.choice(["red", "soap", "blue", "cup"], 2)) for _ in range(200)]
    encoder = TextEncoder.load(None, texts, dim=16)
    vectors, queries = encoder.encode(texts), ["red soap", "blu", "cup cup red", "soap", "a red cup"] * 4
    index, alone = (TextIndex(texts, texts, vectors, encoder) for _ in range(2))
    reading, scores = index.match(queries)
    for place, query in enumerate(queries):
        own, own_scores = alone.match([query])
        np.testing.assert_allclose(scores[place], own_scores[0], atol=1e-6)
        np.testing.assert_array_equal(reading.items[place], own.items[0])


def test_training_knows_the_meaning_of_remembered_queries_alone(index: TextIndex) -> None:
    index.remember(["so"])
    scores = index.scores(["so", "sos"], encode=False)
    assert (scores[1, 2] == 0).all()
    np.testing.assert_allclose(scores[0], index.scores(["so"])[0], rtol=1e-6)
    reading, again = index.match(["so", "sos"], encode=False)
    np.testing.assert_array_equal(again, scores)
    assert (reading.vectors[1] == 0).all()
    assert np.linalg.norm(reading.vectors[0]) == pytest.approx(1)


def test_the_encoder_reads_the_best_matches(index: TextIndex) -> None:
    reading, scores = index.match(["star wars"])
    assert reading.items.shape == (1, NUM_MATCHES)
    assert set(reading.items[0, :3]) == {0, 1, 2}
    assert (reading.items[0, 3:] == -1).all()
    for item, values in zip(reading.items[0, :3], reading.scores[0], strict=False):
        np.testing.assert_array_equal(values, scores[0, :, item])
    for part, other in zip(index.read(["star wars"]), reading, strict=True):
        np.testing.assert_array_equal(part, other)


def test_new_items_are_encoded_alone(index: TextIndex) -> None:
    index.encoder.num_read = 0
    assert index.with_items(TITLES, TEXTS) is index
    longer = index.with_items([*TITLES, "Sos"], [*TEXTS, "Sos. drama"])
    assert index.encoder.num_read == 1
    assert longer.scores(["sos"])[0, :2].argmax(axis=1).tolist() == [3, 3]
    other = index.with_items(["Sos"], ["Sos. drama"])
    assert len(other) == 1


def test_odd_queries_have_finite_scores(index: TextIndex) -> None:
    scores = index.scores(ODD_QUERIES)
    assert np.isfinite(scores).all()
    assert scores[3, 0].argmax() == 0


def test_vectors_of_another_catalogue_are_refused(index: TextIndex, tmp_path: Path) -> None:
    index.encoder = TextEncoder.load(None, TEXTS, dim=2)
    index.save(tmp_path)
    loaded = TextIndex.load(tmp_path / "text_vectors.safetensors", index.encoder, TITLES, TEXTS)
    np.testing.assert_array_equal(loaded.vectors, index.vectors)
    with pytest.raises(InputError, match="does not hold one finite vector for each of the 6 items"):
        TextIndex.load(tmp_path / "text_vectors.safetensors", index.encoder, 2 * TITLES, 2 * TEXTS)
    # New items are written before the catalogue that names them.
    assert len(TextIndex.load(tmp_path / "text_vectors.safetensors", index.encoder, TITLES[:2], TEXTS[:2])) == 2


# ---- the part of the model


@pytest.fixture
def matching() -> TextMatching:
    torch.manual_seed(0)
    return TextMatching(GenSARConfig(num_items=3, text_dim=2, d_model=4)).eval()


def no_reading(num_positions: int) -> QueryInputs:
    shape = 1, num_positions, NUM_MATCHES
    codes = torch.zeros(*shape, 2, dtype=torch.long)
    return QueryInputs(torch.zeros(1, num_positions, 2), torch.full(shape, -1), torch.zeros(*shape, 3), codes)


def test_a_position_without_a_query_gets_nothing(matching: TextMatching) -> None:
    for states in matching.query_states(no_reading(2), torch.nn.Embedding(3, 4), torch.nn.Embedding(5, 4)):
        assert states.shape == (1, 2, 4)
        assert (states == 0).all()


def test_matches_are_averaged_by_a_softmax_of_their_fit(matching: TextMatching) -> None:
    """Vectors by way of a layer, codes as they are embedded; the codes once more, scaled, for the decoder."""
    reading, vectors, embed = no_reading(3), torch.randn(3, 4), torch.nn.Embedding(5, 4)
    reading.items[0, 1, :2] = torch.tensor([2, 0])
    reading.codes[0, 1, :2] = torch.tensor([[1, 3], [1, 4]])
    reading.scores[0, 1, :2] = torch.tensor([[0.5, 0.2, 0.1], [0.1, 0.0, 0.3]])
    with torch.no_grad():
        matching.sharpness.copy_(torch.tensor([3.0, 2.0, 1.0]))
        matching.identifier_scale.fill_(3.0)
    first, second = torch.tensor([1.5 + 0.4 + 0.1, 0.3 + 0.3]).softmax(dim=0)
    codes = (embed.weight[1] + first * embed.weight[3] + second * embed.weight[4]) / 2**0.5
    expected = matching.matched(first * vectors[2] + second * vectors[0]) + codes
    states, copied = matching.query_states(reading, lambda items: vectors[items], embed)
    torch.testing.assert_close(states[0, 1], expected)
    torch.testing.assert_close(copied[0, 1], 3 * codes)
    assert (states[0, [0, 2]] == 0).all()


def test_weights_are_positive_and_follow_the_request(matching: TextMatching) -> None:
    torch.nn.init.normal_(matching.channel_weights.weight)
    weights = matching.weights(torch.randn(5, 4), torch.rand(5, 3, 3))
    assert weights.shape == (5, 3)
    assert (weights > 0).all()
    assert weights.std(dim=0).min() > 1e-2


# ---- in the pipeline


@pytest.fixture
def texts_pipe(pipelines: dict[str, GenSARPipeline]) -> GenSARPipeline:
    return pipelines["texts"]


def test_explained_scores_are_the_sums_of_their_parts(texts_pipe: GenSARPipeline) -> None:
    history = [{"item_id": "film-3"}, {"query": "space adventure"}]
    found = texts_pipe.search("star wars", history, top_k=12, explain=True)
    for answer in found:
        assert set(answer["parts"]) == {"identifier", "vector", "words", "characters", "meaning"}
        assert sum(answer["parts"].values()) == pytest.approx(answer["score"], abs=1e-4)
    (star_wars,) = [answer for answer in found if answer["title"] == "Star Wars"]
    assert star_wars["parts"]["words"] == max(answer["parts"]["words"] for answer in found) > 0
    recommended = texts_pipe.recommend(history, top_k=2, explain=True)
    assert all(set(answer["parts"]) == {"identifier", "vector"} for answer in recommended)


def test_item_and_text_parts_are_one_distribution_over_the_catalogue(texts_pipe: GenSARPipeline) -> None:
    """Their sum, divided by the item weight, is a log-probability."""
    scores = texts_pipe.score_items(
        [[]], [np.arange(12)], ["star wars"], parts=("vector", "words", "characters", "meaning")
    )
    _, item_weight = texts_pipe.model.config.score_weights(is_search=True)
    assert np.exp(scores / item_weight).sum() == pytest.approx(1, abs=1e-5)


def test_each_task_has_its_own_weights(texts_pipe: GenSARPipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(texts_pipe.model.config, "identifier_weight", [1.0, 0.0])
    monkeypatch.setattr(texts_pipe.model.config, "item_weight", [0.0, 1.0])
    (recommended,) = texts_pipe.recommend([{"item_id": "film-3"}], top_k=1, explain=True)
    assert set(recommended["parts"]) == {"identifier"}
    (found,) = texts_pipe.search("star wars", top_k=1, explain=True)
    assert set(found["parts"]) == {"vector", "words", "characters", "meaning"}


def test_weights_that_leave_nothing_to_rank_by_are_refused() -> None:
    for weights in (
        {"identifier_weight": [1.0, 0.0], "item_weight": [1.0, 0.0]},
        {"identifier_weight": 0, "item_weight": 0},
    ):
        with pytest.raises(StrictDataclassClassValidationError, match="must not both be 0 for a task"):
            GenSARConfig(num_items=3, **weights)


@pytest.mark.parametrize("query", ODD_QUERIES)
def test_odd_queries_get_answers(texts_pipe: GenSARPipeline, query: str) -> None:
    first, second = (texts_pipe.search(query, [{"item_id": "film-3"}], top_k=3) for _ in range(2))
    assert len(first) == 3
    assert first == second


def test_a_batch_answers_as_single_requests_do(texts_pipe: GenSARPipeline) -> None:
    queries = ["star wars", "toi stry", "crime drama", "star wars"]
    histories = [[], [{"item_id": "film-1"}, {"query": "horror"}], [{"item_id": "film-2"}], [{"query": "star wars"}]]
    for query, history, answers in zip(
        queries, histories, texts_pipe.search(queries, histories, top_k=12), strict=True
    ):
        alone = texts_pipe.search(query, history, top_k=12)
        assert [answer["item_id"] for answer in answers] == [answer["item_id"] for answer in alone]
        assert [answer["score"] for answer in answers] == pytest.approx([a["score"] for a in alone], abs=1e-4)


def test_generate_reads_the_queries(texts_pipe: GenSARPipeline) -> None:
    """`model.generate` takes all that `encode_request` returns; another meaning is another state."""
    inputs = texts_pipe.tokenizer.encode_request([], "star wars", Behavior.SEARCHED_ITEM.token)
    assert inputs["query_vectors"].shape == (1, 2, 6)
    generated = texts_pipe.model.generate(**inputs, num_beams=3, max_new_tokens=4)
    assert len(generated) == 1
    state = texts_pipe.model(**inputs).encoder_last_hidden_state
    inputs["query_vectors"] = -inputs["query_vectors"]
    assert (texts_pipe.model(**inputs).encoder_last_hidden_state - state).abs().max() > 1e-3


def test_a_saved_model_answers_alike(texts_pipe: GenSARPipeline, model_dirs: dict[str, Path], tmp_path: Path) -> None:
    """Plain `save_pretrained` of model and tokenizer carries the texts and their encoder."""
    loaded = GenSARPipeline.from_pretrained(model_dirs["texts"], device="cpu")
    expected = texts_pipe.search("toy stroy", [{"query": "horror"}], top_k=5)
    for folder in (None, tmp_path / "again"):
        if folder is not None:
            loaded.save_pretrained(folder)
            loaded = GenSARPipeline.from_pretrained(folder, device="cpu")
        found = loaded.search("toy stroy", [{"query": "horror"}], top_k=5)
        assert [answer["item_id"] for answer in found] == [answer["item_id"] for answer in expected]
        assert [answer["score"] for answer in found] == pytest.approx([a["score"] for a in expected], abs=1e-4)


def test_missing_vectors_are_one_sentence(model_dirs: dict[str, Path], tmp_path: Path) -> None:
    leave_out = shutil.ignore_patterns("text_vectors.safetensors", "text_encoder")
    shutil.copytree(model_dirs["texts"], tmp_path, ignore=leave_out, dirs_exist_ok=True)
    with pytest.raises(InputError, match=r"holds no text_vectors\.safetensors, which its tokenizer needs"):
        GenSARTokenizer.from_pretrained(tmp_path)


def test_a_sample_holds_the_items_that_fit_best_and_scores_them_as_the_index_does(index: TextIndex) -> None:
    queries = ["Star Wars", "toystory", "comedy for", "unknown"]
    index.remember(queries[:1])
    sampled = SampledTexts(index, num_items=3)

    def candidates(*queries: str) -> list[int]:
        return sampled.candidates(queries, sampled.weigh(queries)).tolist()

    assert 2 in candidates("comedy for")
    assert candidates("toystory", "Star Wars") == [0, 1, 2]
    assert candidates() == []
    reading, scores = sampled.match(queries, sampled.weigh(queries), np.array([2, 0, 2, 1]))
    _, expected = index.match(queries, encode=False)
    np.testing.assert_allclose(scores[:, :, [0, 1, 3]], expected[:, :, [2, 0, 1]], atol=1e-6)
    assert (scores[:, :, 2] == -1).all()
    assert reading.items[0, 0] == 0
    assert sorted(reading.items[2])[-1] == 2


def test_items_are_not_looked_up_by_what_many_of_them_have(index: TextIndex, monkeypatch: pytest.MonkeyPatch) -> None:
    def candidates(word_limit: int, ngram_limit: int) -> list[int]:
        monkeypatch.setattr(text_sampling, "_RARE_WORD", word_limit)
        monkeypatch.setattr(text_sampling, "_RARE_NGRAM", ngram_limit)
        sampled = SampledTexts(index, num_items=len(index))
        return sampled.candidates(["star wars"], sampled.weigh(["star wars"])).tolist()

    assert candidates(len(index), len(index)) != []
    assert candidates(0, len(index)) != []
    assert candidates(0, 0) == []
