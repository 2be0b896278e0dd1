"""Scoring a tree of prefixes at once, against one forward per candidate."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import T5Config, T5ForConditionalGeneration

from gensar_hf.decoding import candidate_scoring
from gensar_hf.decoding.candidate_scoring import score_candidates
from gensar_hf.decoding.tree_decoder import EncoderContext

VOCAB_SIZE = 20


def build_t5(num_buckets: int = 4, tied: bool = True) -> T5ForConditionalGeneration:
    torch.manual_seed(0)
    config = T5Config(
        vocab_size=VOCAB_SIZE, d_model=16, d_kv=8, d_ff=32, num_layers=2, num_decoder_layers=3, num_heads=2,
        relative_attention_num_buckets=num_buckets, relative_attention_max_distance=5, decoder_start_token_id=0,
        dropout_rate=0.0, tie_word_embeddings=tied,
    )  # fmt: skip
    model = T5ForConditionalGeneration(config).eval()
    with torch.no_grad():
        model.decoder.block[0].layer[0].SelfAttention.relative_attention_bias.weight.mul_(8)
    return model


@pytest.fixture(scope="module")
def t5() -> T5ForConditionalGeneration:
    return build_t5()


def one_by_one(
    model: T5ForConditionalGeneration, states: torch.Tensor, mask: torch.Tensor, sequences: np.ndarray, num_forced: int
) -> np.ndarray:
    """The reference: teacher forcing of one candidate of one request at a time, without padding."""
    scores = np.zeros(sequences.shape[:2])
    for row, candidate in np.ndindex(*scores.shape):
        tokens = sequences[row, candidate].tolist()
        with torch.no_grad():
            logits = model(
                encoder_outputs=(states[row : row + 1, mask[row]],),
                decoder_input_ids=torch.tensor([[0, *tokens[:-1]]]),
            ).logits[0]
        log_probabilities = logits.double().log_softmax(dim=-1)
        scores[row, candidate] = sum(
            log_probabilities[position, token].item() for position, token in enumerate(tokens) if position >= num_forced
        )
    return scores


def random_encoding(batch_size: int, num_positions: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    states = torch.randn(batch_size, num_positions, 16, generator=generator)
    lengths = torch.arange(batch_size) % num_positions + 1
    return states, torch.arange(num_positions) < lengths[:, None]


@pytest.mark.parametrize("tied", [True, False])
def test_scores_follow_the_model_s_scale_of_the_output(tied: bool) -> None:
    model = build_t5(num_buckets=8, tied=tied)
    assert model.config.scale_decoder_outputs is tied
    sequences = np.random.default_rng(1).integers(1, VOCAB_SIZE, (2, 5, 4))
    states, mask = random_encoding(2, 3)
    expected = one_by_one(model, states, mask, sequences, 1)
    np.testing.assert_allclose(
        score_candidates(EncoderContext(model, states, mask), sequences).numpy(), expected, atol=2e-5
    )


@settings(deadline=None, max_examples=15)
@given(data=st.data(), seed=st.integers(0, 1000))
def test_scores_hold_for_any_candidates(t5: T5ForConditionalGeneration, data: st.DataObject, seed: int) -> None:
    shape = [data.draw(st.integers(1, high)) for high in (3, 5, 5)]
    largest = data.draw(st.sampled_from([2, 4, VOCAB_SIZE]))
    sequences = np.random.default_rng(seed).integers(0, largest, shape)
    states, mask = random_encoding(shape[0], 3, seed)
    expected = one_by_one(t5, states, mask, sequences, 0)
    np.testing.assert_allclose(
        score_candidates(EncoderContext(t5, states, mask), sequences, 0).numpy(), expected, atol=2e-5
    )


def test_requests_may_have_different_numbers_of_candidates(t5: T5ForConditionalGeneration) -> None:
    rng = np.random.default_rng(5)
    sequences = [rng.integers(1, VOCAB_SIZE, (count, 4)) for count in (3, 0, 7, 1)]
    states, mask = random_encoding(4, 3)
    scores = score_candidates(EncoderContext(t5, states, mask), sequences)
    assert scores.shape == (4, 7)
    for row, candidates in enumerate(sequences):
        assert (scores[row, len(candidates) :] == -torch.inf).all()
        if len(candidates):
            expected = one_by_one(t5, states[row : row + 1], mask[row : row + 1], candidates[None], 1)[0]
            np.testing.assert_allclose(scores[row, : len(candidates)].numpy(), expected, atol=2e-5)


@pytest.mark.parametrize(("max_candidates", "max_pairs"), [(1, 1), (7, 400), (30, 1 << 21)])
def test_many_candidates_are_scored_alike_in_any_number_of_pieces(
    t5: T5ForConditionalGeneration, monkeypatch: pytest.MonkeyPatch, max_candidates: int, max_pairs: int
) -> None:
    sequences = np.random.default_rng(6).integers(1, VOCAB_SIZE, (3, 40, 4))
    states, mask = random_encoding(3, 5)
    at_once = score_candidates(EncoderContext(t5, states, mask), sequences)
    monkeypatch.setattr(candidate_scoring, "_MAX_CANDIDATES", max_candidates)
    monkeypatch.setattr(candidate_scoring, "_MAX_PAIRS", max_pairs)
    in_pieces = score_candidates(EncoderContext(t5, states, mask), sequences)
    torch.testing.assert_close(in_pieces, at_once, atol=2e-5, rtol=0)
