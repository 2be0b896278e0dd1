"""`train`: from two tables to a pipeline, in stages that are skipped, continued and never mistaken for finished."""

import json
import logging
import shutil

import numpy as np
import pandas as pd
import pytest
import tiny_runs
import torch
from safetensors.torch import load_file
from transformers import TrainerCallback

from gensar_hf import GenSARPipeline, GenSARTrainer, InputError, InteractionDataset, train
from gensar_hf.cli import dataset_and_arguments, main
from gensar_hf.files import fingerprint
from gensar_hf.model_card import write_model_card
from gensar_hf.training import stages
from gensar_hf.training.stages import STAGES, run_stage


def stages_run(data, folder, **changes):
    """The stages that a call of `train` did not skip."""
    reports = []
    options = {name: changes.pop(name) for name in ("callbacks", "reuse") if name in changes}
    train(data, tiny_runs.arguments(folder, **changes), on_stage=reports.append, **options)
    assert [report.stage for report in reports] == [*STAGES]
    return [report.stage for report in reports if not report.skipped]


@pytest.fixture
def run(tiny_run, tmp_path):
    """A copy of the finished run."""
    return shutil.copytree(tiny_run, tmp_path / "run")


# ---- the result


def test_the_pipeline_recommends_searches_suggests_and_ranks(tiny_pipe):
    recommended = tiny_pipe.recommend(tiny_runs.HISTORY, top_k=5)
    found = tiny_pipe.search("red", top_k=5)
    assert len({answer["item_id"] for answer in recommended}) == len({answer["item_id"] for answer in found}) == 5
    assert all(answer["title"] for answer in recommended + found)
    assert 0 < len(tiny_pipe.suggest_queries(tiny_runs.HISTORY, top_k=2)) <= 2
    ranked = tiny_pipe.rank(tiny_runs.HISTORY, ["B01", "B02"], query="red")
    assert {answer["item_id"] for answer in ranked} == {"B01", "B02"}


def test_the_card_of_a_stage_is_written_and_the_stage_stays_finished(tiny_data, run):
    for stage in ("collaborative", "rqvae", "model"):
        assert "gensar-hf" in write_model_card(run / stage).read_text()
    assert stages_run(tiny_data, run) == []
    write_model_card(run / "model", command="gensar train")  # a card that nobody has edited is replaced
    assert "gensar train" in (run / "model" / "README.md").read_text()


def test_a_run_holds_its_stages_and_no_pickle(tiny_run):
    assert {path.name for path in tiny_run.iterdir()} == set(STAGES)
    assert not [path for path in tiny_run.rglob("*") if path.suffix in (".pt", ".pth", ".bin", ".pkl")]
    record = json.loads((tiny_run / "model" / "stage.json").read_text())
    assert record["details"]["steps"] == 4
    assert record["memory"] > 2**20


def test_the_model_folder_answers_elsewhere(tiny_run, tiny_pipe, tmp_path):
    shutil.copytree(tiny_run / "model", tmp_path / "moved")
    tiny_runs.assert_same_answers(GenSARPipeline.from_pretrained(tmp_path / "moved", device="cpu"), tiny_pipe)


# ---- calling it again


def test_a_finished_run_is_skipped(tiny_data, run):
    written = {path: path.stat().st_mtime_ns for path in run.rglob("*") if path.is_file()}
    assert stages_run(tiny_data, run) == []
    assert stages_run(tiny_data, run, save_steps=3, logging_steps=1, save_total_limit=2, dataloader_num_workers=1) == []
    assert {path: path.stat().st_mtime_ns for path in run.rglob("*") if path.is_file()} == written


@pytest.mark.slow
@pytest.mark.parametrize(
    ("changes", "again"),
    [({"learning_rate": 1e-3}, ["model"]), ({"rqvae_epochs": 2}, ["rqvae", "model"])],
)
def test_a_changed_setting_repeats_its_stage_and_later_ones(tiny_data, run, changes, again):
    assert stages_run(tiny_data, run, **changes) == again
    assert stages_run(tiny_data, run, **changes) == []


