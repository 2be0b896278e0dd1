"""Plain `model.generate` with the trie, as in the package's description."""

import numpy as np
import pytest
import torch
from pipeline_requests import continued
from transformers import PreTrainedModel

from gensar_hf.data import Behavior
from gensar_hf.decoding import TrieLogitsProcessor
from gensar_hf.generator.tokenization_gensar import GenSARTokenizer
from gensar_hf.pipeline import GenSARPipeline

HISTORY = [{"item_id": "film-2"}, {"query": "comedy 1990s"}, {"item_id": "film-3", "query": "comedy 1990s"}]
OTHER = [
    {"item_id": "film-9"},
    {"item_id": "film-10"},
    {"item_id": "film-4"},
    {"query": "space"},
    {"item_id": "film-1"},
]
REQUESTS = {
    "recommend": (HISTORY, None, "<R_I>"),
    "search": (HISTORY, "space adventure", "<S_I>"),
    "recommend to a new user": ([], None, "<R_I>"),
}

Parts = tuple[PreTrainedModel, GenSARTokenizer]


@pytest.fixture(params=["events", "tokens", "causal"])
def parts(pipelines: dict[str, GenSARPipeline], request: pytest.FixtureRequest) -> Parts:
    return pipelines[request.param].model, pipelines[request.param].tokenizer


def teacher_forced(parts: Parts, request: tuple) -> np.ndarray:
    """Log-probability of every item's identifier, one forward each: the reference."""
    model, tokenizer = parts
    inputs = tokenizer.encode_request(*request)
    behavior = next(b for b in Behavior if b.token == request[2])
    scores = []
    for codes in tokenizer.item_token_ids[behavior]:
        own, first = continued(tokenizer, inputs, codes)
        with torch.no_grad():
            logits = model(**own).logits[0, first:]
        scores.append(sum(row[code].item() for row, code in zip(logits.log_softmax(dim=-1), codes[1:], strict=True)))
    return np.array(scores)


@pytest.mark.parametrize("request_name", REQUESTS)
def test_beam_search_returns_the_best_items_with_exact_scores(parts: Parts, request_name: str) -> None:
    model, tokenizer = parts
    inputs = tokenizer.encode_request(*REQUESTS[request_name], return_tensors="pt")
    output = model.generate(
        **inputs,
        logits_processor=[TrieLogitsProcessor(tokenizer.trie)],
        num_beams=30,
        num_return_sequences=10,
        return_dict_in_generate=True,
        output_scores=True,
    )
    items = tokenizer.decode_items(output.sequences)
    expected = teacher_forced(parts, REQUESTS[request_name])
    best = np.argsort(-expected)[:10]
    assert items == [tokenizer.identifiers.item_ids[item] for item in best]
    np.testing.assert_allclose(output.sequences_scores.numpy(), expected[best], atol=1e-4)


def test_the_snippet_of_the_description_runs(parts: Parts) -> None:
    model, tokenizer = parts
    inputs = tokenizer.encode_request(HISTORY, query=None, behavior="<R_I>", return_tensors="pt")
    out = model.generate(
        **inputs, logits_processor=[TrieLogitsProcessor(tokenizer.trie)], num_beams=30, num_return_sequences=10
    )
    prompt = inputs["input_ids" if tokenizer.decoder_only else "decoder_input_ids"]
    assert out.shape == (10, prompt.shape[1] + 4)
    assert len(set(tokenizer.decode_items(out))) == 10


def test_few_beams_find_distinct_items_too(parts: Parts) -> None:
    model, tokenizer = parts
    inputs = tokenizer.encode_request(HISTORY)
    processor = TrieLogitsProcessor(tokenizer.trie)
    items = tokenizer.decode_items(
        model.generate(**inputs, logits_processor=[processor], num_beams=3, num_return_sequences=3)
    )
    assert len(set(items) - {None}) == 3


