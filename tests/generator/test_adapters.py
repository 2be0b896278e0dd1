"""Adapters: what they train, and that saved, loaded and merged they say the same, on every kind of model."""

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    Qwen2Config,
    Qwen2ForCausalLM,
)

from gensar_hf.errors import InputError
from gensar_hf.generator.adapters import (
    AdapterBase,
    add_adapter,
    grow_to,
    load_adapter,
    lora_config,
    merge_adapter,
    model_fingerprint,
    neighbors_of_marked_items,
    save_adapter,
)
from gensar_hf.generator.modeling_gensar import GenSARForConditionalGeneration
from gensar_hf.generator.tokenization_gensar import GenSARTokenizer
from gensar_hf.identifiers import IdentifierTable

NEIGHBORS = np.array([[0, 3], [5, 1]])
DECODER_CLASSES = {"llama": (LlamaForCausalLM, LlamaConfig), "qwen2": (Qwen2ForCausalLM, Qwen2Config)}
SHAPES = ("t5", "t5 untied", "llama", "llama untied", "qwen2", "qwen2 untied")
NEW_TOKENS = 2


@pytest.fixture
def tokenizer(tokenizers: dict[str, GenSARTokenizer]) -> GenSARTokenizer:
    return tokenizers["events"]


@pytest.fixture
def make_base(tokenizer: GenSARTokenizer, make_generator: Callable, tmp_path: Path) -> Callable[..., PreTrainedModel]:
    """Makes the same base model each time, or one from another seed."""

    def make(shape: str = "t5", seed: int = 0) -> PreTrainedModel:
        name, _, untied = shape.partition(" ")
        torch.manual_seed(seed)
        if name in DECODER_CLASSES:
            model_class, config_class = DECODER_CLASSES[name]
            sizes = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
            config = config_class(
                vocab_size=len(tokenizer), num_key_value_heads=2, tie_word_embeddings=not untied, **sizes
            )
            return model_class(config).eval()
        model = make_generator(tokenizer, seed, num_items=12)
        if not untied:
            return model
        # As T5 v1.1: transformers builds it tied, and loads it with the output table that is in the file.
        model.lm_head.weight = torch.nn.Parameter(torch.randn(len(tokenizer), 16))
        model.config.tie_word_embeddings = model.config.scale_decoder_outputs = False
        model.save_pretrained(tmp_path / "untied")
        return GenSARForConditionalGeneration.from_pretrained(tmp_path / "untied").eval()

    return make


def logits(model: PreTrainedModel, last_token: int) -> torch.Tensor:
    inputs = {"input_ids": torch.tensor([[5, 6, 100, last_token]])}
    if model.config.is_encoder_decoder:
        events = {"event_ids": torch.tensor([[0, 1, 1, 2]]), "event_items": torch.tensor([[-1, 3, 13]])}
        inputs |= {**events, "decoder_input_ids": torch.tensor([[0, 120, last_token]])}
    with torch.no_grad():
        return model(**inputs).logits


def trained(
    model: PreTrainedModel, tokenizer: GenSARTokenizer, shape: str = "t5"
) -> tuple[torch.nn.Module, AdapterBase]:
    """The model with an adapter whose weights are no longer those that it began with, and two tokens more."""
    neighbors = NEIGHBORS if shape.startswith("t5") else None
    base = AdapterBase.of(model, "films/base", len(tokenizer) + NEW_TOKENS, neighbors)
    grow_to(model, base)
    token_ids = [*tokenizer.code_token_ids, *range(len(tokenizer), len(tokenizer) + NEW_TOKENS)]
    item_rows = () if neighbors is None else (12, 13)
    with_adapter = add_adapter(model, lora_config(model, token_ids, rank=2, item_rows=item_rows))
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in with_adapter.parameters():
            if parameter.requires_grad:
                parameter += 0.3 * torch.randn(parameter.shape, generator=generator)
    return with_adapter.eval(), base


@pytest.mark.parametrize("shape", SHAPES)
def test_a_saved_loaded_and_merged_adapter_says_the_same(
    shape: str, make_base: Callable, tokenizer: GenSARTokenizer, tmp_path: Path
) -> None:
    with_adapter, base = trained(make_base(shape), tokenizer, shape)
    last_token = len(tokenizer) + NEW_TOKENS - 1
    expected = logits(with_adapter.get_base_model(), last_token)
    save_adapter(with_adapter, tmp_path / "adapter", base)
    written = {path.name for path in (tmp_path / "adapter").iterdir()}
    assert written == {"adapter_config.json", "adapter_model.safetensors", "adapter_base.json"}

    loaded = load_adapter(make_base(shape), tmp_path / "adapter").eval()
    assert torch.equal(logits(loaded.get_base_model(), last_token), expected)
    merged = merge_adapter(loaded)
    torch.testing.assert_close(logits(merged, last_token), expected, atol=1e-5, rtol=1e-5)
    merged.save_pretrained(tmp_path / "merged")
    plain = type(merged).from_pretrained(tmp_path / "merged").eval()
    torch.testing.assert_close(logits(plain, last_token), expected, atol=1e-5, rtol=1e-5)
    assert (plain.get_output_embeddings().weight is plain.get_input_embeddings().weight) == ("untied" not in shape)


