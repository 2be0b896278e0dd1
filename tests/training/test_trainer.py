"""`GenSARTrainer`: a `transformers.Trainer` whose models load again with the same answers."""

import json
import shutil
from typing import ClassVar

import numpy as np
import pandas as pd
import pytest
import tiny_runs
import torch
from safetensors.torch import load_file
from transformers import EarlyStoppingCallback, TrainerCallback, trainer
from transformers.trainer_utils import BestRun, HPSearchBackend

from gensar_hf import GenSARPipeline, GenSARTrainer, InputError, InteractionDataset
from gensar_hf.generator.initialization import share_item_features
from gensar_hf.item_embeddings import load_item_embeddings


def weights_of(model):
    return {name: parameter.detach().clone() for name, parameter in model.named_parameters()}


def load(folder):
    return GenSARPipeline.from_pretrained(folder, device="cpu")


# ---- the three traps


@pytest.mark.parametrize(
    "shared", [False, pytest.param(True, marks=pytest.mark.slow)], ids=["plain", "shared features"]
)
def test_what_is_saved_answers_as_what_was_trained(tiny_pipe, tiny_data, tiny_run, tmp_path, shared):
    if shared:
        item_ids = tiny_pipe.tokenizer.identifiers.item_ids
        embeddings = load_item_embeddings(tiny_run / "semantic/item_embeddings.safetensors", item_ids)
        share_item_features(tiny_pipe.model, [embeddings])
    trainer = GenSARTrainer(tiny_pipe, tiny_runs.arguments(tmp_path / "run"), tiny_data)
    trainer.train()
    trainer.save_model(str(tmp_path / "by trainer"))
    tiny_pipe.save_pretrained(tmp_path / "by pipeline")
    for name in ("by trainer", "by pipeline", "run/checkpoint-4"):
        tiny_runs.assert_same_answers(load(tmp_path / name), tiny_pipe)
    assert not list(tmp_path.rglob("training_args.bin"))
    assert (tmp_path / "by trainer" / "training_args.json").is_file()
    assert load(tmp_path / "by trainer").add_items(NEW)  # the item encoder has come along


def test_what_no_training_has_taught_is_said_once(tiny_pipe, tiny_data, tiny_run, tmp_path, caplog):
    tiny_pipe.suggest_queries(tiny_runs.HISTORY)
    tiny_pipe.search("red")
    assert "no example" not in caplog.text
    settings = json.loads((tiny_run / "model/tokenizer_config.json").read_text())
    assert "next_query" in settings["training_tasks"]
    shutil.copytree(tiny_run / "model", tmp_path / "model")
    (tmp_path / "model/tokenizer_config.json").write_text(json.dumps({**settings, "training_tasks": []}))
    pipe = load(tmp_path / "model")
    weights = {"next_recommended_item": 1.0}
    args = {"task_weights": weights, "max_steps": 1, "save_strategy": "no"}
    GenSARTrainer(pipe, tiny_runs.arguments(tmp_path / "run", **args), tiny_data).train()
    pipe.save_pretrained(tmp_path / "saved")
    pipe = load(tmp_path / "saved")
    for _ in range(2):
        pipe.suggest_queries(tiny_runs.HISTORY)
        pipe.search("red")
    said = [record.getMessage() for record in caplog.records if "no example of" in record.getMessage()]
    assert [message.split("`")[1] for message in said] == ["suggest_queries", "search"]
    assert max(map(len, said)) < 300


def test_items_are_matched_by_id(tiny_run, tmp_path):
    items, interactions = tiny_runs.make_tables()
    weights = []
    for table in (items, items[::-1]):
        pipe = load(tiny_run / "model")
        args = tiny_runs.arguments(tmp_path / "run", save_strategy="no")
        GenSARTrainer(pipe, args, InteractionDataset(table, interactions)).train()
        weights.append(weights_of(pipe.model))
    for name, values in weights[0].items():
        torch.testing.assert_close(weights[1][name], values, rtol=0, atol=0, msg=name)


def test_unknown_items_are_one_sentence_and_change_nothing(tiny_pipe, tmp_path):
    items, interactions = tiny_runs.make_tables()
    items.loc[3, "item_id"] = "NEW"
    data = InteractionDataset(items, interactions.replace("B03", "NEW"))
    before = weights_of(tiny_pipe.model)
    with pytest.raises(InputError, match=r"1 of the 30 items are not in the .*first 'NEW'; add them with `pipe.add_i"):
        GenSARTrainer(tiny_pipe, tiny_runs.arguments(tmp_path), data)
    with pytest.raises(InputError, match="NEW"):
        GenSARTrainer(tiny_pipe, tiny_runs.arguments(tmp_path, eval_strategy="steps"), None, data)
    assert all(torch.equal(before[name], values) for name, values in tiny_pipe.model.named_parameters())