def test_the_defaults_saved_with_the_model_are_enough(parts: Parts) -> None:
    """Thirty beams, as many new tokens as levels, sums of logarithms: nothing has to be named."""
    model, tokenizer = parts
    out = model.generate(**tokenizer.encode_request(HISTORY), logits_processor=[TrieLogitsProcessor(tokenizer.trie)])
    best = int(teacher_forced(parts, (HISTORY, None, "<R_I>")).argmax())
    assert tokenizer.decode_items(out) == [tokenizer.identifiers.item_ids[best]]


def test_one_batch_mixes_all_behaviors(parts: Parts) -> None:
    model, tokenizer = parts
    requests = [(HISTORY, None, "<R_I>"), (OTHER, None, "<S_Q>"), (OTHER, "horror", "<S_I>"), ([], None, "<R_I>")]
    inputs = tokenizer.encode_request(*map(list, zip(*requests, strict=True)))
    options = {"num_beams": 12, "num_return_sequences": 12, "max_new_tokens": 8}
    out = model.generate(**inputs, logits_processor=[TrieLogitsProcessor(tokenizer.trie)], **options).view(4, 12, -1)
    for row in (0, 2, 3):
        order = np.argsort(-teacher_forced(parts, requests[row]))
        assert tokenizer.decode_items(out[row]) == [tokenizer.identifiers.item_ids[item] for item in order]
    assert tokenizer.decode_items(out[1]) == [None] * 12
    place = inputs["input_ids"].shape[1] - 1 if tokenizer.decoder_only else 1
    assert (out[1, :, place] == tokenizer.behavior_ids[Behavior.SEARCH_QUERY]).all()


def test_a_row_of_a_batch_is_answered_as_it_is_alone(parts: Parts) -> None:
    model, tokenizer = parts
    requests = [(HISTORY, "horror", "<S_I>"), (OTHER, None, "<R_I>")]
    options = {"num_beams": 12, "num_return_sequences": 12, "return_dict_in_generate": True, "output_scores": True}
    processor = TrieLogitsProcessor(tokenizer.trie)
    batch = model.generate(
        **tokenizer.encode_request(*map(list, zip(*requests, strict=True))), logits_processor=[processor], **options
    )
    for row, request in enumerate(requests):
        single = model.generate(**tokenizer.encode_request(*request), logits_processor=[processor], **options)
        beams = slice(12 * row, 12 * (row + 1))
        # A longer prompt in the batch pads a decoder's own one on the left.
        assert torch.equal(batch.sequences[beams][:, -single.sequences.shape[1] :], single.sequences)
        torch.testing.assert_close(batch.sequences_scores[beams], single.sequences_scores, atol=1e-4, rtol=0)


def test_excluded_items_are_not_returned(parts: Parts) -> None:
    model, tokenizer = parts
    processor = TrieLogitsProcessor(tokenizer.trie, excluded=[{2, 3, 7}])
    out = model.generate(
        **tokenizer.encode_request(HISTORY), logits_processor=[processor], num_beams=12, num_return_sequences=9
    )
    expected = set(range(12)) - {2, 3, 7}
    assert set(tokenizer.decode_item_rows(out).tolist()) == expected


def test_greedy_search_and_sampling_stay_in_the_catalogue(parts: Parts) -> None:
    model, tokenizer = parts
    inputs = tokenizer.encode_request([HISTORY, OTHER], ["space", "horror"], "<S_I>")
    processor = TrieLogitsProcessor(tokenizer.trie)
    torch.manual_seed(0)
    for options in ({"num_beams": 1}, {"num_beams": 1, "do_sample": True, "num_return_sequences": 20}):
        items = tokenizer.decode_items(model.generate(**inputs, logits_processor=[processor], **options))
        assert None not in items


def test_the_answer_depends_on_history_query_and_behavior(parts: Parts) -> None:
    answers = [
        teacher_forced(parts, request)
        for request in [
            (HISTORY, None, "<R_I>"), (OTHER, None, "<R_I>"), (HISTORY, "horror", "<S_I>"), (HISTORY, "space", "<S_I>"),
        ]
    ]  # fmt: skip
    for one in range(4):
        for other in range(one):
            assert np.abs(answers[one] - answers[other]).max() > 0.1