@pytest.mark.parametrize("shape", ["t5", "t5 untied", "llama untied"])
def test_a_step_of_training_changes_the_chosen_rows_and_nothing_else(
    shape: str, make_base: Callable, tokenizer: GenSARTokenizer
) -> None:
    model, is_t5 = make_base(shape), shape.startswith("t5")
    token_ids = tokenizer.code_token_ids
    with_adapter = add_adapter(model, lora_config(model, token_ids, rank=2, item_rows=[4] if is_t5 else ()))
    trainable = {name: p for name, p in with_adapter.named_parameters() if p.requires_grad}
    # T5: queries and values of 2 encoder layers and of 2 decoder layers with 2 attentions each; Llama: of 2 layers.
    num_layers = 2 * (2 + 2 * 2) if is_t5 else 2 * 2
    num_tables = 1 + ("untied" in shape)
    assert sum(p.numel() for p in trainable.values()) == (
        num_layers * (16 * 2 + 2 * 16) + num_tables * len(token_ids) * 16 + is_t5 * 16
    )
    plain = {name: p.detach().clone() for name, p in with_adapter.named_parameters() if not p.requires_grad}
    inputs = {"input_ids": torch.from_numpy(token_ids[None]), "labels": torch.from_numpy(token_ids[None])}
    if is_t5:
        # Several positions: attention over a single one has only rounding as gradient.
        places = {"event_ids": torch.arange(len(token_ids))[None], "event_items": torch.full((1, len(token_ids)), 4)}
        items = {"item_positions": [[1]], "item_is_searched": [[0]], "item_labels": [[4]]}
        inputs |= {**places, **{name: torch.tensor(value) for name, value in items.items()}}
    before = {name: p.detach().clone() for name, p in trainable.items()}
    optimizer = torch.optim.AdamW(trainable.values(), lr=1e-2)
    for _ in range(2):  # the first LoRA matrix has a gradient once the second is no longer zero
        optimizer.zero_grad()
        with_adapter(**inputs).loss.backward()
        optimizer.step()
    for name, parameter in with_adapter.named_parameters():
        if name in plain:
            assert torch.equal(parameter, plain[name]), name
        else:
            assert not torch.isclose(parameter, before[name]).all(), name


def test_new_items_begin_as_the_mean_of_their_neighbors(make_base: Callable, tokenizer: GenSARTokenizer) -> None:
    model = make_base()
    with torch.no_grad():
        model.encoder.items.bias.copy_(torch.arange(12.0))
    before = model.encoder.items.table.weight.detach().clone()
    grow_to(model, AdapterBase.of(model, "base", neighbors=NEIGHBORS))
    items = model.encoder.items
    assert model.config.num_items == len(items.table.weight) == 14
    assert torch.equal(items.table.weight[:12], before)
    torch.testing.assert_close(items.table.weight[12], (before[0] + before[3]) / 2)
    assert items.bias.tolist() == [*range(12), 1.5, 3.0]
    with pytest.raises(ValueError, match="Neighbors must be rows of the 14 items; got 0 to 14"):
        grow_to(model, AdapterBase.of(model, "base", neighbors=np.array([[0, 14]])))


def test_the_neighbors_of_newly_marked_items(identifiers: IdentifierTable) -> None:
    """Of four added items two are marked, one after the other; both keep the neighbors that they were added with."""
    before = replace(identifiers, neighbors=np.array([[0, 3], [5, 1], [2, 4], [6, 7]]))
    first = before.mark_trained(["film-9"])
    assert neighbors_of_marked_items(before, first).tolist() == [[5, 1]]
    second = first.mark_trained(["film-11"])
    assert second.item_ids[8:] == ["film-9", "film-11", "film-8", "film-10"]
    assert neighbors_of_marked_items(first, second).tolist() == [[6, 7]]
    assert neighbors_of_marked_items(first, first).shape == (0, 2)


def test_other_layers_can_be_named(make_base: Callable, tokenizer: GenSARTokenizer) -> None:
    model = make_base()
    with_adapter = add_adapter(model, lora_config(model, [5], rank=3, target_modules=["k"]))
    shapes = [tuple(p.shape) for name, p in with_adapter.named_parameters() if "lora_A" in name]
    assert shapes == [(3, 16)] * 6  # the keys of all attentions


