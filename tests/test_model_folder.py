"""Saved models: loaded again they answer the same; damaged or foreign folders are refused in one sentence."""

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from pipeline_requests import HISTORIES, HISTORY, QUERIES
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSeq2SeqLM,
    AutoTokenizer,
    T5Config,
    T5ForConditionalGeneration,
    TokenizersBackend,
)

from gensar_hf import GenSARPipeline, InteractionDataset, TrieLogitsProcessor
from gensar_hf.errors import InputError
from gensar_hf.generator.tokenization_gensar import GenSARTokenizer


def test_a_copied_folder_gives_the_same_answers_to_the_last_bit(
    pipe: GenSARPipeline, model_dirs: dict[str, Path], kind: str, tmp_path: Path
) -> None:
    shutil.copytree(model_dirs[kind], tmp_path / "copy")
    loaded = GenSARPipeline.from_pretrained(tmp_path / "copy", device="cpu")
    for answers in (
        lambda each: each.recommend(HISTORIES, top_k=12),
        lambda each: each.search(QUERIES, HISTORIES, top_k=12),
        lambda each: each.suggest_queries(HISTORIES),
    ):
        for one, other in zip(answers(loaded), answers(pipe), strict=True):
            assert_equal(one, other, kind)


def assert_equal(answers: list[dict], expected: list[dict], kind: str) -> None:
    """To the last bit; with texts up to rounding, since products of embeddings depend on their place in memory."""
    assert [{**answer, "score": 0} for answer in answers] == [{**answer, "score": 0} for answer in expected]
    scores = [answer["score"] for answer in expected]
    assert [answer["score"] for answer in answers] == (pytest.approx(scores, abs=1e-5) if kind == "texts" else scores)


def test_the_auto_classes_give_the_same_sequences(pipe: GenSARPipeline, model_dirs: dict[str, Path], kind: str) -> None:
    auto_class = AutoModelForCausalLM if kind == "causal" else AutoModelForSeq2SeqLM
    model = auto_class.from_pretrained(model_dirs[kind])
    tokenizer = AutoTokenizer.from_pretrained(model_dirs[kind])
    outputs = [
        part.generate(
            **tok.encode_request(HISTORY, "horror", "<S_I>"), logits_processor=[TrieLogitsProcessor(tok.trie)],
            num_return_sequences=10, return_dict_in_generate=True, output_scores=True,
        )
        for part, tok in ((pipe.model, pipe.tokenizer), (model, tokenizer))
    ]  # fmt: skip
    assert torch.equal(outputs[0].sequences, outputs[1].sequences)
    torch.testing.assert_close(
        outputs[0].sequences_scores, outputs[1].sequences_scores, rtol=0, atol=1e-5 if kind == "texts" else 0
    )


def test_a_model_replaces_another_as_a_whole_and_leaves_other_files(
    pipelines: dict[str, GenSARPipeline], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pipelines["texts"].save_pretrained(tmp_path)
    (tmp_path / "notes.txt").write_text("mine")
    (tmp_path / "adapter_config.json").write_text("{}")  # of an adapter that an earlier version has saved

    def die(folder: Path) -> None:
        if (Path(folder) / ".files.aside-ready").exists():
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("gensar_hf.folders.finish_saving", die)
        with pytest.raises(KeyboardInterrupt):
            pipelines["vectors"].save_pretrained(tmp_path)
    loaded = GenSARPipeline.from_pretrained(tmp_path, device="cpu")  # which completes the save
    assert loaded.recommend(HISTORIES) == pipelines["vectors"].recommend(HISTORIES)
    assert (tmp_path / "notes.txt").read_text() == "mine"
    assert not list(tmp_path.glob("text_*"))
    assert not (tmp_path / "adapter_config.json").exists()
    loaded.card = "a card"
    loaded.save_pretrained(tmp_path)
    (tmp_path / "README.md").write_text("an edited card")
    with pytest.raises(InputError, match=r"README\.md would be replaced"):
        loaded.save_pretrained(tmp_path)


FRESH_PROCESS = """
import json, sys
from gensar_hf import GenSARPipeline
pipe = GenSARPipeline.from_pretrained(sys.argv[1], device="cpu")
history = json.loads(sys.argv[2])
print(json.dumps([pipe.recommend(history), pipe.search("horror", history), pipe.suggest_queries(history)]))
"""


@pytest.mark.slow
def test_a_fresh_process_gives_the_same_answers_to_the_last_bit(
    pipe: GenSARPipeline, model_dirs: dict[str, Path], kind: str, tmp_path: Path
) -> None:
    shutil.copytree(model_dirs[kind], tmp_path / "copy")
    command = [sys.executable, "-c", FRESH_PROCESS, str(tmp_path / "copy"), json.dumps(HISTORY)]
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=tmp_path)
    expected = [pipe.recommend(HISTORY), pipe.search("horror", HISTORY), pipe.suggest_queries(HISTORY)]
    for one, other in zip(json.loads(done.stdout.splitlines()[-1]), expected, strict=True):
        assert_equal(one, other, kind)