@pytest.mark.slow
@pytest.mark.parametrize(
    ("changes", "again"),
    [
        ({"sasrec_config": {"hidden_size": 16}}, ["collaborative", "rqvae", "model"]),
        ({"codebook_size": 9}, ["rqvae", "model"]),
        ({"item_weight": None}, ["model"]),
        ({"seed": 1}, ["semantic", "collaborative", "rqvae", "model"]),
    ],
)
def test_further_settings_repeat_their_stage_and_later_ones(tiny_data, run, changes, again):
    assert stages_run(tiny_data, run, **changes) == again


@pytest.mark.slow
def test_other_data_repeat_everything(run):
    items, interactions = tiny_runs.make_tables()
    items.loc[0, "title"] = "another title"
    again = stages_run(InteractionDataset(items, interactions), run)
    assert again[0] == "data"
    assert "semantic" in again
    assert again[-1] == "model"


@pytest.mark.slow
def test_a_deleted_file_repeats_its_stage(tiny_data, run):
    (run / "model" / "generation_config.json").unlink()
    assert stages_run(tiny_data, run) == ["model"]


@pytest.mark.parametrize(
    "name",
    ["model/model.safetensors", "semantic/item_embeddings.safetensors", "rqvae/config.json", "data/items.parquet"],
)
def test_a_changed_file_of_a_finished_stage_is_one_sentence(tiny_data, run, name):
    path = run / name
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    for changes in ({}, {"learning_rate": 1e-3}):
        with pytest.raises(
            InputError, match=rf"{name} is damaged, or was edited .*; put the file back, or delete the fo"
        ):
            stages_run(tiny_data, run, **changes)
    assert path.read_bytes() == content


def test_a_card_may_be_edited_and_other_files_may_be_added(tiny_data, run):
    (run / "data" / "notes.txt").write_text("mine")
    (run / "model" / "README.md").write_text("my card")
    assert stages_run(tiny_data, run) == []
    with pytest.raises(InputError, match=r"model holds files that no earlier run of this package wrote \(README\.md\)"):
        stages_run(tiny_data, run, learning_rate=1e-3)


def test_items_that_were_added_in_place_stay(tiny_data, run, tmp_path):
    pd.DataFrame({"item_id": ["N1"], "title": ["red soap"]}).to_csv(tmp_path / "new.csv", index=False)
    assert main(["add-items", str(run), str(tmp_path / "new.csv")]) == 0
    assert stages_run(tiny_data, run) == []
    assert "N1" in GenSARPipeline.from_pretrained(run / "model", device="cpu").tokenizer.identifiers.rows()


def test_a_damaged_record_is_one_sentence(tiny_data, run):
    (run / "data" / "stage.json").write_text('{"stage": "da')
    with pytest.raises(InputError, match="data holds files that no earlier run of this package wrote"):
        stages_run(tiny_data, run)


def test_stages_of_earlier_versions_are_skipped(tiny_data, run):
    for stage in STAGES:
        path = run / stage / "stage.json"
        record = json.loads(path.read_text())
        record["details"]["files"] = list(record.pop("files"))
        path.write_text(json.dumps(record))
    assert stages_run(tiny_data, run) == []
    path = run / "rqvae" / "stage.json"
    path.write_text(
        json.dumps({name: value for name, value in json.loads(path.read_text()).items() if name != "details"})
    )
    with pytest.raises(InputError, match="rqvae holds files that no earlier run"):
        stages_run(tiny_data, run)


class Killed(TrainerCallback):
    """Raises after some steps, as a killed process ends."""

    def __init__(self, step):
        self.step = step

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step == self.step:
            raise KeyboardInterrupt


@pytest.mark.parametrize("step", [3])
def test_a_killed_training_ends_with_the_same_bytes(tiny_data, tiny_run, run, step, caplog):
    shutil.rmtree(run / "model")
    with pytest.raises(KeyboardInterrupt):
        stages_run(tiny_data, run, callbacks=[Killed(step)])
    assert not (run / "model").exists()
    assert list((run / "checkpoints").glob("model-*/checkpoint-2"))
    with caplog.at_level(logging.INFO, "gensar_hf"):
        assert stages_run(tiny_data, run) == ["model"]
    assert "checkpoint-2" in caplog.text
    for name in ("model.safetensors", "identifiers.parquet", "tokenizer.json"):
        assert (run / "model" / name).read_bytes() == (tiny_run / "model" / name).read_bytes()
    assert {path.name for path in run.iterdir()} == set(STAGES)


