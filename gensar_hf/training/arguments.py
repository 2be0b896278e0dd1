"""Every setting of a run, declared once: `GenSARTrainingArguments`."""

import difflib
import math
import os
import textwrap
from collections.abc import Callable
from dataclasses import dataclass, field, fields
from typing import Any, Literal

from huggingface_hub.errors import StrictDataclassError
from transformers import PreTrainedConfig, TrainingArguments
from transformers.integrations import get_available_reporting_integrations
from transformers.integrations.deepspeed import unset_hf_deepspeed_config

from gensar_hf.embeddings.configuration_sasrec import SASRecConfig
from gensar_hf.errors import InputError, check_type
from gensar_hf.generator.configuration_gensar import HISTORY_ENCODINGS, GenSARConfig
from gensar_hf.generator.prompts import Task
from gensar_hf.identifiers.configuration_joint_rqvae import JointRQVAEConfig
from gensar_hf.training_defaults import machine_defaults

PRESETS: dict[str, dict[str, Any]] = {
    # MovieLens-100k in under ten minutes on two cores; chosen on its validation clicks.
    "default": {
        "text_encoder": "sentence-transformers/all-MiniLM-L6-v2",
        "sinkhorn_epsilon": 0.0,
        "history_encoding": "events",
        "max_history_events": 100,
        "item_vectors": True,
        "text_query_share": 0.7,
        "per_device_train_batch_size": 16,
        "learning_rate": 2.5e-3,
        "num_train_epochs": 3.0,
    },
    # GenSAR, sec. 5.1.4: sizes, tokens as encoder positions, identifiers alone, Sinkhorn. Needs a GPU and the Hub.
    "paper": {
        "text_encoder": "BAAI/bge-base-en-v1.5",
        "codebook_size": 256,
        "rqvae_epochs": 500,
        "sinkhorn_epsilon": 0.003,
        "model_name_or_path": "google-t5/t5-small",
        "history_encoding": "tokens",
        "max_history_events": 20,
        "item_vectors": False,
        "text_query_share": 0.0,
        "per_device_train_batch_size": 128,
        "learning_rate": 5e-4,
        "num_train_epochs": 2.0,
    },
}
_FROM_PRESET = "the preset decides"
_RQVAE_EPOCHS, _MOST_ITEMS_AN_EPOCH = 30, 200_000
# Fields of the sub-models' configurations that are not settings.
_FROM_DATA = {"num_items", "text_dim", "vocab_size", "history_encoding", "semantic_dim", "collaborative_dim"}

# Settings of `TrainingArguments` that would be without effect, or would change the loss behind the model's back.
_FIXED = {
    "remove_unused_columns": (False, "examples are drawn, not read from columns"),
    "train_sampling_strategy": ("sequential", "examples are drawn, not read from columns"),
    "label_smoothing_factor": (0.0, "the losses are the model's own, and Trainer's would leave out that of the items"),
    "neftune_noise_alpha": (None, "the embeddings are read by encoder and decoder, where Trainer adds no noise"),
    "use_liger_kernel": (False, "the losses are the model's own, and there are no such kernels for them"),
}

# The least and the greatest value of each number. Transformers checks few of its own.
_RANGES: dict[str, tuple[float, float]] = {
    **dict.fromkeys(
        (
            "codebook_size", "max_history_events", "num_negatives", "eval_max_users", "max_target_tokens",
            "per_device_train_batch_size", "per_device_eval_batch_size", "gradient_accumulation_steps",
            "save_total_limit",
        ),
        (1, math.inf),
    ),
    **dict.fromkeys(
        (
            "item_weight", "lora_rank", "sasrec_epochs", "rqvae_epochs", "learning_rate", "num_train_epochs",
            "warmup_steps", "weight_decay", "max_grad_norm", "adam_epsilon", "dataloader_num_workers",
        ),
        (0, math.inf),
    ),
    "text_vocab_size": (1, 1_000_000),  # the training of a vocabulary takes memory for all of it at its start
    "text_query_share": (0, 1),
    "seed": (0, 2**32 - 1),
    "data_seed": (0, 2**32 - 1),
}  # fmt: skip
_INTERVALS = ("logging_steps", "save_steps", "eval_steps")


def _setting(default: Any, text: str) -> Any:
    """A field with its help text; `None` with "preset" in the help stands for the preset's value."""
    return field(default=default, metadata={"help": text})


