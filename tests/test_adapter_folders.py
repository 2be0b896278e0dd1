"""A pipeline from an adapter's folder: it answers as the model with the adapter does, or says why it cannot."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from pipeline_requests import HISTORIES, QUERIES, assert_same_answers, item_ids
from transformers import AutoModelForCausalLM, AutoModelForSeq2SeqLM, Trainer, TrainingArguments

from gensar_hf import GenSARPipeline
from gensar_hf.errors import InputError
from gensar_hf.generator.adapters import AdapterBase, add_adapter, grow_to, lora_config, save_adapter
from gensar_hf.generator.tokenization_gensar import GenSARTokenizer

NEIGHBORS = np.array([[0, 3], [5, 1]])
NEW = ["new-1", "new-2"]


@pytest.fixture
def base_dir(model_dirs: dict[str, Path], kind: str, tmp_path: Path) -> Path:
    shutil.copytree(model_dirs[kind], tmp_path / "base")
    return tmp_path / "base"


@pytest.fixture
def unmerged(base_dir: Path) -> tuple[GenSARPipeline, Path]:
    """A pipeline over the model with an adapter that is not merged, two items more, and the adapter's folder."""
    tokenizer = GenSARTokenizer.from_pretrained(base_dir)
    table, free = tokenizer.identifiers, np.array([[3, 3, 0, 0], [3, 3, 1, 1]])
    tokenizer.attach_identifiers(
        replace(
            table,
            item_ids=[*table.item_ids, *NEW],
            semantic_codes=np.concatenate([table.semantic_codes, free]),
            collaborative_codes=np.concatenate([table.collaborative_codes, free]),
            titles=[*table.titles, "New", "Newer"],
            texts=[*table.texts, "New", "Newer"],
            available=np.ones(14, dtype=bool),
        )
    )
    auto_class = AutoModelForCausalLM if tokenizer.decoder_only else AutoModelForSeq2SeqLM
    model = auto_class.from_pretrained(base_dir)
    has_vectors = getattr(model.config, "num_items", 0) > 0
    base = AdapterBase.of(model, str(base_dir), neighbors=NEIGHBORS if has_vectors else None)
    rows = (12, 13) if has_vectors else ()
    config = lora_config(grow_to(model, base), tokenizer.code_token_ids, rank=2, item_rows=rows)
    with_adapter = add_adapter(model, config)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in with_adapter.parameters():
            if parameter.requires_grad:
                parameter += 0.2 * torch.randn(parameter.shape, generator=generator)
    folder = base_dir.parent / "adapter"
    save_adapter(with_adapter, folder, base)
    tokenizer.save_pretrained(folder)
    return GenSARPipeline(with_adapter.get_base_model(), tokenizer), folder


@pytest.mark.parametrize("kind", ["vectors", "causal"])
def test_an_adapter_answers_the_same_merged_and_unmerged(
    unmerged: tuple[GenSARPipeline, Path], base_dir: Path, tmp_path: Path
) -> None:
    pipe, folder = unmerged
    loaded = GenSARPipeline.from_pretrained(folder, device="cpu")
    loaded.save_pretrained(tmp_path / "merged")
    plain = GenSARPipeline.from_pretrained(tmp_path / "merged", device="cpu")
    expected = pipe.recommend(HISTORIES, top_k=14)
    assert_same_answers(loaded.recommend(HISTORIES, top_k=14), expected, "item_id")
    assert_same_answers(*([each.recommend([])] for each in (loaded, pipe)), "item_id")  # no clicks at all
    assert_same_answers(plain.recommend(HISTORIES, top_k=14), expected, "item_id")
    assert_same_answers(*(each.search(QUERIES[:2], HISTORIES[:2], top_k=14) for each in (loaded, pipe)), "item_id")
    assert_same_answers(*([each.suggest_queries(HISTORIES[0])] for each in (loaded, pipe)), "query")
    asked = ["film-3", NEW[1], "film-8"]
    assert_same_answers(*([each.rank(HISTORIES[0], asked, "horror")] for each in (loaded, pipe)), "item_id")
    assert set(NEW) <= set(item_ids(pipe.recommend([{"item_id": NEW[0]}], top_k=14)))
    before = GenSARPipeline.from_pretrained(base_dir, device="cpu").recommend(HISTORIES, top_k=12)
    assert item_ids(before[0]) != item_ids(loaded.recommend(HISTORIES, top_k=12)[0])


@pytest.mark.parametrize("kind", ["events"])
def test_an_adapter_over_another_model_is_refused_in_one_sentence(
    unmerged: tuple[GenSARPipeline, Path], base_dir: Path, model_dirs: dict[str, Path]
) -> None:
    _, folder = unmerged
    with pytest.raises(InputError, match=r"adapter in .* was made for another model") as error:
        GenSARPipeline.from_pretrained(folder, base_model=model_dirs["vectors"])
    assert "\n" not in str(error.value)
    shutil.rmtree(base_dir)
    with pytest.raises(InputError, match=r"holds an adapter for the model in .*base, which cannot be loaded") as error:
        GenSARPipeline.from_pretrained(folder)
    assert str(base_dir) in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("kind", ["texts"])
def test_an_adapter_for_a_model_that_is_in_no_folder_says_so(unmerged: tuple[GenSARPipeline, Path]) -> None:
    path = unmerged[1] / "adapter_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "base_model_name_or_path": ""}))
    with pytest.raises(InputError, match="for a model that is in no folder yet"):
        GenSARPipeline.from_pretrained(unmerged[1])


@pytest.mark.parametrize("kind", ["vectors"])
def test_a_trainer_divides_an_adapter_s_loss_as_the_model_s(base_dir: Path, tmp_path: Path) -> None:
    """Or gradient accumulation would multiply it."""
    model = AutoModelForSeq2SeqLM.from_pretrained(base_dir)
    arguments = TrainingArguments(output_dir=str(tmp_path), use_cpu=True)
    assert Trainer(model=add_adapter(model, lora_config(model, [5])), args=arguments).model_accepts_loss_kwargs