class KilledEncoder:
    """Embeds a text as its length; raises after some parts, as a killed process ends."""

    def __init__(self, num_parts):
        self.num_parts, self.read = num_parts, []

    def encode(self, texts):
        if len(self.read) == self.num_parts:
            raise KeyboardInterrupt
        self.read.append(list(texts))
        return np.array([[len(text), 1] for text in texts], dtype=np.float32)


def test_a_killed_text_stage_continues_with_the_parts_that_are_missing(tmp_path, monkeypatch):
    monkeypatch.setattr(stages, "_PART_TEXTS", 2)
    texts = ["bbb", "a", "bbb", "dddd", "cc", "eeeee"]
    with pytest.raises(KeyboardInterrupt):
        stages.encode_in_parts(KilledEncoder(1), texts, tmp_path)
    encoder = KilledEncoder(9)
    assert stages.encode_in_parts(encoder, texts, tmp_path)[:, 0].tolist() == [3, 1, 3, 4, 2, 5]
    assert encoder.read == [["bbb", "dddd"], ["eeeee"]]  # by length, each distinct text once


def test_a_killed_rqvae_ends_with_the_same_bytes(tiny_data, tiny_run, run, monkeypatch):
    shutil.rmtree(run / "rqvae")
    train_once = stages.train_joint_rqvae

    def killed(*args):
        args[3].save_steps = 1
        trained = train_once(*args)
        if not args[4]:
            raise KeyboardInterrupt
        return trained

    monkeypatch.setattr(stages, "train_joint_rqvae", killed)
    with pytest.raises(KeyboardInterrupt):
        stages_run(tiny_data, run)
    assert list((run / "checkpoints").glob("rqvae-*/checkpoint-1"))
    assert stages_run(tiny_data, run) == ["rqvae"]
    for name in ("model.safetensors", "identifiers.parquet"):
        assert (run / "rqvae" / name).read_bytes() == (tiny_run / "rqvae" / name).read_bytes()


def test_too_many_items_for_the_memory_are_one_sentence(tiny_data, tmp_path, monkeypatch):
    monkeypatch.setattr(stages, "machine_bytes", lambda: 1000)
    with pytest.raises(InputError, match="30 items, 16 wide, need"):
        stages_run(tiny_data, tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"optim": "lomo"}, "cannot be built with these settings: You need to install `lomo_optim`"),
        ({"lr_scheduler_kwargs": {"nonsense": 3}}, "unexpected keyword argument 'nonsense'; correct them."),
        (
            {"eval_strategy": "steps", "metric_for_best_model": "bleu"},
            "'bleu', which no evaluation has; name one of hr@5",
        ),
    ],
    ids=["package", "schedule", "metric"],
)
def test_settings_that_only_trainer_refuses_are_refused_before_the_first_stage(tiny_data, tmp_path, changes, words):
    with pytest.raises(InputError) as error:
        stages_run(tiny_data, tmp_path / "run", **changes)
    assert words in str(error.value)
    assert len(str(error.value)) < 500
    assert not (tmp_path / "run").exists()


def test_evaluations_without_requests_are_refused_before_the_first_stage(tmp_path):
    with pytest.raises(InputError, match="no validation requests to evaluate on"):
        stages_run(tiny_runs.make_dataset(split="none"), tmp_path / "run", eval_strategy="steps")
    assert not (tmp_path / "run").exists()


def test_what_a_kill_has_left_is_removed_or_completed_by_the_next_call(tiny_data, tiny_run, run):
    left = [".model.aside-0badcafe/half", "rqvae/.README.md.aside-0badcafe", ".gensar.lock"]
    finished = json.loads((run / "model" / "stage.json").read_text())["inputs_fingerprint"]
    left += [f"checkpoints/model-{fingerprint(finished, 1)[:12]}/{name}" for name in ("stage.json", "checkpoint-2/x")]
    for name in left:
        (run / name).parent.mkdir(parents=True, exist_ok=True)
        (run / name).write_text('{"stage": "model"}')
    (run / "data").rename(run / ".data.aside-old-0badcafe")
    assert stages_run(tiny_data, run) == []
    assert {path.relative_to(run) for path in run.rglob("*")} == {
        path.relative_to(tiny_run) for path in tiny_run.rglob("*")
    }


