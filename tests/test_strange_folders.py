"""Model folders that are incomplete, damaged or a stranger's: refused in one sentence, or read without harm."""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from pipeline_requests import HISTORY
from safetensors.numpy import load_file, save_file
from transformers import AutoModel, AutoModelForSeq2SeqLM, AutoTokenizer

from gensar_hf import GenSARPipeline, IdentifierTable, JointRQVAE, JointRQVAEConfig, SASRecConfig, SASRecModel
from gensar_hf.embeddings.text_encoder import TextEncoder
from gensar_hf.errors import InputError


def refusal(load: Callable[[], object], *words: str) -> str:
    """The sentence of what cannot be loaded; on one line, not long, and with these words."""
    with pytest.raises(InputError) as error:
        load()
    message = str(error.value)
    assert "\n" not in message
    assert len(message) <= 500
    for word in words:
        assert word in message
    return message


def refuse(folder: Path, *words: str) -> None:
    refusal(lambda: GenSARPipeline.from_pretrained(folder, device="cpu"), *words)


def change_json(path: Path, **values: Any) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


@pytest.fixture
def folder(model_dirs: dict[str, Path], tmp_path: Path, request: pytest.FixtureRequest) -> Path:
    """A copy of a saved model, by default that with item vectors and texts."""
    shutil.copytree(model_dirs[getattr(request, "param", "texts")], tmp_path / "model")
    return tmp_path / "model"


# ---- weights


@pytest.fixture(scope="module")
def other_models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("others")
    SASRecModel(SASRecConfig(num_items=3, hidden_size=8, max_length=4)).save_pretrained(folder / "sasrec")
    sizes = {"semantic_dim": 6, "collaborative_dim": 4, "codebook_size": 4, "latent_dim": 4}
    rqvae = JointRQVAE(JointRQVAEConfig(**sizes, hidden_sizes=[8]))
    for parameter in rqvae.parameters():
        torch.nn.init.normal_(parameter)
    rqvae.save_pretrained(folder / "rqvae")
    return folder


NAMES = {
    "sasrec": "blocks.0.attention_norm.weight", "rqvae": "semantic_standardization.scale",
    "texts": "encoder.items.table.weight", "causal": "model.norm.weight",
}  # fmt: skip
CHANGES: dict[str, tuple[str, Callable[[dict, str], object]]] = {
    "missing": ("is missing", lambda tensors, name: tensors.pop(name)),
    "left over": ("other.w is not a", lambda tensors, name: tensors.update({"other.w": np.ones(2, np.float32)})),
    "shape": ("shape", lambda tensors, name: tensors.update({name: np.ones((2, 5), np.float32)})),
    "NaN": ("NaN", lambda tensors, name: tensors[name].reshape(-1).__setitem__(0, np.nan)),
    "infinite": ("infinity", lambda tensors, name: tensors[name].reshape(-1).__setitem__(0, np.inf)),
    "integers": ("numbers of type I8", lambda tensors, name: tensors.update({name: tensors[name].astype(np.int8)})),
}  # fmt: skip


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("model", NAMES)
def test_weights_that_are_not_all_there_and_finite_are_refused(
    model: str, change: str, model_dirs: dict[str, Path], other_models: Path, tmp_path: Path
) -> None:
    shutil.copytree(model_dirs.get(model, other_models / model), tmp_path / model)
    load = {"sasrec": SASRecModel.from_pretrained, "rqvae": AutoModel.from_pretrained}
    path, (word, change_tensors) = tmp_path / model / "model.safetensors", CHANGES[change]
    tensors = load_file(path)
    change_tensors(tensors, NAMES[model])
    save_file(tensors, path, metadata={"format": "pt"})
    words = [word, str(tmp_path / model), "copy all files", *([NAMES[model]] if change != "left over" else [])]
    refusal(lambda: load.get(model, GenSARPipeline.from_pretrained)(tmp_path / model), *words)


def test_the_auto_class_refuses_missing_weights_and_knows_tied_ones(folder: Path) -> None:
    AutoModelForSeq2SeqLM.from_pretrained(folder)
    tensors = load_file(folder / "model.safetensors")
    assert "lm_head.weight" not in tensors  # tied to the table of tokens
    del tensors["shared.weight"]
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    refusal(lambda: AutoModelForSeq2SeqLM.from_pretrained(folder), "shared.weight is missing")


@pytest.mark.parametrize(("name", "key"), [("text_vectors", "vectors"), ("text_encoder/lexical_encoder", "weights")])
def test_numbers_of_texts_that_are_not_finite_are_refused(folder: Path, name: str, key: str) -> None:
    path = folder / f"{name}.safetensors"
    tensors = load_file(path)
    tensors[key].reshape(-1)[1] = np.nan
    save_file(tensors, path)
    refuse(folder, path.name, "finite")