@pytest.fixture
def folder(model_dirs: dict[str, Path], tmp_path: Path) -> Path:
    shutil.copytree(model_dirs["events"], tmp_path / "model")
    return tmp_path / "model"


def refuse(folder: Path, *words: str) -> None:
    """Loading raises one sentence, on one line, that names the folder."""
    with pytest.raises(InputError) as error:
        GenSARPipeline.from_pretrained(folder)
    message = str(error.value)
    assert "\n" not in message
    for word in (str(folder), *words):
        assert word in message


def test_a_folder_without_identifiers_is_refused(folder: Path) -> None:
    (folder / "identifiers.parquet").unlink()
    refuse(folder, "holds no identifiers.parquet")


@pytest.mark.parametrize("num_bytes", [0, 5, 300, -1])
def test_truncated_weights_are_refused(folder: Path, num_bytes: int) -> None:
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:num_bytes])
    refuse(folder, "cannot be loaded", "model.safetensors")


def test_a_folder_without_weights_is_refused(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    refuse(folder, "cannot be loaded")


def test_a_folder_that_does_not_exist_is_refused(tmp_path: Path) -> None:
    refuse(tmp_path / "nowhere")


@pytest.mark.parametrize("content", ["{", "{}"])
def test_a_damaged_configuration_is_refused(folder: Path, content: str) -> None:
    (folder / "config.json").write_text(content)
    refuse(folder)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("d_model", 0), ("num_heads", -1), ("dropout_rate", 1.5), ("item_dropout", 1.0), ("item_weight", -1.0),
        ("num_items", -1), ("history_encoding", "bytes"), ("d_ff", "wide"),
    ],
)  # fmt: skip
def test_a_configuration_out_of_range_is_refused(folder: Path, name: str, value: object) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, name: value}))
    refuse(folder, name)


def test_a_folder_s_own_code_is_never_run(folder: Path, pipelines: dict[str, GenSARPipeline], tmp_path: Path) -> None:
    """A stranger's folder may name classes of its own; loading takes ours, and imports nothing from there."""
    code = f"import pathlib\npathlib.Path({str(tmp_path / 'was run')!r}).touch()\nclass Evil: pass\n"
    for module in ("modeling_evil", "configuration_evil", "tokenization_evil"):
        (folder / f"{module}.py").write_text(code)
    classes = {
        "config.json": {"AutoConfig": "configuration_evil.Evil", "AutoModelForSeq2SeqLM": "modeling_evil.Evil"},
        "tokenizer_config.json": {"AutoTokenizer": [None, "tokenization_evil.Evil"]},
    }
    for name, auto_map in classes.items():
        content = json.loads((folder / name).read_text())
        (folder / name).write_text(json.dumps({**content, "auto_map": auto_map}))
    answers = GenSARPipeline.from_pretrained(folder).recommend(HISTORY)
    assert answers == pipelines["events"].recommend(HISTORY)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "model_type": "evil"}))
    refuse(folder)
    assert not (tmp_path / "was run").exists()


def test_a_damaged_vocabulary_is_refused(folder: Path) -> None:
    (folder / "tokenizer.json").write_text("{")
    refuse(folder, "cannot be loaded")


def test_a_folder_with_another_kind_of_model_is_refused(tmp_path: Path, tokenizers: dict[str, GenSARTokenizer]) -> None:
    T5ForConditionalGeneration(
        T5Config(vocab_size=119, d_model=8, d_kv=4, d_ff=8, num_layers=1, num_heads=1)
    ).save_pretrained(tmp_path)
    words = tokenizers["tokens"].backend_tokenizer
    TokenizersBackend(tokenizer_object=words, pad_token="<pad>", eos_token="</s>").save_pretrained(tmp_path)
    refuse(tmp_path, "which cannot search or recommend")


