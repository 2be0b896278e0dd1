"""The settings of a run: names, defaults, presets, and one sentence for each mistake."""

import inspect

import pytest
from transformers.integrations.deepspeed import is_deepspeed_zero3_enabled

from gensar_hf import GenSARTrainingArguments, InputError, InteractionDataset
from gensar_hf.training.arguments import PRESETS


def test_a_run_has_at_most_45_settings_of_our_own():
    dataset = [name for name in inspect.signature(InteractionDataset).parameters if name not in ("items", "history")]
    assert len(GenSARTrainingArguments.own_settings()) + len(dataset) <= 45


def test_defaults_are_those_of_the_published_model():
    args = GenSARTrainingArguments("films")
    assert (args.text_encoder, args.sinkhorn_epsilon) == ("sentence-transformers/all-MiniLM-L6-v2", 0.0)
    assert [args.rqvae_passes(num_items) for num_items in (1682, 12101, 200_000, 1_000_000)] == [30, 30, 30, 6]
    assert (args.history_encoding, args.max_history_events, args.text_vocab_size) == ("events", 100, 1000)
    assert (args.learning_rate, args.per_device_train_batch_size, args.seed) == (2.5e-3, 16, 42)
    assert args.rqvae(384, 64, num_items=1682).codebook_size == 64
    assert args.rqvae(384, 64, num_items=12101).codebook_size == 256
    assert args.sasrec(1682).hidden_size == 64
    assert args.item_vectors


def test_the_paper_preset_is_gensar_as_published():
    args = GenSARTrainingArguments("films", preset="paper")
    assert args.rqvae(768, 64, num_items=100).codebook_size == 256
    assert args.rqvae_passes(1_000_000) == 500
    assert (args.history_encoding, args.item_vectors, args.sinkhorn_epsilon) == ("tokens", False, 0.003)
    for name, value in PRESETS["paper"].items():
        assert getattr(args, name) == value


def test_a_setting_wins_over_the_preset():
    args = GenSARTrainingArguments("films", preset="paper", learning_rate=1e-3, text_encoder=None, sinkhorn_epsilon=0)
    assert (args.learning_rate, args.text_encoder) == (1e-3, None)
    assert args.rqvae(8, 8, num_items=10).sinkhorn_epsilon == 0
    assert args.max_history_events == 20  # of the preset


def test_fp16_does_without_the_machine_s_bf16(monkeypatch):
    monkeypatch.setattr("gensar_hf.training.arguments.machine_defaults", lambda: {"bf16": True, "use_cpu": True})
    assert not GenSARTrainingArguments("films", fp16=True).bf16
    assert GenSARTrainingArguments("films").bf16


