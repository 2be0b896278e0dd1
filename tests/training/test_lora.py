"""LoRA on a trained pipeline: what is trained, and that adapters and merged models answer as the pipeline does."""

import shutil

import pandas as pd
import pytest
import tiny_runs
import torch
from transformers import TrainerCallback

from gensar_hf import GenSARPipeline, GenSARTrainer, InputError, InteractionDataset

NEW = pd.DataFrame({"item_id": ["N1", "N2"], "title": ["red soap oil", "blue cream mask"]})


def load(folder, **options):
    return GenSARPipeline.from_pretrained(folder, device="cpu", **options)


def arguments(folder, **changes):
    # A rate at which a few steps move the weights visibly.
    return tiny_runs.arguments(folder, **{"lora_rank": 8, "learning_rate": 0.05, "warmup_steps": 0, **changes})


@pytest.fixture(scope="module")
def newer(tiny_data):
    """Interactions after those of `tiny_data`, half of them on the first new item."""
    items, _ = tiny_runs.make_tables()
    rows = [(f"user {user}", item, 200.0 + step, "") for user in range(12) for step, item in enumerate(("B01", "N1"))]
    interactions = pd.DataFrame(rows, columns=["user_id", "item_id", "timestamp", "query"])
    return InteractionDataset(pd.concat([items, NEW]), interactions, history=tiny_data, split="none")


@pytest.fixture(scope="module")
def tuned(tiny_run, newer, tmp_path_factory):
    """A model folder, an adapter that `Trainer.save_model` wrote next to it, and the pipeline: read only."""
    folder = tmp_path_factory.mktemp("lora")
    shutil.copytree(tiny_run / "model", folder / "model")
    pipe = load(folder / "model")
    pipe.add_items(NEW)
    trainer = GenSARTrainer(pipe, arguments(folder / "adapter", save_strategy="no"), newer)
    trainer.train()
    trainer.save_model()
    return folder, pipe


def test_only_lora_code_tokens_and_new_items_are_trained(tuned):
    folder, pipe = tuned
    before, merged = (dict(load(folder / name).model.named_parameters()) for name in ("model", "adapter"))
    table = pipe.tokenizer.identifiers
    assert (table.num_trained, table.num_marked, table.item_ids[30:]) == (30, 1, ["N1", "N2"])
    codes = set(pipe.tokenizer.code_token_ids.tolist())
    for name, values in before.items():
        after = merged[name].detach()
        if name == "shared.weight":
            changed = set(torch.nonzero((after != values).any(dim=1)).flatten().tolist())
            assert len(changed) > 0
            assert changed <= codes
        elif name.endswith(("Attention.q.weight", "Attention.v.weight")):
            assert not torch.equal(after, values), name
        else:
            kept = after[: len(values)] if after.ndim else after
            torch.testing.assert_close(kept, values.detach(), rtol=0, atol=0, msg=name)
    start = before["encoder.items.table.weight"][table.neighbors[0, 1:]].mean(dim=0)
    vectors = merged["encoder.items.table.weight"]
    assert len(vectors) == 31
    assert not torch.allclose(vectors[30], start, atol=1e-3)


def test_the_adapter_and_the_merged_model_answer_as_the_pipeline(tuned, tmp_path):
    folder, pipe = tuned
    names = {path.name for path in (folder / "adapter").iterdir()}
    assert {"adapter_config.json", "adapter_model.safetensors", "adapter_base.json", "identifiers.parquet"} <= names
    assert "model.safetensors" not in names
    tiny_runs.assert_same_answers(load(folder / "adapter"), pipe)
    pipe.save_pretrained(tmp_path / "merged")
    assert not list((tmp_path / "merged").glob("adapter*"))
    tiny_runs.assert_same_answers(load(tmp_path / "merged"), pipe)
    found = load(tmp_path / "merged").rank(tiny_runs.HISTORY, ["N1", "N2", "B01"])
    assert {answer["item_id"] for answer in found} == {"N1", "N2", "B01"}