@pytest.mark.slow
def test_checkpoints_of_other_settings_are_not_continued(tiny_data, run):
    with pytest.raises(KeyboardInterrupt):
        stages_run(tiny_data, run, callbacks=[Killed(3)], learning_rate=1e-3)
    fresh = run.with_name("fresh")
    shutil.copytree(run, fresh, ignore=shutil.ignore_patterns("checkpoints"))
    for folder in (run, fresh):
        assert stages_run(tiny_data, folder, learning_rate=2e-3) == ["model"]
    assert (run / "model/model.safetensors").read_bytes() == (fresh / "model/model.safetensors").read_bytes()


def test_stages_of_other_runs_are_linked(tiny_data, tiny_run, tmp_path):
    folder = tmp_path / "new"
    assert stages_run(tiny_data, folder, reuse=tiny_run.parent) == []
    assert all((folder / stage).is_symlink() for stage in STAGES)
    before = (tiny_run / "model" / "model.safetensors").read_bytes()
    assert stages_run(tiny_data, folder, reuse=tiny_run.parent, learning_rate=1e-3) == ["model"]
    assert not (folder / "model").is_symlink()  # the link was replaced, not its target
    assert (tiny_run / "model" / "model.safetensors").read_bytes() == before


# ---- refusals


@pytest.mark.parametrize(
    "name", ["data/items.csv", "model/mine.txt", "model/stage.json", "model", "checkpoints", "rqvae/inner/notes"]
)
def test_foreign_files_are_refused_before_the_first_stage_and_stay(tiny_data, tmp_path, name):
    path = tmp_path / name
    path.parent.mkdir(exist_ok=True, parents=True)
    path.write_text('{"stage": "another program"}')
    with pytest.raises(
        InputError, match=r"holds files that no earlier run of this package wrote|is no folder|is a file"
    ):
        stages_run(tiny_data, tmp_path)
    assert [file for file in tmp_path.rglob("*") if file.is_file()] == [path]
    assert path.read_text() == '{"stage": "another program"}'


def test_files_beside_those_of_a_stage_are_not_deleted_with_it(tiny_data, run):
    (run / "model" / "mine").mkdir()
    (run / "model" / "mine" / "notes.txt").write_text("mine")
    (run / "checkpoints" / "model-final").mkdir(parents=True)
    (run / "checkpoints" / "model-final" / "weights").write_text("mine")
    with pytest.raises(InputError, match=r"model holds files .* \(mine/notes\.txt\)"):
        stages_run(tiny_data, run, max_steps=2)
    shutil.rmtree(run / "model" / "mine")
    assert stages_run(tiny_data, run, max_steps=2) == ["model"]
    assert (run / "checkpoints" / "model-final" / "weights").read_text() == "mine"


@pytest.mark.parametrize("stage", ["data", "rqvae", "model"])
def test_a_save_does_not_replace_a_stage(tiny_pipe, tiny_data, run, stage):
    before = {path: path.read_bytes() for path in (run / stage).rglob("*") if path.is_file()}
    adapter = GenSARTrainer(
        GenSARPipeline.from_pretrained(run / "model"), tiny_runs.arguments(run / "lora", lora_rank=2), tiny_data
    )
    saves = [lambda: adapter.save_model(str(run / stage)), lambda: tiny_data.save(run / stage)]
    if stage != "model":
        saves.append(lambda: tiny_pipe.save_pretrained(run / stage))
    for save in saves:
        with pytest.raises(InputError, match=r"holds the (stage '\w+' of a run|model that the adapter is for)"):
            save()
    assert {path: path.read_bytes() for path in before} == before


def test_an_input_inside_the_folder_of_a_stage_is_refused(tiny_data, run):
    with pytest.raises(InputError, match=r"lies in .*model, which the training would replace"):
        stages_run(tiny_data, run, model_name_or_path=str(run / "model"))
    options = {"items": str(run / "data/items.parquet"), "interactions": str(run / "data/interactions.parquet")}
    with pytest.raises(InputError, match=r"items\.parquet lies in .*data, which the training would replace"):
        dataset_and_arguments({**options, "output_dir": str(run)})


def test_an_output_dir_that_is_a_file_is_refused(tiny_data, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match=r"The folder .*file cannot be made \(it is a file\); name another folder"):
        train(tiny_data, tiny_runs.arguments(tmp_path / "file"))


