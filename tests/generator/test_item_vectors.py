"""The vectors of clicked items, read one after the other by the recurrent layer."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from transformers import Trainer, TrainingArguments

from gensar_hf.generator.configuration_gensar import GenSARConfig
from gensar_hf.generator.initialization import share_item_features, start_item_vectors
from gensar_hf.generator.item_vectors import ITEM_VECTOR_STD, ItemVectors, merge_features, plain_weights, share_features
from gensar_hf.generator.modeling_gensar import GenSARForConditionalGeneration
from gensar_hf.generator.tokenization_gensar import GenSARTokenizer
from gensar_hf.pipeline import GenSARPipeline

# Two rows; the first packs an example of five positions, one of three, and padding.
EVENT_ITEMS = torch.tensor([[-1, 3, -1, 7, 9, -1, 4, 4, -1], [-1, 5, 6, 7, 8, -1, 1, -1, -1]])
STARTS = torch.tensor([[0, 0, 0, 0, 0, 5, 5, 5, 0], [0] * 9])


@pytest.fixture
def items() -> ItemVectors:
    torch.manual_seed(0)
    config = GenSARConfig(vocab_size=10, num_items=12, d_model=16, d_kv=8, num_heads=2)
    return ItemVectors(config).eval()


def by_hand(items: ItemVectors, event_items: torch.Tensor) -> torch.Tensor:
    """`(num_positions, d_model)` of one example: a loop over its clicks."""
    states, state = [torch.zeros(16)], torch.zeros(1, 1, 16)
    for item in event_items[event_items >= 0]:
        _, state = items.gru(items.table.weight[item].view(1, 1, -1) / ITEM_VECTOR_STD, state)
        states.append(items.gru_projection(state[0, 0]))
    return torch.stack([states[clicks] for clicks in (event_items >= 0).cumsum(0)])


def test_each_example_of_a_packed_row_is_read_by_itself(items: ItemVectors) -> None:
    states = items.click_states(EVENT_ITEMS, STARTS)
    for row, places in ((0, slice(0, 5)), (0, slice(5, 8)), (1, slice(0, 9))):
        expected = by_hand(items, EVENT_ITEMS[row, places])
        torch.testing.assert_close(states[row, places], expected, atol=1e-6, rtol=0)


def test_what_is_not_clicked_yet_changes_nothing(items: ItemVectors) -> None:
    whole = items.click_states(EVENT_ITEMS)
    for length in range(1, EVENT_ITEMS.shape[1]):
        torch.testing.assert_close(items.click_states(EVENT_ITEMS[:, :length]), whole[:, :length], atol=1e-6, rtol=0)


def test_no_requests_have_no_logits(items: ItemVectors) -> None:
    logits = items.logits(torch.zeros(0, items.table.embedding_dim), torch.zeros(0, dtype=torch.long))
    assert logits.shape == (0, items.table.num_embeddings)


def test_without_clicks_there_is_nothing_to_add(items: ItemVectors) -> None:
    assert not items.click_states(torch.full((2, 3), -1)).any()
    plain = ItemVectors(GenSARConfig(vocab_size=10, num_items=12, d_model=16, item_recurrence=False))
    assert not plain.click_states(EVENT_ITEMS, STARTS).any()
    assert not any(name.startswith("gru") for name, _ in plain.named_parameters())


def test_items_with_the_same_features_learn_from_each_other(items: ItemVectors) -> None:
    features = torch.randn(12, 4)
    features[5] = features[3]
    before = items.table.weight.detach().clone()
    share_features(items, features, torch.randn(4, 16))
    torch.testing.assert_close(items.table.weight, before, atol=1e-6, rtol=0)

    items.table.weight[3].sum().backward()
    torch.optim.SGD(items.parameters(), lr=0.5).step()

    moved = items.table.weight.detach() - before
    # By 0.5 alone, and by 0.5 times the product of the features through the map.
    expected = 0.5 * (features @ features[3])[:, None].expand(12, 16).clone()
    expected[3] += 0.5
    torch.testing.assert_close(moved, -expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("prefix", ["", "encoder.items."])
def test_saved_vectors_are_plain(items: ItemVectors, prefix: str) -> None:
    names = {prefix + name for name in items.state_dict()}
    share_features(items, torch.randn(12, 4), torch.randn(4, 16))
    with torch.no_grad():
        next(items.table.parametrizations.weight[0].parameters()).add_(0.25)
    vectors = items.table.weight.detach().clone()

    weights = plain_weights(items, {prefix + name: value for name, value in items.state_dict().items()})

    assert set(weights) == {*names, f"{prefix}feature_map"}
    torch.testing.assert_close(weights[f"{prefix}table.weight"], vectors, atol=1e-6, rtol=0)
    merge_features(items)
    assert {prefix + name for name in items.state_dict()} == names
    assert torch.equal(items.table.weight, vectors)


def test_weights_without_features_stay_as_they_are(items: ItemVectors) -> None:
    weights = items.state_dict()
    assert plain_weights(items, weights) is weights


# ---- saved while the item vectors share features


@pytest.fixture
def shared(make_generator: Callable, tokenizers: dict[str, GenSARTokenizer]) -> GenSARForConditionalGeneration:
    """A model in training: its item vectors are a feature map plus a rest, both away from where they started."""
    model = make_generator(tokenizers["events"], num_items=12)
    embeddings = [np.random.default_rng(0).normal(size=(12, 6))]
    start_item_vectors(model, embeddings, np.arange(12))
    share_item_features(model, embeddings)
    with torch.no_grad():
        for parameter in model.encoder.items.table.parameters():
            parameter += 0.3 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1))
    return model


def answers(model: GenSARForConditionalGeneration, tokenizer: GenSARTokenizer) -> np.ndarray:
    return GenSARPipeline(model, tokenizer).score_items([[{"item_id": "film-3"}]], np.arange(12)[None])


@pytest.mark.parametrize("way", ["save_pretrained", "state_dict", "Trainer"])
def test_a_model_saved_in_training_answers_the_same(
    way: str, shared: GenSARForConditionalGeneration, tokenizers: dict[str, GenSARTokenizer], tmp_path: Path
) -> None:
    expected = answers(shared, tokenizers["events"])
    if way == "Trainer":
        Trainer(model=shared, args=TrainingArguments(output_dir=str(tmp_path / "run"), use_cpu=True)).save_model(
            str(tmp_path / "saved")
        )
    else:
        shared.save_pretrained(
            tmp_path / "saved", **({"state_dict": shared.state_dict()} if way == "state_dict" else {})
        )
    loaded, report = GenSARForConditionalGeneration.from_pretrained(tmp_path / "saved", output_loading_info=True)
    assert not report["missing_keys"]
    assert not report["unexpected_keys"]
    np.testing.assert_allclose(answers(loaded.eval(), tokenizers["events"]), expected, atol=1e-5)


def test_saved_weights_resume_a_training_with_shared_features(
    shared: GenSARForConditionalGeneration,
    make_generator: Callable,
    tokenizers: dict[str, GenSARTokenizer],
    tmp_path: Path,
) -> None:
    """A checkpoint's file holds plain vectors, which are divided into map and rest as they were."""
    shared.save_pretrained(tmp_path)
    resumed = make_generator(tokenizers["events"], seed=7, num_items=12)
    embeddings = [np.random.default_rng(0).normal(size=(12, 6))]
    start_item_vectors(resumed, embeddings, np.arange(12))
    share_item_features(resumed, embeddings)
    result = resumed.load_state_dict(load_file(tmp_path / "model.safetensors"), strict=False)
    assert not result.unexpected_keys
    assert all(name in shared._tied_weights_keys for name in result.missing_keys)
    for name, parameter in shared.named_parameters():
        torch.testing.assert_close(resumed.get_parameter(name), parameter, atol=1e-6, rtol=0, msg=name)
