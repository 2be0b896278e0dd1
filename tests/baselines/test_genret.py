import pytest
import torch
import torch.nn.functional as F

from gensar_hf.baselines import genret
from gensar_hf.baselines.generative import in_batch_loss
from gensar_hf.baselines.genret import CODE_TEMPERATURE, LATENT_DIM, CodeLevel, GenRetConfig, learn_codes, level_loss
from gensar_hf.baselines.tuning import configure
from gensar_hf.errors import InputError

ITEMS = torch.eye(8)
PAIRS = torch.stack([torch.arange(8), torch.arange(8)], dim=1)  # text i finds item i


def test_the_loss_is_the_sum_of_four_terms():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        level = CodeLevel(8, 3, 4).eval()  # codes are the nearest ones
        level.quantizer.codebook.data.normal_()
        texts, items, prefix = torch.randn(5, 8), torch.tensor([1, 2, 1, 7, 0]), torch.randn(8, 3)
    latents, asked = level(ITEMS[items], prefix[items]), level(texts, prefix[items])
    codebook = level.quantizer.codebook
    codes = torch.cdist(latents, codebook).argmin(dim=1)
    retrieval = in_batch_loss(asked, items, lambda rows: level(ITEMS[rows], prefix[rows]))
    retrieval += F.cross_entropy(-torch.cdist(asked, codebook).square() / CODE_TEMPERATURE, codes)
    rebuilt = level.decoder(torch.cat([prefix[items], codebook[codes]], dim=1))
    reconstruction = in_batch_loss(rebuilt, items, lambda rows: ITEMS[rows])
    commitment = 1.25 * (latents - codebook[codes]).square().sum() / 5
    expected = retrieval + reconstruction + commitment
    torch.testing.assert_close(level_loss(level, texts, items, ITEMS, prefix), expected, rtol=1e-4, atol=1e-4)


def test_later_levels_leave_earlier_ones_as_they_are(monkeypatch):
    monkeypatch.setattr(genret, "PAIRS_PER_STEP", 16)
    config = GenRetConfig(codebook_size=3, num_levels=2, identifier_steps=5)
    latents, codebooks = learn_codes(ITEMS, ITEMS, PAIRS, config, seed=0)
    config.num_levels = 1
    first, (codebook,) = learn_codes(ITEMS, ITEMS, PAIRS, config, seed=0)
    assert latents.shape == (8, 2 * LATENT_DIM)
    torch.testing.assert_close(latents[:, :LATENT_DIM], first, rtol=0, atol=0)
    torch.testing.assert_close(codebooks[0], codebook, rtol=0, atol=0)
    torch.testing.assert_close(first.norm(dim=1), torch.ones(8))


def test_like_items_of_one_text_share_a_code(monkeypatch):
    monkeypatch.setattr(genret, "PAIRS_PER_STEP", 16)
    pairs = torch.tensor([(item // 4, item) for item in range(8)])  # two texts, each of four items
    like = torch.eye(2).repeat_interleave(4, dim=0) + 0.1 * torch.arange(8)[:, None] / 8
    config = GenRetConfig(codebook_size=2, num_levels=1, identifier_steps=10)
    latents, (codebook,) = learn_codes(like, torch.tensor([[1.0, -1.0], [-1.0, 1.0]]), pairs, config, seed=0)
    codes = torch.cdist(latents, codebook).argmin(dim=1)
    assert len(codes[:4].unique()) == len(codes[4:].unique()) == 1
    assert codes[0] != codes[4]


def test_settings_are_checked():
    with pytest.raises(InputError, match="Baseline 'genret': `identifier_steps` must be at least 1; got 0"):
        configure("genret", {"identifier_steps": 0})