def test_a_pipeline_answers_in_eval_mode(tiny_pipe):
    tiny_pipe.model.eval()
    expected = tiny_runs.answers(tiny_pipe)
    for _ in range(2):
        tiny_pipe.model.train()
        assert tiny_runs.answers(tiny_pipe) == expected
    for ask in (lambda: tiny_pipe.suggest_queries(tiny_runs.HISTORY, top_k=2), lambda: tiny_pipe.rank([], ["B01"])):
        tiny_pipe.model.eval()
        before = ask()
        tiny_pipe.model.train()
        assert ask() == before


# ---- a Trainer


class Recorder(TrainerCallback):
    def __init__(self):
        self.events, self.metrics, self.logs = [], [], []

    def on_train_begin(self, args, state, control, **kwargs):
        self.events.append("begin")

    def on_step_end(self, args, state, control, **kwargs):
        self.events.append(state.global_step)

    def on_log(self, args, state, control, logs=None, **kwargs):
        self.logs.append(logs)

    def on_evaluate(self, args, state, control, metrics=None, **kwargs):
        self.metrics.append(metrics)


def test_callbacks_evaluations_and_the_best_model(tiny_pipe, tiny_data, tmp_path, capfd):
    recorder = Recorder()
    args = tiny_runs.arguments(
        tmp_path, eval_strategy="steps", eval_steps=2, save_steps=2, load_best_model_at_end=True, logging_steps=1,
        report_to="none", save_total_limit=2,
    )  # fmt: skip
    trainer = GenSARTrainer(tiny_pipe, args, tiny_data, callbacks=[recorder, EarlyStoppingCallback(5)])
    output = trainer.train()
    assert recorder.events == ["begin", 1, 2, 3, 4]
    assert output.global_step == 4
    assert recorder.logs[0]["loss"] > 0
    assert len(recorder.metrics) == 2
    measures = [f"{measure}@{k}" for measure in ("hr", "ndcg") for k in (5, 10)]
    names = {f"eval_{task}{measure}" for task in ("recommendation_", "search_", "") for measure in measures}
    assert names <= set(recorder.metrics[0])
    metrics = recorder.metrics[0]
    mean = np.mean([metrics["eval_recommendation_ndcg@10"], metrics["eval_search_ndcg@10"]])
    assert metrics["eval_ndcg@10"] == pytest.approx(mean)
    best = max(recorder.metrics, key=lambda metrics: metrics["eval_ndcg@10"])
    assert trainer.state.best_metric == best["eval_ndcg@10"]
    saved = load_file(f"{trainer.state.best_model_checkpoint}/model.safetensors")
    torch.testing.assert_close(tiny_pipe.model.state_dict()["shared.weight"], saved["shared.weight"])
    assert trainer.evaluate()["eval_ndcg@10"] == pytest.approx(best["eval_ndcg@10"])
    assert capfd.readouterr().out == ""


@pytest.mark.slow
def test_early_stopping(tiny_pipe, tiny_data, tmp_path):
    args = tiny_runs.arguments(
        tmp_path, eval_strategy="steps", eval_steps=1, save_steps=1, load_best_model_at_end=True, learning_rate=0.0,
    )  # fmt: skip
    trainer = GenSARTrainer(tiny_pipe, args, tiny_data, callbacks=[EarlyStoppingCallback(1)])
    assert trainer.train().global_step == 2  # nothing changes, so the second evaluation is no better


def test_several_evaluation_datasets(tiny_pipe, tiny_data, tmp_path):
    late = tiny_runs.make_dataset(split="chronological")
    args = tiny_runs.arguments(tmp_path, eval_strategy="steps", eval_steps=2, max_steps=2)
    recorder = Recorder()
    datasets = {"last": tiny_data, "late": late}
    trainer = GenSARTrainer(tiny_pipe, args, tiny_data, datasets, callbacks=[recorder])
    trainer.train()
    metrics = trainer.evaluate()
    assert {"eval_last_ndcg@10", "eval_late_recommendation_hr@5", "eval_ndcg@10"} <= set(metrics)
    mean = (metrics["eval_last_ndcg@10"] + metrics["eval_late_ndcg@10"]) / 2
    assert metrics["eval_ndcg@10"] == pytest.approx(mean)
    assert "test_ndcg@10" in trainer.evaluate("late", metric_key_prefix="test")