def test_a_divergence_before_a_kill_is_refused_after_it(tiny_data, run):
    changes = {"learning_rate": 1e12, "weight_decay": 0.0, "warmup_steps": 0, "optim": "sgd", "max_grad_norm": 0.0}
    with pytest.raises(KeyboardInterrupt):
        stages_run(tiny_data, run, callbacks=[Killed(3)], **changes)
    for _ in range(2):
        with pytest.raises(InputError, match=r"Stage model diverged: its (loss is (nan|inf)|weights are not finite);"):
            stages_run(tiny_data, run, **changes)


def test_a_training_that_diverged_is_refused(tiny_data, run):
    before = (run / "model" / "model.safetensors").read_bytes()
    with pytest.raises(InputError, match=r"Stage model diverged: its loss is (nan|inf); lower the learning rate"):
        stages_run(tiny_data, run, learning_rate=1e12, weight_decay=0.0, warmup_steps=0, optim="sgd", max_grad_norm=0)
    assert (run / "model" / "model.safetensors").read_bytes() == before


def test_a_folder_of_checkpoints_that_a_kill_left_empty_is_removed(tiny_data, run):
    (run / "checkpoints").mkdir()
    stages_run(tiny_data, run)
    assert not (run / "checkpoints").exists()


def test_checkpoints_are_not_pushed(tiny_data, tmp_path):
    with pytest.raises(InputError, match="`push_to_hub` would upload the checkpoints of a stage; leave it out"):
        train(tiny_data, tiny_runs.arguments(tmp_path / "run", push_to_hub=True))
    assert not (tmp_path / "run").exists()


def test_a_missing_text_encoder_is_one_sentence(tiny_data, tmp_path):
    with pytest.raises(InputError) as error:
        train(tiny_data, tiny_runs.arguments(tmp_path / "run", text_encoder=str(tmp_path / "nothing")))
    assert "nothing" in str(error.value)
    assert len(str(error.value)) < 500


def test_users_without_two_training_clicks_are_one_sentence(tmp_path):
    items, interactions = tiny_runs.make_tables(num_users=3, num_clicks=1)
    with pytest.raises(InputError, match="none of the 3 users has two training clicks"):
        train(InteractionDataset(items, interactions), tiny_runs.arguments(tmp_path / "run"))


# ---- data of other kinds


def test_a_log_without_a_single_query_gives_a_search(tmp_path):
    items, interactions = tiny_runs.make_tables(query_share=0)
    dataset = InteractionDataset(items, interactions.drop(columns="query"))
    pipe = train(dataset, tiny_runs.arguments(tmp_path / "run"))
    assert len(pipe.recommend(tiny_runs.HISTORY[:1], top_k=5)) == 5
    title = items["title"][7]
    for history in ([], tiny_runs.HISTORY[:1]):
        assert pipe.search(title, history, top_k=1)[0]["title"] == title


@pytest.mark.slow
@pytest.mark.parametrize(
    "changes",
    [
        {"history_encoding": "tokens", "item_vectors": False},
        {"item_vectors": False},
        {"behavior_tokens": False},
        {"item_weight": None},
        {"lora_rank": 2},
    ],
)
def test_other_models_are_trained_saved_and_loaded(tiny_data, tiny_run, tmp_path, changes):
    pipe = train(tiny_data, tiny_runs.arguments(tmp_path / "run", **changes), reuse=tiny_run.parent)
    pipe.save_pretrained(tmp_path / "copy")
    tiny_runs.assert_same_answers(GenSARPipeline.from_pretrained(tmp_path / "copy", device="cpu"), pipe)


@pytest.mark.slow
def test_users_who_clicked_every_item_do_not_stop_a_training(tmp_path, caplog):
    items, interactions = tiny_runs.make_tables(num_items=4, num_users=6)
    args = tiny_runs.arguments(
        tmp_path / "run", item_weight=None, codebook_size=4, num_negatives=3, eval_strategy="steps", eval_steps=2
    )
    pipe = train(InteractionDataset(items, interactions), args)
    assert len(pipe.recommend([], top_k=4)) == 4
    assert "recommendation requests are left out: their users, first" in caplog.text


@pytest.mark.slow
def test_a_batch_without_a_click_is_trained_on(tiny_data, tiny_run, tmp_path):
    changes = {"per_device_train_batch_size": 1, "task_weights": {"identifier_to_description": 1.0}}
    pipe = train(tiny_data, tiny_runs.arguments(tmp_path / "run", **changes), reuse=tiny_run.parent)
    assert len(pipe.recommend([], top_k=4)) == 4