@pytest.mark.slow
def test_adapter_and_model_are_moved_together_or_the_model_is_named(tuned, tmp_path):
    folder, pipe = tuned
    shutil.copytree(folder, tmp_path / "both")
    tiny_runs.assert_same_answers(load(tmp_path / "both/adapter"), pipe)
    (tmp_path / "both/model").rename(tmp_path / "elsewhere")
    with pytest.raises(InputError, match=r"holds an adapter for the model in .*model, which cannot be loaded"):
        load(tmp_path / "both/adapter")
    tiny_runs.assert_same_answers(load(tmp_path / "both/adapter", base_model=tmp_path / "elsewhere"), pipe)


@pytest.mark.slow
def test_a_second_training_starts_from_what_the_first_has_made(tuned, newer, tmp_path):
    folder, _ = tuned
    pipe = load(folder / "adapter")
    expected = tiny_runs.answers(pipe)
    GenSARTrainer(pipe, arguments(tmp_path / "a", learning_rate=0.0, save_strategy="no"), newer).train()
    assert pipe.recommend([], top_k=5)[0]["item_id"]
    # An adapter for an adapter: the chain is loaded.
    trainer = GenSARTrainer(load(folder / "adapter"), arguments(tmp_path / "b", save_strategy="no"), newer)
    trainer.train()
    trainer.save_model(str(tmp_path / "second"))
    tiny_runs.assert_same_answers(load(tmp_path / "second"), trainer.pipe)
    assert tiny_runs.answers(trainer.pipe) != expected


@pytest.mark.slow
def test_an_adapter_of_a_model_that_is_in_no_folder_is_refused(tiny_pipe, tiny_data, tmp_path):
    GenSARTrainer(tiny_pipe, tiny_runs.arguments(tmp_path / "full", save_strategy="no"), tiny_data).train()
    trainer = GenSARTrainer(tiny_pipe, arguments(tmp_path / "lora"), tiny_data)
    trainer.train()
    with pytest.raises(InputError, match="An adapter needs the folder of the model that it is for"):
        trainer.save_model(str(tmp_path / "adapter"))
    tiny_pipe.save_pretrained(tmp_path / "merged")
    tiny_runs.assert_same_answers(load(tmp_path / "merged"), tiny_pipe)
    # A full training after it trains all weights of the merged model.
    trainer = GenSARTrainer(tiny_pipe, tiny_runs.arguments(tmp_path / "again", save_strategy="no"), tiny_data)
    assert all(parameter.requires_grad for parameter in trainer.model.parameters())
    trainer.train()
    trainer.save_model(str(tmp_path / "saved"))
    tiny_runs.assert_same_answers(load(tmp_path / "saved"), tiny_pipe)


class Killed(TrainerCallback):
    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step == 3:
            raise KeyboardInterrupt


@pytest.mark.slow
def test_a_killed_training_continues_from_its_checkpoint(tiny_run, tiny_data, tmp_path):
    pipes = {}
    for name, callbacks in (("straight", []), ("killed", [Killed()])):
        pipes[name] = load(tiny_run / "model")
        trainer = GenSARTrainer(pipes[name], arguments(tmp_path / name), tiny_data, callbacks=callbacks)
        if callbacks:
            with pytest.raises(KeyboardInterrupt):
                trainer.train()
            pipes[name] = load(tiny_run / "model")
            trainer = GenSARTrainer(pipes[name], arguments(tmp_path / name), tiny_data)
            trainer.train(resume_from_checkpoint=str(tmp_path / name / "checkpoint-2"))
        else:
            trainer.train()
    tiny_runs.assert_same_answers(pipes["killed"], pipes["straight"])


@pytest.mark.slow
def test_the_best_adapter_is_loaded_at_the_end(tiny_pipe, tiny_data, tmp_path):
    args = arguments(tmp_path, eval_strategy="steps", eval_steps=2, load_best_model_at_end=True, save_total_limit=2)
    trainer = GenSARTrainer(tiny_pipe, args, tiny_data)
    trainer.train()
    assert trainer.evaluate()["eval_ndcg@10"] == pytest.approx(trainer.state.best_metric)
    trainer.save_model(str(tmp_path / "saved"))
    tiny_runs.assert_same_answers(load(tmp_path / "saved"), tiny_pipe)