def test_evaluation_alone_needs_no_training_data(tiny_pipe, tiny_data, tmp_path):
    trainer = GenSARTrainer(tiny_pipe, tiny_runs.arguments(tmp_path), eval_dataset=tiny_data)
    assert 0 <= trainer.evaluate()["eval_hr@10"] <= 1
    with pytest.raises(InputError, match="no `train_dataset`"):
        trainer.train()
    with pytest.raises(InputError, match="nothing to evaluate on"):
        GenSARTrainer(tiny_pipe, tiny_runs.arguments(tmp_path)).evaluate()


def test_an_unknown_metric_is_refused_at_once(tiny_pipe, tiny_data, tmp_path):
    args = tiny_runs.arguments(tmp_path, eval_strategy="steps", metric_for_best_model="old_hr@5")
    with pytest.raises(InputError, match="'old_hr@5', which no evaluation has"):
        GenSARTrainer(tiny_pipe, args, tiny_data)
    GenSARTrainer(tiny_pipe, args, tiny_data, {"old": tiny_data})


def test_data_without_requests_or_without_targets_are_refused_at_once(tiny_pipe, tmp_path):
    args = tiny_runs.arguments(tmp_path, eval_strategy="steps")
    with pytest.raises(InputError, match="no validation requests to evaluate on"):
        GenSARTrainer(tiny_pipe, args, tiny_runs.make_dataset(split="none"))
    weights = {"next_recommended_item": 1.0}
    with pytest.raises(InputError, match="None of the tasks next_recommended_item has an example"):
        GenSARTrainer(
            tiny_pipe, tiny_runs.arguments(tmp_path, task_weights=weights), tiny_runs.make_dataset(split="held_out")
        )


@pytest.mark.slow
def test_accumulated_batches_give_the_same_step(tiny_run, tiny_data, tmp_path):
    results = []
    for batch_size, accumulated in ((4, 1), (1, 4)):
        pipe = load(tiny_run / "model")
        args = tiny_runs.arguments(
            tmp_path, per_device_train_batch_size=batch_size, gradient_accumulation_steps=accumulated, optim="sgd",
            learning_rate=0.3, warmup_steps=0, max_steps=2, save_strategy="no",
        )  # fmt: skip
        for module in pipe.model.modules():
            if isinstance(module, torch.nn.Dropout):
                module.p = 0.0
        output = GenSARTrainer(pipe, args, tiny_data).train()
        results.append((output.training_loss, weights_of(pipe.model)))
    assert results[0][0] == pytest.approx(results[1][0], rel=1e-4)
    for name, values in results[0][1].items():
        torch.testing.assert_close(results[1][1][name], values, rtol=1e-4, atol=1e-5, msg=name)


def test_the_number_of_steps_follows_the_epochs_and_is_at_least_300(tiny_pipe, tiny_data, tmp_path):
    trainer = GenSARTrainer(tiny_pipe, tiny_runs.arguments(tmp_path, max_steps=-1), tiny_data)
    assert trainer.args.max_steps == 300
    args = tiny_runs.arguments(tmp_path, max_steps=-1, num_train_epochs=1000)
    targets = 1000 * trainer._examples.is_target.sum()
    assert GenSARTrainer(tiny_pipe, args, tiny_data).args.max_steps == round(targets / (120 / 5 * 4))


def test_the_arguments_of_the_caller_stay(tiny_pipe, tiny_data, tmp_path):
    args = tiny_runs.arguments(tmp_path, max_steps=-1, per_device_train_batch_size=16)
    before = args.to_dict()
    GenSARTrainer(tiny_pipe, args, tiny_data)
    assert args.to_dict() == before


class Trial(dict):
    """As much of an optuna trial as `Trainer` reads."""

    number = 0

    @property
    def params(self):
        return dict(self)


class FakeBackend:
    """Runs trials one after another, as optuna does; keeps each one's loss and rows a step."""

    trials: ClassVar[list] = []

    def ensure_available(self):
        pass

    def run(self, search, n_trials, direction, **kwargs):
        for _ in range(n_trials):
            trial = Trial(learning_rate=1e-3, per_device_train_batch_size=4)
            loss = search.train(trial=trial).training_loss
            rows = search.args.per_device_train_batch_size * search.args.gradient_accumulation_steps
            self.trials.append((loss, rows))
            search.objective = search.compute_objective(search.evaluate())
        return BestRun("0", search.objective, {**trial, "direction": direction})


