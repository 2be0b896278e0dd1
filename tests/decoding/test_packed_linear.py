"""Packed weights give what the model gives; without the operators the model stays what it is."""

import pytest
import torch
from transformers import T5Config, T5ForConditionalGeneration

from gensar_hf.decoding import Trie, TrieBeamSearch, packed_linear
from gensar_hf.decoding.packed_linear import PackedLinear, can_pack, pack_linears

needs_operators = pytest.mark.skipif(not can_pack(), reason="this torch cannot pack weights")


def build_t5(vocab_size: int = 5000, **options: object) -> T5ForConditionalGeneration:
    torch.manual_seed(0)
    config = T5Config(
        vocab_size=vocab_size, d_model=16, d_kv=8, d_ff=32, num_layers=2, num_heads=2, decoder_start_token_id=0,
        **options,
    )  # fmt: skip
    return T5ForConditionalGeneration(config).eval()


@needs_operators
@torch.inference_mode()
@pytest.mark.parametrize("max_rows", [None, 4])
@pytest.mark.parametrize(("num_outputs", "bias"), [(7, False), (7, True), (5000, False), (5000, True)])
def test_a_packed_layer_is_the_layer(
    monkeypatch: pytest.MonkeyPatch, num_outputs: int, bias: bool, max_rows: int | None
) -> None:
    """With few rows and many, in one slice and several, on processors with and without AVX-512."""
    monkeypatch.setattr(packed_linear, "_MAX_ROWS_WITHOUT_AVX512", max_rows)
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "AVX2" if max_rows else "AVX512")
    layer = torch.nn.Linear(33, num_outputs, bias=bias)
    packed = PackedLinear(layer)
    for shape in ((1, 33), (2, 3, 33), (2, 1, 3, 33), (0, 33)):
        states = torch.randn(shape)
        torch.testing.assert_close(packed(states), layer(states), atol=1e-5, rtol=1e-5)


@needs_operators
@pytest.mark.parametrize("options", [{}, {"feed_forward_proj": "gated-gelu", "tie_word_embeddings": False}])
def test_a_packed_model_finds_the_same(options: dict) -> None:
    model = build_t5(**options)
    packed = pack_linears(model)
    assert sum(isinstance(module, PackedLinear) for module in packed.modules()) > 20
    assert not any(isinstance(module, PackedLinear) for module in model.modules())
    assert all(
        one.data_ptr() == other.data_ptr()
        for one, other in zip(model.state_dict().values(), packed.state_dict().values(), strict=True)
    )
    codes = torch.cartesian_prod(*[torch.arange(40, 46)] * 3)
    search = TrieBeamSearch(Trie(torch.cat([torch.full((len(codes), 1), 3), codes], dim=1)))
    inputs = {"input_ids": torch.randint(5, 4000, (3, 6)), "decoder_input_ids": torch.tensor([[0, 3]] * 3)}
    kwargs = {"num_beams": 10, "num_return_sequences": 10, "max_new_tokens": 3, "return_dict_in_generate": True}
    found, expected = (
        part.generate(**inputs, **kwargs, output_scores=True, custom_generate=search) for part in (packed, model)
    )
    torch.testing.assert_close(found.sequences_scores, expected.sequences_scores, atol=1e-4, rtol=0)
    assert torch.equal(found.sequences, expected.sequences)


def test_without_the_operators_the_model_is_returned(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packed_linear, "can_pack", lambda: False)
    model = build_t5()
    assert pack_linears(model) is model


def test_layers_with_a_hook_or_in_another_precision_keep_their_own_code() -> None:
    model = build_t5()
    assert pack_linears(model.to(torch.bfloat16)) is model
    model = build_t5()
    model.lm_head.register_forward_hook(lambda module, inputs, logits: logits)
    packed = pack_linears(model)
    assert type(packed.lm_head) is torch.nn.Linear
    assert not can_pack() or isinstance(packed.decoder.block[0].layer[0].SelfAttention.q, PackedLinear)