# ---- strangers


EVIL = "import pathlib\npathlib.Path({!r}).touch()\nclass Evil: pass\n"


@pytest.mark.parametrize("folder", ["texts", "causal"], indirect=True)
def test_a_stranger_s_class_is_refused_without_a_question(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("builtins.input", lambda *_: pytest.fail("asked whether to run code"))
    monkeypatch.setattr("transformers.dynamic_module_utils.signal.alarm", lambda *_: pytest.fail("waits for an answer"))
    (folder / "evil.py").write_text(EVIL.format(str(tmp_path / "PWNED")))
    change_json(folder / "config.json", model_type="evil", auto_map={"AutoConfig": "evil.Evil"})
    refuse(folder, str(folder))
    refusal(lambda: GenSARPipeline.from_pretrained(folder, trust_remote_code=True), "never run", "trust_remote_code")
    assert not (tmp_path / "PWNED").exists()


@pytest.mark.parametrize("name", ["README.md", "model.safetensors", "config.json", "text_encoder/text_encoder.json"])
def test_links_out_of_the_folder_are_refused_and_those_of_a_hub_cache_followed(
    folder: Path, tmp_path: Path, name: str
) -> None:
    (folder / "README.md").write_text("# Films")
    snapshot, blobs = tmp_path / "models--me--films" / "snapshots" / "abc", tmp_path / "models--me--films" / "blobs"
    shutil.copytree(folder, snapshot)
    blobs.mkdir()
    for number, path in enumerate(sorted(path for path in snapshot.rglob("*") if path.is_file())):
        path.rename(blobs / str(number))
        path.symlink_to(os.path.relpath(blobs / str(number), path.parent))
    assert GenSARPipeline.from_pretrained(snapshot, device="cpu").card == "# Films"
    (folder / name).rename(tmp_path / "outside")
    (folder / name).symlink_to(tmp_path / "outside")
    refuse(folder, str(folder / name), "link out of the model's folder")


def test_only_files_and_folders_are_opened(folder: Path) -> None:
    (folder / "tokenizer.json").unlink()
    os.mkfifo(folder / "tokenizer.json")  # to open it would wait for ever
    refuse(folder, "neither a file nor a folder")


@pytest.mark.parametrize("place", ["../outside.safetensors", "/outside.safetensors", 7])
def test_an_index_names_files_of_its_folder(folder: Path, place: object) -> None:
    weights = {"metadata": {}, "weight_map": dict.fromkeys(load_file(folder / "model.safetensors"), place)}
    (folder / "model.safetensors").rename(folder.parent / "outside.safetensors")
    (folder / "model.safetensors.index.json").write_text(json.dumps(weights))
    refuse(folder, "model.safetensors.index.json", "next to it")


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("config.json", {"attn_implementation": "a/b"}),
        ("config.json", {"quantization_config": {"quant_method": "mxfp4"}}),
        ("config.json", {"transformers_weights": "other.safetensors"}),
        ("text_encoder/text_encoder.json", {"kind": "sentence_transformer", "name": "/etc", "max_length": None}),
        ("text_encoder/text_encoder.json", {"kind": "sentence_transformer", "name": "../x", "max_length": None}),
        ("tokenizer_config.json", {"max_history_events": "x"}),
        ("tokenizer_config.json", {"max_history_events": 0}),
        ("tokenizer_config.json", {"pad_token": "<R_I>"}),
        ("config.json", {"item_weight": 1e308}),
        ("config.json", {"num_layers": 10**9}),
        ("config.json", {"num_items": 10**9}),
    ],
)
def test_settings_that_do_harm_or_mean_nothing_are_refused(folder: Path, name: str, values: dict[str, Any]) -> None:
    change_json(folder / name, **values)
    refuse(folder, str(folder), Path(name).name if "kind" not in values else "text_encoder.json")


@pytest.mark.parametrize("content", ["[]", "null", "{}", "", "[" * 9000, "\udcff"])
@pytest.mark.parametrize("name", ["config.json", "tokenizer.json", "tokenizer_config.json"])
def test_any_damage_of_a_json_file_is_one_sentence(folder: Path, name: str, content: str) -> None:
    (folder / name).write_bytes(content.encode("utf-8", "surrogateescape"))
    refuse(folder, str(folder))