@pytest.mark.slow
def test_a_catalogue_in_any_script_is_trained_on(tmp_path):
    items, interactions = tiny_runs.make_tables()
    rng = np.random.default_rng(0)
    items["title"] = ["".join(map(chr, rng.integers(0x4E00, 0x9FA5, 12))) + "🧼" for _ in range(len(items))]
    pipe = train(InteractionDataset(items, interactions), tiny_runs.arguments(tmp_path / "run"))
    assert len(pipe.search(items["title"][3], top_k=4)) == 4


@pytest.mark.slow
def test_nothing_held_out_is_read_by_any_stage(tiny_data, tmp_path):
    """Two logs that differ only in their held-out events give the same bytes."""
    items, interactions = tiny_runs.make_tables()
    items = pd.concat([items, pd.DataFrame({"item_id": ["MARK"], "title": ["red soap balm"]})], ignore_index=True)
    data = InteractionDataset(items, interactions)
    events, split = data.events, data.split
    first_held_out = {user: events.timestamps[end] for user, end in zip(events.user_ids, split.train_ends, strict=True)}
    is_held_out = interactions["timestamp"] >= interactions["user_id"].map(first_held_out)
    marked = interactions.copy()
    marked.loc[is_held_out, "item_id"] = "MARK"
    marked.loc[is_held_out & (interactions["query"] != ""), "query"] = "zzmarker"
    assert 0 < is_held_out.sum() < len(marked)
    folders = {"plain": interactions, "marked": marked}
    for name, rows in folders.items():
        train(InteractionDataset(items, rows), tiny_runs.arguments(tmp_path / name))
    compared = 0
    for stage in ("collaborative", "rqvae", "model"):
        for path in sorted((tmp_path / "plain" / stage).rglob("*")):
            if path.suffix in (".safetensors", ".parquet") or path.name == "tokenizer.json":
                other = tmp_path / "marked" / path.relative_to(tmp_path / "plain")
                assert path.read_bytes() == other.read_bytes(), path
                compared += 1
    assert compared >= 8


# ---- a stage by itself


def test_a_failing_stage_leaves_what_was_finished(tmp_path):
    def fails(folder, checkpoints):
        (folder / "answer.txt").write_text("half")
        raise InputError("It cannot be done.")

    run_stage(tmp_path, "data", [0], lambda folder, _: {"size": (folder / "answer.txt").write_text("42")})
    before = {path: path.read_bytes() for path in (tmp_path / "data").iterdir()}
    with pytest.raises(InputError):
        run_stage(tmp_path, "data", [1], fails)
    with pytest.raises(InputError):
        run_stage(tmp_path, "model", [1], fails)
    assert {path: path.read_bytes() for path in (tmp_path / "data").iterdir()} == before
    assert [path.name for path in tmp_path.iterdir()] == ["data"]


# ---- decoder-only models


@pytest.fixture(scope="session")
def llama(tmp_path_factory):
    """A checkpoint with its own text tokenizer, without a padding token."""
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers
    from transformers import LlamaConfig, LlamaForCausalLM, TokenizersBackend

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
@pytest.mark.parametrize("rank", [None, 0])
def test_a_causal_language_model_is_trained_and_merged(tiny_data, tiny_run, llama, tmp_path, rank):
    args = tiny_runs.arguments(
        tmp_path / "run", model_name_or_path=str(llama), lora_rank=rank, max_history_events=4, generator_config=None
    )
    pipe = train(tiny_data, args, reuse=tiny_run.parent)
    folder = tmp_path / "run" / "model"
    assert not list(folder.glob("adapter*"))
    details = json.loads((folder / "stage.json").read_text())["details"]
    old = load_file(llama / "model.safetensors")["model.embed_tokens.weight"]
    new = pipe.model.get_input_embeddings().weight.detach()[: len(old)]
    if rank is None:  # LoRA by default: the words stay
        assert details["trained parameters"] < details["parameters"] / 2
        torch.testing.assert_close(new, old, rtol=0, atol=0)
    else:
        assert details["trained parameters"] == details["parameters"]
        assert not torch.equal(new, old)
    assert len(pipe.recommend(tiny_runs.HISTORY, top_k=30)) == len(pipe.search("red", top_k=30)) == 30
