"""Log-probabilities of few tokens against the whole table of them."""

import pytest
import torch
from transformers import T5Config, T5ForConditionalGeneration

from gensar_hf.decoding.output_head import OutputHead


def build_t5(vocab_size: int = 5000, tied: bool = True) -> T5ForConditionalGeneration:
    torch.manual_seed(0)
    config = T5Config(
        vocab_size=vocab_size, d_model=8, d_kv=4, d_ff=8, num_layers=1, num_heads=2, tie_word_embeddings=tied
    )
    return T5ForConditionalGeneration(config).eval()


def whole_table(model: T5ForConditionalGeneration, states: torch.Tensor) -> torch.Tensor:
    scale = model.config.d_model**-0.5 if model.config.scale_decoder_outputs else 1.0
    return model.lm_head(states * scale).double().log_softmax(dim=-1)


@torch.no_grad()
@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("vocab_size", [7, 2048, 2049, 5000])
def test_ranges_and_tokens_of_any_vocabulary(vocab_size: int, tied: bool) -> None:
    model = build_t5(vocab_size, tied)
    states = 5 * torch.randn(3, 4, 8)
    expected = whole_table(model, states)
    head = OutputHead.of_t5(model)
    for first, end in ((0, vocab_size), (3, 5), (vocab_size - 2, vocab_size)):
        found = head.range_log_probabilities(states, first, end)
        torch.testing.assert_close(found.double(), expected[..., first:end], atol=1e-4, rtol=0)
    rows, tokens = torch.randint(0, 12, (5, 6)), torch.randint(0, vocab_size, (5, 6))
    found = head.token_log_probabilities(states.flatten(0, 1), rows, tokens)
    torch.testing.assert_close(found.double(), expected.flatten(0, 1)[rows, tokens], atol=1e-4, rtol=0)


@torch.no_grad()
def test_large_logits_do_not_overflow() -> None:
    model = build_t5(tied=False)
    states = 300 * torch.randn(2, 8)
    assert model.lm_head(states).max() > 500
    expected = whole_table(model, states)[:, :10]
    found = OutputHead.of_t5(model).range_log_probabilities(states, 0, 10)
    torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=1e-3)


@torch.no_grad()
@pytest.mark.parametrize("kind", ["hook", "bias", "subclass"])
def test_a_head_that_is_more_than_a_matrix_is_called(kind: str) -> None:
    model = build_t5(vocab_size=50, tied=False)
    shift = torch.linspace(-3, 3, 50)
    if kind == "hook":
        model.lm_head.register_forward_hook(lambda module, inputs, logits: logits + shift)
    elif kind == "bias":
        model.lm_head.bias = torch.nn.Parameter(shift)
    else:
        head = type("ShiftedHead", (torch.nn.Linear,), {"forward": lambda self, x: x @ self.weight.T + shift})(8, 50)
        model.lm_head = head
    states = torch.randn(6, 8)
    expected, head = whole_table(model, states), OutputHead.of_t5(model)
    torch.testing.assert_close(head.range_log_probabilities(states, 5, 9).double(), expected[:, 5:9], atol=1e-5, rtol=0)
    rows, tokens = torch.tensor([0, 5, 5]), torch.tensor([49, 0, 7])
    found = head.token_log_probabilities(states, rows, tokens)
    torch.testing.assert_close(found.double(), expected[rows, tokens], atol=1e-5, rtol=0)