def test_a_pickle_is_not_read(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    refuse(folder, "holds no model.safetensors")


def test_a_card_in_another_encoding_and_strange_generation_settings_do_no_harm(
    folder: Path, pipelines: dict[str, GenSARPipeline]
) -> None:
    (folder / "README.md").write_bytes(b"# Films \xff")
    change_json(folder / "generation_config.json", no_repeat_ngram_size=1, min_length=30)
    pipe, same = GenSARPipeline.from_pretrained(folder, device="cpu"), pipelines["texts"]
    assert pipe.card.startswith("# Films")
    answers, expected = pipe.suggest_queries(HISTORY, top_k=1), same.suggest_queries(HISTORY, top_k=1)
    assert answers == [{"query": expected[0]["query"], "score": pytest.approx(expected[0]["score"], abs=1e-4)}]


# ---- sizes


def rewrite(folder: Path, change: Callable[[pa.Table], pa.Table]) -> None:
    path = folder / "identifiers.parquet"
    pq.write_table(change(pq.read_table(path)), path)


def with_metadata(table: pa.Table, **values: Any) -> pa.Table:
    key = b"gensar_hf.identifiers"
    about = {**json.loads(table.schema.metadata[key]), **values}
    return table.replace_schema_metadata({key: json.dumps(about)})


def long_texts(table: pa.Table) -> pa.Table:
    indices = pa.array(np.zeros(len(table), np.int32))
    texts = pa.DictionaryArray.from_arrays(indices, pa.array(["a" * 400_000]))
    return table.set_column(table.column_names.index("text"), "text", texts)


@pytest.mark.parametrize(
    ("change", "word"),
    [
        (lambda table: with_metadata(table, codebook_size=10**7), "code tokens"),
        (lambda table: with_metadata(table, codebook_size="32"), "codebook_size"),
        (lambda table: table.replace_schema_metadata({b"gensar_hf.identifiers": b"[]"}), "no JSON object"),
        (long_texts, "bytes of values"),
        (lambda table: table.take(np.tile(np.arange(len(table)), 3_000)), "bytes of values"),
    ],
    ids=["codebook", "text", "list", "long", "rows"],
)
def test_a_table_is_not_larger_than_its_file(
    folder: Path, change: Callable, word: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gensar_hf.identifiers.identifier_table._LEAST_BYTES", 2**21)
    rewrite(folder, change)
    refuse(folder, word)


def test_a_tokenizer_is_not_far_larger_than_the_table_of_tokens(folder: Path) -> None:
    with (folder / "tokenizer.json").open("a") as file:
        file.write(" " * 5_000_000)
    refuse(folder, "tokenizer.json", "bytes")


# ---- other things that load


@pytest.mark.parametrize("kind", ["causal"])
@pytest.mark.parametrize("model_type", ["qwen2", "phi3", "olmo2"])
def test_a_decoder_only_model_of_any_type_loads(pipe: GenSARPipeline, model_type: str, tmp_path: Path) -> None:
    from transformers import AutoConfig, AutoModelForCausalLM

    from gensar_hf.generator.initialization import generator_from_causal_lm

    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = AutoConfig.for_model(model_type, **sizes, num_key_value_heads=2, vocab_size=60, pad_token_id=0)
    model = generator_from_causal_lm(AutoModelForCausalLM.from_config(config), pipe.tokenizer)
    GenSARPipeline(model, pipe.tokenizer).save_pretrained(tmp_path)
    assert len(GenSARPipeline.from_pretrained(tmp_path, device="cpu").recommend(HISTORY, top_k=3)) == 3
    assert type(AutoTokenizer.from_pretrained(tmp_path)).__name__ == "GenSARTokenizer"


@pytest.mark.parametrize("name", ["me/films", "../nowhere", ""])
def test_the_model_of_an_adapter_is_not_fetched_unasked(folder: Path, name: str, monkeypatch) -> None:
    monkeypatch.setattr("gensar_hf.model_folder.snapshot_download", lambda *_, **__: pytest.fail("asked the Hub"))
    (folder / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": name}))
    record = {"base_fingerprint": "0", "vocab_size": 1, "neighbors": []}
    (folder / "adapter_base.json").write_text(json.dumps(record))
    refuse(folder, *(["adapter for", "base_model"] if name else ["in no folder yet"]))


def test_a_checked_table_loads_as_it_was_saved(folder: Path, identifiers: IdentifierTable) -> None:
    loaded = IdentifierTable.load(folder)
    assert loaded.item_ids == identifiers.item_ids
    assert (loaded.titles, loaded.texts) == (identifiers.titles, identifiers.texts)


def test_an_encoder_of_another_width_is_named(folder: Path, identifiers: IdentifierTable) -> None:
    TextEncoder.load(None, identifiers.texts, dim=3).save(folder / "text_encoder")
    pipe = GenSARPipeline.from_pretrained(folder, device="cpu")
    refusal(lambda: pipe.search("space"), "text encoder")