# ---- which model it was made for


def test_a_fingerprint_is_that_of_the_weights(make_base: Callable) -> None:
    model = make_base()
    assert model_fingerprint(model) == model_fingerprint(make_base())
    assert model_fingerprint(model) == model_fingerprint(make_base().to(torch.bfloat16))
    assert model_fingerprint(model) != model_fingerprint(make_base(seed=1))
    assert model_fingerprint(make_base("llama")) != model_fingerprint(make_base("qwen2"))


@pytest.fixture
def folder(make_base: Callable, tokenizer: GenSARTokenizer, tmp_path: Path) -> Path:
    with_adapter, base = trained(make_base(), tokenizer)
    save_adapter(with_adapter, tmp_path / "adapter", base)
    return tmp_path / "adapter"


def refuse(model: PreTrainedModel, folder: Path, words: str) -> None:
    with pytest.raises(InputError, match=words) as error:
        load_adapter(model, folder)
    assert str(folder) in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(("shape", "seed"), [("t5", 1), ("t5 untied", 0), ("llama", 0)])
def test_an_adapter_of_another_base_is_refused(shape: str, seed: int, make_base: Callable, folder: Path) -> None:
    refuse(make_base(shape, seed), folder, r"made for another model: its base model is films/base")


@pytest.mark.parametrize("name", ["adapter_config.json", "adapter_model.safetensors", "adapter_base.json"])
def test_an_adapter_that_lacks_a_file_is_refused(name: str, make_base: Callable, folder: Path) -> None:
    (folder / name).unlink()
    refuse(make_base(), folder, f"no {name}")


def test_damaged_weights_are_refused(make_base: Callable, folder: Path) -> None:
    path = folder / "adapter_model.safetensors"
    weights = {name: tensor.clone() for name, tensor in load_file(path).items()}  # else a view of the file
    path.write_bytes(path.read_bytes()[:300])
    refuse(make_base(), folder, "is damaged")
    save_file({name: tensor[..., :-1].contiguous() for name, tensor in weights.items()}, path)
    refuse(make_base(), folder, "is damaged")
    name = next(iter(weights))
    save_file({**weights, name: weights[name].to(torch.int8)}, path)
    refuse(make_base(), folder, "holds numbers of type torch.int8")
    save_file(dict(list(weights.items())[1:]), path)
    refuse(make_base(), folder, "does not hold the weights")


@pytest.mark.parametrize(
    ("name", "field", "value"),
    [
        ("adapter_base.json", "vocab_size", "many"), ("adapter_base.json", "neighbors", [[0], [1, 2]]),
        ("adapter_base.json", "neighbors", [[0, 50]]), ("adapter_config.json", "peft_type", "XLORA"),
        ("adapter_config.json", "r", "many"), ("adapter_config.json", "target_modules", ["nothing"]),
        ("adapter_config.json", "trainable_token_indices", {"shared": [10_000]}),
    ],
)  # fmt: skip
def test_a_damaged_record_is_refused(name: str, field: str, value: object, make_base: Callable, folder: Path) -> None:
    record = json.loads((folder / name).read_text())
    (folder / name).write_text(json.dumps({**record, field: value}))
    refuse(make_base(), folder, "damaged|does not describe")


def test_pickles_are_not_loaded_and_named_modules_not_imported(
    make_base: Callable, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A stranger's adapter may name a module to import (`megatron_core`), and hold a pickle."""
    monkeypatch.syspath_prepend(str(folder))
    (folder / "evil.py").write_text(f"import pathlib\npathlib.Path({str(tmp_path / 'was run')!r}).touch()\n")
    record = json.loads((folder / "adapter_config.json").read_text())
    record |= {"megatron_config": {"tensor_model_parallel_size": 1}, "megatron_core": "evil"}
    (folder / "adapter_config.json").write_text(json.dumps(record))
    load_adapter(make_base(), folder)
    shutil.move(folder / "adapter_model.safetensors", folder / "adapter_model.bin")
    refuse(make_base(), folder, "no adapter_model.safetensors")
    assert not (tmp_path / "was run").exists()


@pytest.mark.parametrize("model_type", ["phi3", "mixtral", "ctrl"])
def test_lora_takes_all_linear_layers_of_a_kind_of_model_that_peft_does_not_know(model_type: str) -> None:
    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = AutoConfig.for_model(model_type, **sizes, num_key_value_heads=2, vocab_size=60, pad_token_id=0)
    model = AutoModelForCausalLM.from_config(config)
    with_adapter = add_adapter(model, lora_config(model, [1]))
    assert any("lora_A" in name for name, _ in with_adapter.named_parameters())
    assert "lm_head" not in with_adapter.peft_config["default"].target_modules
