import numpy as np
import pytest
import torch
import torch.nn.functional as F

from gensar_hf.baselines.joint_ids import BiEncoder, click_pairs, joint_latents, search_pairs, train_bi_encoder
from gensar_hf.baselines.tuning import configure
from gensar_hf.data import Behavior
from gensar_hf.embeddings.text_encoder import TextEncoder
from gensar_hf.errors import InputError

R, Q, S = Behavior
ROWS = {"ann": [(R, 0), (R, 0), (R, 1), (Q, 0), (S, 2, 0), (S, 1, 0)], "bob": [(R, 3), (Q, 1)], "cem": [(R, 1), (R, 3)]}


def test_pairs_of_both_tasks(make_events):
    events = make_events(ROWS, list("abcd"), ["red", "blue"])
    assert click_pairs(events).tolist() == [[0, 1], [1, 2], [2, 1], [1, 3]]  # not of two users, nor of an item twice
    assert search_pairs(events).tolist() == [[0, 2], [0, 1]]


def test_the_bi_encoder_starts_as_the_text_encoder():
    embeddings = torch.randn(3, 6)
    torch.testing.assert_close(BiEncoder(6)(embeddings), embeddings)


def test_both_tasks_move_their_pairs_together():
    embeddings, queries = torch.eye(6), torch.full((1, 6), 0.4)
    data = embeddings, queries, np.array([[0, 2]]), np.array([[0, 1], [3, 4], [5, 2]])
    model = train_bi_encoder(*data, num_steps=20, seed=0)
    items = F.normalize(model(embeddings), dim=-1)
    cosines = items @ items.T
    assert cosines[0, 1] > cosines[0, [2, 4]].max()
    assert cosines[3, 4] > cosines[3, [1, 2]].max()
    torch.testing.assert_close(train_bi_encoder(*data, num_steps=20, seed=0)(embeddings), model(embeddings))


def test_without_clicks_nothing_is_learned(make_events, dataset_of):
    data = dataset_of(make_events({"ann": [(R, 0)], "bob": [(R, 1)]}, list("ab"), []), ["red shoes", "blue hat"])
    encoder = TextEncoder.load(None, texts=data.item_texts())
    with pytest.raises(InputError, match="The joint identifiers cannot be learned: no event before the held-out ones"):
        joint_latents(data, encoder, 1, seed=0)
    with pytest.raises(InputError, match="`identifier_steps` must be at least 0; got -1"):
        configure("joint_ids", {"identifier_steps": -1})


def test_without_steps_the_text_embeddings_are_quantized(make_events, dataset_of):
    data = dataset_of(make_events(ROWS, list("abcd"), ["red", "blue"]), ["red shoes", "red hat", "hat", "blue shoes"])
    encoder = TextEncoder.load(None, texts=data.item_texts())
    latents = joint_latents(data, encoder, 0, seed=0)
    np.testing.assert_allclose(latents.numpy(), encoder.encode(data.item_texts()), atol=1e-6)