@dataclass
class GenSARTrainingArguments(TrainingArguments):
    """`transformers.TrainingArguments`, and the settings of the text encoder, SASRec, the RQ-VAE and the generator.

    A setting whose default is None takes the value of `preset` (see `PRESETS`) unless its help says otherwise. What
    `TrainingArguments` declares holds for the generator; SASRec and the RQ-VAE are trained with their own tuned values.

    Raises:
        ValueError: a value out of range, or an unknown preset or task.
    """

    # `TrainingArguments`, with other defaults
    per_device_train_batch_size: int | None = _setting(None, f"histories a step and device; {_FROM_PRESET}.")  # type: ignore[assignment]
    learning_rate: float | None = _setting(None, f"peak learning rate; {_FROM_PRESET}.")  # type: ignore[assignment]
    num_train_epochs: float | None = _setting(  # type: ignore[assignment]
        None, f"passes over the training events, at least 300 steps, unless max_steps is positive; {_FROM_PRESET}."
    )
    warmup_steps: float = _setting(100, "steps, or below 1 the share of the steps, in which the rate rises.")
    weight_decay: float = _setting(0.1, "of AdamW.")
    adam_beta2: float = _setting(0.98, "of AdamW.")
    optim: str = _setting("adamw_torch_fused", "optimizer.")
    logging_steps: float = _setting(50, "steps between two logs.")
    save_steps: float = _setting(500, "steps between two checkpoints.")
    eval_steps: float | None = _setting(500, "steps between two evaluations with eval_strategy='steps'.")
    logging_nan_inf_filter: bool = _setting(False, "hide losses that are not finite; a run that diverged then passes.")
    save_total_limit: int | None = _setting(1, "checkpoints that are kept.")
    remove_unused_columns: bool = _setting(False, "must stay False: examples are drawn, not read from columns.")
    train_sampling_strategy: str = _setting("sequential", "must stay 'sequential': row i is a draw of its own seed.")
    metric_for_best_model: str | None = _setting("ndcg@10", "of load_best_model_at_end and early stopping.")
    greater_is_better: bool | None = _setting(True, "whether that metric should grow.")
    report_to: str | list[str] | None = _setting("none", "integrations such as tensorboard or trackio.")
    bf16: bool | None = _setting(None, "bf16 autocast; default: on hardware that has it.")  # type: ignore[assignment]
    use_cpu: bool | None = _setting(None, "default: without an accelerator.")  # type: ignore[assignment]

    # The settings of this package
    preset: Literal["default", "paper"] = _setting("default", "values of the settings that are not given.")
    text_encoder: str | None = _setting(
        "preset", "sentence-transformers model that reads the items: Hub name or folder; null: word statistics alone."
    )
    sasrec_epochs: float = _setting(
        15.0, "passes of SASRec over the clicks, at least 500 steps unless it is below 1; it makes the embeddings."
    )
    sasrec_config: dict[str, Any] | None = _setting(None, "SASRecConfig values that differ, name → value.")
    codebook_size: int | None = _setting(None, "K, codes a level; default: 64 below 5,000 items, 256 from there on.")
    num_shared_levels: int = _setting(2, "L_m, levels that both identifiers of an item share.")
    num_specific_levels: int = _setting(2, "L_n, levels of either identifier alone.")
    rqvae_epochs: float | None = _setting(
        None,
        "passes of the RQ-VAE over the items; default: 30, fewer for many items; 500 in 'paper'.",
    )
    sinkhorn_epsilon: float | None = _setting(
        None, f"of the balanced assignment on the RQ-VAE's last level, 0: off; {_FROM_PRESET}."
    )
    rqvae_config: dict[str, Any] | None = _setting(None, "JointRQVAEConfig values that differ, name → value.")
    model_name_or_path: str | None = _setting(
        None,
        "T5 or causal language model to start from; default: a small T5 from scratch, or the preset's.",
    )
    history_encoding: Literal["events", "tokens"] | None = _setting(
        None, f"an encoder position is an event, or as in the paper a token; {_FROM_PRESET}."
    )
    max_history_events: int | None = _setting(None, f"latest events of a history that are read; {_FROM_PRESET}.")
    max_target_tokens: int = _setting(120, "response tokens that the decoder learns in a row of events.")
    behavior_tokens: bool = _setting(True, "false: one token before both kinds of identifiers, an ablation.")
    text_vocab_size: int = _setting(1000, "word pieces of a tokenizer that is trained from scratch.")
    item_vectors: bool | None = _setting(None, f"a vector for each item next to its identifiers; {_FROM_PRESET}.")
    text_matching: bool = _setting(True, "compare queries with the items' texts; needs history_encoding='events'.")
    text_query_share: float | None = _setting(
        None,
        f"share of the ad-hoc searches that are made from texts; {_FROM_PRESET}.",
    )
    item_weight: float | None = _setting(
        None, "of the item vectors' part of a score; default: chosen for each task on validation clicks."
    )
    item_features: bool = _setting(
        False, "train item vectors as a map of the items' embeddings plus a rest: for catalogues of few clicks an item."
    )
    generator_config: dict[str, Any] | None = _setting(None, "GenSARConfig values that differ, such as d_model.")
    task_weights: dict[str, float] | None = _setting(None, "share of each training task, 0: off.")
    lora_rank: int | None = _setting(
        None, "rank of LoRA, 0: all weights are trained; default: 16 for a causal language model, else 0."
    )
    lora_target_modules: list[str] | None = _setting(None, "layers with LoRA; default: PEFT's for the model.")
    num_negatives: int = _setting(99, "candidates that an evaluation ranks the target among.")
    eval_max_users: int | None = _setting(500, "users of an evaluation while training, a seeded sample; null: all.")
    exclude_seen: bool = _setting(False, "evaluate with items of the history ranked last.")

    def __post_init__(self) -> None:
        if self.preset not in PRESETS:
            raise ValueError(f"`preset` must be one of {', '.join(PRESETS)}; got {self.preset!r}.")
        for name, value in PRESETS[self.preset].items():
            if getattr(self, name) in (None, "preset") and not (name == "text_encoder" and self.text_encoder is None):
                setattr(self, name, value)
        for name in ("output_dir", "text_encoder", "model_name_or_path"):
            if isinstance(path := getattr(self, name), os.PathLike):
                setattr(self, name, os.fspath(path))
        if not self.output_dir:
            raise ValueError("`output_dir` names the folder of the run; give one, such as 'films'.")
        if self.fp16 and self.bf16 is None:
            self.bf16 = False
        for name, value in machine_defaults().items():
            if getattr(self, name) is None:
                setattr(self, name, value)
        self._check()
        try:
            super().__post_init__()
        except Exception as error:  # of whatever kind, as of packages that are not installed
            unset_hf_deepspeed_config()  # kept half made, it would fail the next model that is loaded
            reason = textwrap.shorten(str(error), 300, placeholder=" …").rstrip(".")
            raise InputError(f"transformers refuses the settings: {reason}.") from error

    def _check(self) -> None:
        kinds: dict[str, Any] = {item.name: item.type for item in fields(self)}
        numbers = (*_RANGES, *_INTERVALS, "max_steps", "adam_beta1")
        for name in {**dict.fromkeys(("output_dir", *numbers)), **GenSARTrainingArguments.__annotations__}:
            check_type(name, getattr(self, name), kinds[name] | None)
        for name, (least, most) in _RANGES.items():
            value = getattr(self, name)
            if value is not None and not least <= value <= most:
                rule = f"be at least {least}" if least else "not be negative"
                rule = rule if most == math.inf else f"be from {least:,} to {most:,}"
                raise ValueError(f"`{name}` must {rule}; got {value}.")
        for name in _INTERVALS:
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise ValueError(f"`{name}` must be above 0: steps, or below 1 a share of all steps; got {value}.")
        for name in ("adam_beta1", "adam_beta2"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"`{name}` must be at least 0 and below 1; got {getattr(self, name)}.")
        if not (self.max_steps == -1 or self.max_steps > 0):
            raise ValueError(
                f"`max_steps` must be above 0, or -1 for as many as `num_train_epochs` take; got {self.max_steps}."
            )
        if not (self.learning_rate or 0) * self.weight_decay < 1:
            raise ValueError(
                "`learning_rate` times `weight_decay`, the share by which a step shrinks each weight, must be below 1; "
                f"got {self.learning_rate} and {self.weight_decay}."
            )
        if self.history_encoding not in HISTORY_ENCODINGS:
            raise ValueError(
                f"`history_encoding` must be one of {', '.join(HISTORY_ENCODINGS)}; got {self.history_encoding!r}."
            )
        self._check_task_weights()
        installed = ["none", "all", *get_available_reporting_integrations()]
        for name in [self.report_to] if isinstance(self.report_to, str) else self.report_to or []:
            if name not in installed:
                raise ValueError(f"`report_to` names '{name}', which is not installed; use {', '.join(installed)}.")
        if self.item_vectors and self.history_encoding == "tokens":
            raise ValueError("`item_vectors` needs history_encoding='events': with tokens no position is one click.")
        for name, (required, reason) in _FIXED.items():
            if getattr(self, name) != required:
                raise ValueError(f"`{name}` must stay {required!r}: {reason}.")
        # The sub-models' own checks, before anything runs.
        _check_config("rqvae_config", self.rqvae_config, JointRQVAEConfig, lambda: self.rqvae(8, 8, num_items=1))
        _check_config("sasrec_config", self.sasrec_config, SASRecConfig, lambda: self.sasrec(num_items=1))
        generator = self.generator_config or {}
        _check_config("generator_config", generator, GenSARConfig, lambda: GenSARConfig(**generator))

    def _check_task_weights(self) -> None:
        weights, tasks = self.task_weights, [task.value for task in Task]
        if weights is None:
            return
        unknown = set(weights) - set(tasks)
        if unknown:
            raise ValueError(f"`task_weights` names the unknown task '{min(unknown)}'; tasks are {', '.join(tasks)}.")
        negative = [task for task, weight in weights.items() if not weight >= 0]
        if negative or not any(weights.values()):
            raise ValueError(f"`task_weights` must not be negative, and one must be positive; got {weights}.")

    def rqvae(self, semantic_dim: int, collaborative_dim: int, num_items: int) -> JointRQVAEConfig:
        """The RQ-VAE's configuration for a catalogue of `num_items` with embeddings of these widths."""
        return JointRQVAEConfig(
            semantic_dim=semantic_dim,
            collaborative_dim=collaborative_dim,
            **{
                "codebook_size": self.codebook_size or (64 if num_items < 5000 else 256),
                "num_shared_levels": self.num_shared_levels,
                "num_specific_levels": self.num_specific_levels,
                "sinkhorn_epsilon": float(self.sinkhorn_epsilon or 0),
                **(self.rqvae_config or {}),
            },
        )

    def rqvae_passes(self, num_items: int) -> float:
        """Epochs of the RQ-VAE for a catalogue of `num_items`."""
        if self.rqvae_epochs is not None:
            return self.rqvae_epochs
        return max(1, round(_RQVAE_EPOCHS * min(1, _MOST_ITEMS_AN_EPOCH / num_items)))

    def sasrec(self, num_items: int) -> SASRecConfig:
        """SASRec's configuration."""
        return SASRecConfig(num_items=num_items, **(self.sasrec_config or {}))

    @classmethod
    def own_settings(cls) -> list[str]:
        """Names of the settings that `TrainingArguments` does not have."""
        inherited = {item.name for item in fields(TrainingArguments)}
        return [item.name for item in fields(cls) if item.name not in inherited]


def _check_config(
    setting: str, values: dict[str, Any] | None, kind: type[PreTrainedConfig], build: Callable[[], PreTrainedConfig]
) -> None:
    """Check the names and the values of a sub-model's configuration.

    Raises:
        ValueError: an unknown name, or a value that the configuration refuses.
    """
    names = {item.name for item in fields(kind)}
    for name in values or {}:
        if name in _FROM_DATA:
            raise ValueError(f"`{setting}` names '{name}', which follows from the data and the other settings.")
        if name not in names:
            close = difflib.get_close_matches(name, names, n=1)
            hint = f"; did you mean '{close[0]}'?" if close else "."
            raise ValueError(f"`{setting}` names '{name}', which {kind.__name__} does not have{hint}")
    try:
        build()
    except StrictDataclassError as error:
        cause: BaseException = error
        while cause.__cause__ is not None:  # the check's own words
            cause = cause.__cause__
        text = " ".join(str(cause).split())
        raise ValueError(text if text.startswith("`") else f"`{setting}`: {text}") from error