MISTAKES = {
    "preset": ({"preset": "small"}, "`preset` must be one of default, paper; got 'small'"),
    "no folder": ({"output_dir": None}, "`output_dir` names the folder of the run"),
    "unknown generator setting": ({"generator_config": {"d_modle": 3}}, "does not have; did you mean 'd_model'?"),
    "unknown SASRec setting": ({"sasrec_config": {"heads": 3}}, "`sasrec_config` names 'heads'"),
    "unknown RQ-VAE setting": ({"rqvae_config": {"code_book": 3}}, "`rqvae_config` names 'code_book'"),
    "not a setting": ({"rqvae_config": {"semantic_dim": 3}}, "`rqvae_config` names 'semantic_dim', which follows from"),
    "type inside": ({"generator_config": {"d_model": "big"}}, "`generator_config`: Field 'd_model' expected int"),
    "range inside": ({"generator_config": {"dropout_rate": 2}}, "`dropout_rate` must be at least 0 and below 1; got 2"),
    "heads": ({"sasrec_config": {"num_heads": 3}}, "`num_heads` must divide `hidden_size`"),
    "codebook": ({"codebook_size": 1}, "`codebook_size` must be at least 2"),
    "quantizer": ({"rqvae_config": {"quantizer": "vq"}}, "'quantizer' expected one of"),
    "unknown task": ({"task_weights": {"swim": 1}}, "`task_weights` names the unknown task 'swim'; tasks are next_"),
    "no task": ({"task_weights": {"next_query": 0}}, "`task_weights` must not be negative, and one must be positive"),
    "rate": ({"learning_rate": -1}, "`learning_rate` must not be negative; got -1"),
    "rank": ({"lora_rank": -1}, "`lora_rank` must not be negative; got -1"),
    "encoding": ({"history_encoding": "words"}, "`history_encoding` must be one of events, tokens; got 'words'"),
    "vectors": ({"preset": "paper", "item_vectors": True}, "`item_vectors` needs history_encoding='events'"),
    "negatives": ({"num_negatives": 0}, "`num_negatives` must be at least 1; got 0"),
    "columns": ({"remove_unused_columns": True}, "`remove_unused_columns` must stay False"),
    "label smoothing": ({"label_smoothing_factor": 0.1}, "`label_smoothing_factor` must stay 0.0: the losses are the"),
    "noise": ({"neftune_noise_alpha": 5.0}, "`neftune_noise_alpha` must stay None"),
    "kernels": ({"use_liger_kernel": True}, "`use_liger_kernel` must stay False"),
    "seed": ({"seed": -1}, "`seed` must be from 0 to 4,294,967,295; got -1"),
    "no rows": ({"per_device_train_batch_size": 0}, "`per_device_train_batch_size` must be at least 1; got 0"),
    "no batches": ({"gradient_accumulation_steps": 0}, "`gradient_accumulation_steps` must be at least 1; got 0"),
    "no requests": ({"per_device_eval_batch_size": 0}, "`per_device_eval_batch_size` must be at least 1; got 0"),
    "shrinking": ({"weight_decay": -1}, "`weight_decay` must not be negative; got -1"),
    "vanishing": ({"weight_decay": 1e9}, "`learning_rate` times `weight_decay`, the share by which a step shrinks"),
    "gradients": ({"max_grad_norm": -1}, "`max_grad_norm` must not be negative; got -1"),
    "mean of gradients": ({"adam_beta1": 2}, "`adam_beta1` must be at least 0 and below 1; got 2"),
    "mean of squares": ({"adam_beta2": 1.0}, "`adam_beta2` must be at least 0 and below 1; got 1.0"),
    "division": ({"adam_epsilon": -1}, "`adam_epsilon` must not be negative; got -1"),
    "epochs": ({"num_train_epochs": -1}, "`num_train_epochs` must not be negative; got -1"),
    "no steps": ({"max_steps": 0}, "`max_steps` must be above 0, or -1 for as many as `num_train_epochs` take; got 0"),
    "fewer than no steps": ({"max_steps": -7}, "`max_steps` must be above 0, or -1"),
    "never logged": ({"logging_steps": -1}, "`logging_steps` must be above 0: steps, or below 1 a share"),
    "never saved": ({"save_steps": 0}, "`save_steps` must be above 0"),
    "never evaluated": ({"eval_steps": -1}, "`eval_steps` must be above 0"),
    "nothing kept": ({"save_total_limit": 0}, "`save_total_limit` must be at least 1; got 0"),
    "workers": ({"dataloader_num_workers": -1}, "`dataloader_num_workers` must not be negative; got -1"),
    "seed of the rows": ({"data_seed": -1}, "`data_seed` must be from 0 to 4,294,967,295; got -1"),
    "share": ({"text_query_share": 2}, "`text_query_share` must be from 0 to 1; got 2"),
    "words": ({"text_vocab_size": 10**9}, "`text_vocab_size` must be from 1 to 1,000,000; got 1000000000"),
    "codes": ({"codebook_size": 10**8}, "`codebook_size` must be at most 65,536"),
    "levels": ({"num_shared_levels": 1000}, "at most 32 codes"),
    "no number": ({"learning_rate": float("nan")}, "`learning_rate` must not be negative; got nan"),
    "words for a number": ({"learning_rate": "fast"}, "`learning_rate` must be of type number or None; got 'fast'."),
    "words for steps": ({"max_steps": "many"}, "`max_steps` must be of type number or None; got 'many'."),
    "number for a folder": ({"output_dir": 3}, "`output_dir` must be of type str or None; got 3."),
    "number for settings": ({"generator_config": 3}, "`generator_config` must be of type dict or None; got 3."),
    "words for a flag": ({"item_vectors": "yes"}, "`item_vectors` must be of type bool or None; got 'yes'."),
    "optimizer": ({"optim": "nonsense"}, "transformers refuses the settings: nonsense is not a valid OptimizerNames"),
    "deepspeed": ({"deepspeed": "nowhere.json"}, "transformers refuses the settings"),
    "transformers' own": ({"save_strategy": "never"}, "never is not a valid SaveStrategy"),
}  # fmt: skip


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_named(mistake):
    changes, words = MISTAKES[mistake]
    with pytest.raises(ValueError, match=r"\S") as error:
        GenSARTrainingArguments(**{"output_dir": "films", **changes})
    assert words in str(error.value)
    assert len(str(error.value)) < 500


def test_refused_settings_leave_no_trace() -> None:
    """Transformers keeps a DeepSpeed configuration, and asks it at the next loading of any model."""
    with pytest.raises(InputError, match="transformers refuses the settings") as error:
        GenSARTrainingArguments("films", deepspeed="nowhere.json")
    assert not is_deepspeed_zero3_enabled(), error  # alive until here, as in a notebook
