"""FMLP-Rec: the filters as sums by hand, labels that cannot leak, padding and errors."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from gensar_hf.baselines.fmlp_rec import FMLPRecConfig, FMLPRecModel
from gensar_hf.baselines.sequential import new_model
from gensar_hf.embeddings.modeling_sasrec import pad_histories
from gensar_hf.embeddings.sasrec_training import PrefixWindows, collate_windows

NUM_ITEMS = 9


def tiny_model(**settings) -> FMLPRecModel:
    sizes = {"num_items": NUM_ITEMS, "hidden_size": 6, "max_length": 7, "initializer_range": 0.5}
    return new_model(FMLPRecModel, FMLPRecConfig(**sizes | settings), seed=0).eval()


@pytest.fixture
def model() -> FMLPRecModel:
    return tiny_model()


@pytest.mark.parametrize("max_length", [1, 6, 7])
def test_a_filter_is_a_circular_convolution(max_length):
    """Zhou et al. (2022), sec. 3.2: the product of spectra, as a sum over all places of the window."""
    block = tiny_model(max_length=max_length).blocks[0]
    inputs = np.random.default_rng(0).standard_normal((max_length, 6))
    weights = block.filter.detach().numpy() @ [1, 1j]  # (max_length // 2 + 1, 6)
    kernel = np.fft.irfft(weights, n=max_length, axis=0)  # (max_length, 6)
    filtered = [sum(kernel[i] * inputs[place - i] for i in range(max_length)) for place in range(max_length)]

    with torch.no_grad():
        actual = block.mix(torch.tensor(inputs, dtype=torch.float32)[None])[0]
    expected = F.layer_norm(torch.tensor(inputs + np.array(filtered)), [6])
    torch.testing.assert_close(actual.double(), expected, atol=1e-4, rtol=1e-4)


def test_the_state_is_the_last_one_of_the_left_padded_window(model):
    history = torch.tensor([[3, 1, 8]])
    with torch.no_grad():
        hidden = model.input_norm(model.item_table(F.pad(history, (4, 0))) + model.position_table.weight)
        for block in model.blocks:
            hidden = block.feed_forward(block.mix(hidden))
        torch.testing.assert_close(model.score(history), hidden[:, -1] @ model.item_embeddings().T)


def test_a_place_of_the_window_reads_later_ones(model):
    hidden = torch.randn(1, 7, 6, generator=torch.Generator().manual_seed(0), requires_grad=True)
    model.blocks[0].mix(hidden)[0, 0, 0].backward()
    assert (hidden.grad[0].abs().amax(dim=1) > 1e-3).all()


def test_a_label_that_the_filters_read_trains_nothing(model):
    """With labels at every position, as SASRec is trained: the filters read all but the last one."""
    input_ids, labels = torch.tensor([[3, 1, 8, 4]]), torch.tensor([[1, 8, 4, -100]])
    loss = model.train()(input_ids, labels).loss
    loss.backward()
    assert loss.item() == pytest.approx(np.log(NUM_ITEMS))
    assert not any(parameter.grad.any() for parameter in model.parameters())

    model(input_ids, torch.tensor([[-100, -100, -100, 2]])).loss.backward()
    assert model.blocks[0].filter.grad.any()


def test_training_prefixes_hold_their_label_only_as_the_label(model):
    windows = PrefixWindows([np.arange(3), np.array([5]), np.arange(2, 6)], max_length=2)
    rows = [[windows[i][name].tolist() for name in ("input_ids", "labels")] for i in range(len(windows))]

    assert rows == [
        [[1], [2]],
        [[1, 2], [-100, 3]],
        [[3], [4]],
        [[3, 4], [-100, 5]],
        [[4, 5], [-100, 6]],
    ]
    assert windows.lengths.tolist() == [len(inputs) for inputs, _ in rows]
    batch = collate_windows([windows[0], windows[1]])
    expected = [F.cross_entropy(model.score(torch.tensor([ids])), torch.tensor([label[-1] - 1])) for ids, label in rows]
    torch.testing.assert_close(model(**batch).loss, torch.stack(expected[:2]).mean())


def test_dropped_events_are_drawn_for_each_epoch():
    windows = PrefixWindows([np.arange(40)], max_length=50, event_dropout=0.5)
    first = windows[38]["input_ids"].tolist()
    windows.set_epoch(1)
    assert first != windows[38]["input_ids"].tolist()
    assert 10 < len(first) < 30
    assert len(windows[0]["input_ids"]) == 1  # of two events both are kept


def test_padding_changes_no_score_and_an_empty_history_prefers_no_item(model):
    scores = model.score(pad_histories([np.array([2, 4]), np.arange(5), np.array([], dtype=int)], max_length=7))

    torch.testing.assert_close(scores[:1], model.score(torch.tensor([[3, 5]])))
    torch.testing.assert_close(scores[1:2], model.score(torch.tensor([[1, 2, 3, 4, 5]])))
    assert scores[2].tolist() == [0.0] * NUM_ITEMS


def test_a_longer_history_is_cut_to_its_latest_events(model):
    long = torch.tensor([[9, 9, 1, 2, 3, 4, 5, 6, 7]])
    torch.testing.assert_close(model.score(long), model.score(long[:, 2:]))


@pytest.mark.parametrize(("setting", "value"), [("hidden_size", 0), ("dropout", 1.0), ("max_length", 0)])
def test_settings_out_of_range_are_refused(setting, value):
    with pytest.raises(Exception, match=f"`{setting}` must be at least"):
        FMLPRecConfig(**{setting: value})