def test_the_tokenizer_of_a_larger_catalogue_is_refused(folder: Path, make_identifiers: Callable) -> None:
    other = GenSARTokenizer.train_from_texts(["toy story"], make_identifiers(codebook_size=32), vocab_size=60)
    other.save_pretrained(folder)
    with pytest.raises(InputError, match=r"The tokenizer has \d+ tokens, the model embeddings for 146; they do not"):
        GenSARPipeline.from_pretrained(folder)


def test_the_identifiers_of_another_catalogue_are_refused(folder: Path, make_identifiers: Callable) -> None:
    make_identifiers(codebook_size=5).save(folder)
    with pytest.raises(InputError, match=r"The tokenizer lacks 6 tokens of the identifier table, first '<M1_4>'"):
        GenSARPipeline.from_pretrained(folder)


def test_two_ways_of_reading_histories_do_not_go_together(pipelines: dict[str, GenSARPipeline]) -> None:
    with pytest.raises(InputError, match="The tokenizer encodes histories as tokens, the model reads events"):
        GenSARPipeline(pipelines["events"].model, pipelines["tokens"].tokenizer)


def test_a_decoder_only_model_and_the_tokenizer_of_another_kind_do_not_go_together(
    pipelines: dict[str, GenSARPipeline],
) -> None:
    with pytest.raises(
        InputError, match="requests for an encoder-decoder model, the model is a decoder-only model; load both"
    ):
        GenSARPipeline(pipelines["causal"].model, pipelines["tokens"].tokenizer)
    with pytest.raises(
        InputError, match="requests for a decoder-only model, the model is an encoder-decoder model; load both"
    ):
        GenSARPipeline(pipelines["tokens"].model, pipelines["causal"].tokenizer)


def test_a_catalogue_without_titles_has_none(make_generator: Callable, make_identifiers: Callable) -> None:
    table = make_identifiers()
    table.titles = None
    tokenizer = GenSARTokenizer.train_from_texts(["toy story"], table, vocab_size=60)
    answers = GenSARPipeline(make_generator(tokenizer), tokenizer).recommend([], top_k=2)
    assert [answer["title"] for answer in answers] == [None, None]


# ---- folders of version 0.1

VERSION_0_1 = Path(__file__).parent / "data_0_1"


@pytest.mark.parametrize("name", ["model", "adapter"])
def test_folders_of_version_0_1_answer_as_they_did(name: str) -> None:
    """The files and their answers were written by the code of commit 9012c7a.

    `model` has random weights, item vectors, a removed item and two added ones (column `lenders`), and the removed
    setting `recency_slope`. `adapter` is LoRA on it, with item vectors of both added items.
    """
    pipe = GenSARPipeline.from_pretrained(VERSION_0_1 / name, device="cpu")
    items = pipe.items
    histories, queries = [HISTORY, []], ["space adventure", "horror"]
    candidates = items["item_id"][items["available"]].tolist()
    answers = {
        "recommend": pipe.recommend(histories, top_k=3),
        "search": pipe.search(queries, histories, top_k=3),
        "rank": pipe.rank(histories, [candidates] * 2, queries),
        "suggest_queries": pipe.suggest_queries(histories),
    }
    expected = json.loads((VERSION_0_1 / "answers.json").read_text())[name]
    for method, per_request in answers.items():
        key = "query" if method == "suggest_queries" else "item_id"
        for found, scores in zip(per_request, expected[method], strict=True):
            assert [answer[key] for answer in found] == list(scores)
            assert [answer["score"] for answer in found] == pytest.approx(list(scores.values()), abs=1e-5)


def test_the_data_folder_of_a_run_of_version_0_1_is_a_dataset(tmp_path: Path) -> None:
    dataset = InteractionDataset.load(VERSION_0_1 / "data")
    assert repr(dataset) == "InteractionDataset(4 users, 12 items, 32 interactions, 1 queries)"
    assert dataset.text_columns == ("title", "genres")
    assert {task: len(requests) for task, requests in dataset.split.test.items()} == {"recommendation": 4, "search": 4}
    dataset.save(tmp_path)
    again = InteractionDataset.load(tmp_path)
    assert again.interactions.equals(dataset.interactions)
    assert again.split.train_ends.tolist() == dataset.split.train_ends.tolist()


def test_a_model_of_version_0_1_says_that_it_cannot_add_items() -> None:
    pipe = GenSARPipeline.from_pretrained(VERSION_0_1 / "model", device="cpu")
    with pytest.raises(InputError, match="has no item encoder, so new items cannot get identifiers; train it with"):
        pipe.add_items([{"item_id": "new-3", "title": "Newest"}])