def test_hyperparameter_search(tiny_pipe, tiny_data, tmp_path, monkeypatch):
    monkeypatch.setitem(trainer.ALL_HYPERPARAMETER_SEARCH_BACKENDS, HPSearchBackend.OPTUNA, FakeBackend)
    monkeypatch.setattr("transformers.integrations.integration_utils.is_wandb_available", lambda: True)
    start = weights_of(tiny_pipe.model)
    args = tiny_runs.arguments(tmp_path, max_steps=2, save_strategy="no", per_device_train_batch_size=16)
    search = GenSARTrainer(tiny_pipe, args, tiny_data)
    best = search.hyperparameter_search(n_trials=2, backend="optuna", hp_space=lambda trial: trial)
    assert best.hyperparameters["direction"] == "maximize"
    first, second = FakeBackend.trials
    assert first == second  # each starts from the same model
    assert first[1] == 4  # and has the trial's batch size
    for name, values in tiny_pipe.model.named_parameters():
        assert torch.equal(values, start[name]), name
    search.train()
    assert not torch.equal(tiny_pipe.model.shared.weight, start["shared.weight"])


# ---- newer interactions, new items

NEW = pd.DataFrame({"item_id": ["N1", "N2"], "title": ["red soap oil", "blue cream mask"]})


@pytest.fixture
def newer(tiny_data):
    """Interactions after those of `tiny_data`, some of them on the first new item."""
    items, _ = tiny_runs.make_tables()
    rows = [(f"user {user}", item, 200.0 + step, "") for user in range(12) for step, item in enumerate(("B01", "N1"))]
    interactions = pd.DataFrame(rows, columns=["user_id", "item_id", "timestamp", "query"])
    items = pd.concat([items, NEW], ignore_index=True)
    return InteractionDataset(items, interactions, history=tiny_data, split="none")


def test_only_newer_clicks_are_targets_and_new_items_are_trained(tiny_pipe, newer, tmp_path):
    tiny_pipe.add_items(NEW)
    before = tiny_pipe.model.encoder.items.table.weight.detach().clone()
    trainer = GenSARTrainer(tiny_pipe, tiny_runs.arguments(tmp_path / "run"), newer)
    examples = trainer._examples
    targets = {examples.events.item_ids[item] for item in examples.events.items[examples.is_target]}
    assert targets == {"B01", "N1"}
    assert (examples.events.timestamps[examples.is_target] >= 200).all()
    table = tiny_pipe.tokenizer.identifiers
    assert (table.num_trained, table.num_marked, table.item_ids[30:]) == (30, 1, ["N1", "N2"])
    trainer.train()
    vectors = tiny_pipe.model.encoder.items.table.weight
    assert vectors.shape == (31, 16)
    start = before[table.neighbors[0, 1:]].mean(dim=0)
    assert not torch.allclose(vectors[30], start, atol=1e-3)
    trainer.save_model(str(tmp_path / "saved"))
    tiny_runs.assert_same_answers(load(tmp_path / "saved"), tiny_pipe)
    assert {"N1", "N2"} <= {answer["item_id"] for answer in load(tmp_path / "saved").recommend([], top_k=32)}


def test_a_hub_that_cannot_be_reached_is_one_sentence(tiny_pipe, tiny_data, tmp_path, monkeypatch):
    def refuse(*_, **__):
        raise ConnectionError("no route to host. " * 90)

    monkeypatch.setattr("huggingface_hub.HfApi.create_repo", refuse)
    arguments = tiny_runs.arguments(tmp_path / "run", hub_model_id="me/films", push_to_hub=True)
    with pytest.raises(InputError, match=r"^Nothing was pushed to 'me/films' \(no route to host") as raised:
        GenSARTrainer(tiny_pipe, arguments, tiny_data)
    assert len(str(raised.value)) < 500


def test_pushing_uploads_what_the_pipeline_is(tiny_pipe, tiny_data, tmp_path, monkeypatch):
    sent = {}

    def push(folder, repo_id, **options):
        shutil.copytree(folder, tmp_path / "sent")
        sent.update(options, repo_id=repo_id)
        return "https://hub/commit"

    monkeypatch.setattr("gensar_hf.pipeline.push_folder", push)
    trainer = GenSARTrainer(tiny_pipe, tiny_runs.arguments(tmp_path / "run", hub_model_id="me/films"), tiny_data)
    assert trainer.push_to_hub(private=True) == "https://hub/commit"
    assert (sent["repo_id"], sent["private"]) == ("me/films", True)
    tiny_runs.assert_same_answers(load(tmp_path / "sent"), tiny_pipe)
    assert tiny_pipe.name_or_path is not None
    assert (tmp_path / "sent" / "item_encoder" / "item_encoder.json").is_file()
    with pytest.raises(InputError, match="Name the repository"):
        GenSARTrainer(tiny_pipe, tiny_runs.arguments(tmp_path / "run"), tiny_data).push_to_hub()
