"""The generator's stage on top of a causal language model: what comes out is a model folder like every other."""

import shutil

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM, TokenizersBackend

from gensar_hf import GenSARPipeline
from gensar_hf.files import read_json


@pytest.fixture(scope="module")
def llama(tmp_path_factory):
    """A checkpoint with a text tokenizer of its own, without a padding token."""
    folder = tmp_path_factory.mktemp("llama")
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=270, special_tokens=["<|end|>"], initial_alphabet=alphabet, show_progress=False
    )
    backend.train_from_iterator(["soap lotion"], trainer)
    TokenizersBackend(tokenizer_object=backend, eos_token="<|end|>").save_pretrained(folder)
    config = LlamaConfig(
        vocab_size=len(backend.get_vocab()), hidden_size=16, intermediate_size=16, num_hidden_layers=1,
        num_attention_heads=2, eos_token_id=0, tie_word_embeddings=True,
    )  # fmt: skip
    torch.manual_seed(0)
    LlamaForCausalLM(config).save_pretrained(folder)
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("rank", [4, 0])
def test_a_causal_language_model_is_trained_merged_and_asked(prepared_run, script, llama, tmp_path, rank):
    shutil.copytree(prepared_run, tmp_path / "run")
    status, _, complaint = script(
        "train_generator.py", "--output_dir", tmp_path / "run", "--model.model_name_or_path", llama,
        f"--model.lora_rank={rank}", "--model.max_steps=3", "--model.per_device_train_batch_size=4",
        "--model.max_history_events=4",
    )  # fmt: skip
    assert status == 0, complaint
    folder = tmp_path / "run" / "model"
    assert not list(folder.glob("adapter*"))
    details = read_json(folder / "stage.json")["details"]
    words = AutoModelForCausalLM.from_pretrained(llama)
    model = AutoModelForCausalLM.from_pretrained(folder)
    old, new = words.get_input_embeddings().weight, model.get_input_embeddings().weight
    if rank:
        assert details["trained parameters"] < details["parameters"] / 2
        assert torch.equal(new[: len(old)], old)  # words stay; the layers have taken the adapter in
        assert not torch.equal(
            model.model.layers[0].self_attn.q_proj.weight, words.model.layers[0].self_attn.q_proj.weight
        )
    else:
        assert details["trained parameters"] == details["parameters"]
        assert not torch.equal(new[: len(old)], old)
    pipe = GenSARPipeline.from_pretrained(folder, device="cpu")
    history = [{"item_id": pipe.tokenizer.identifiers.item_ids[2]}]
    assert len(pipe.recommend(history, top_k=30)) == len(pipe.search("red", history, top_k=30)) == 30
    assert script("evaluate.py", "--output_dir", tmp_path / "run", "--results.num_negatives=9")[0] == 0
