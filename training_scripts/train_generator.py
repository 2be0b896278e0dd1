"""Stage 5: log and identifiers → tokenizer and GenSAR, trained on all six tasks.

python training_scripts/train_generator.py --output_dir runs/mine --model.learning_rate 1e-3
torchrun --nproc_per_node 2 training_scripts/train_generator.py --output_dir runs/mine --model.use_cpu true
"""

import logging
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from console import main, metrics_unprinted, show_training_bar
from encode_items import EMBEDDINGS_FILE
from evaluate import EvaluationArguments, evaluation_requests
from sections import Section
from settings import Settings
from stages import (
    COLLABORATIVE,
    DATA,
    MODEL,
    RQVAE,
    SEMANTIC,
    StageReport,
    damage_reported,
    load_data,
    process_rank,
    run_stage,
)
from transformers import PreTrainedModel, Trainer, TrainingArguments, set_seed

from gensar_hf.data import InteractionLog, Split, UserEvents, training_mask
from gensar_hf.embeddings.item_embeddings import load_item_embeddings
from gensar_hf.embeddings.modeling_sasrec import SASRecModel
from gensar_hf.epoch_rows import rows_per_step
from gensar_hf.evaluation.item_weight import qualities_of_weights
from gensar_hf.files import last_checkpoint
from gensar_hf.generator.adapters import add_adapter, lora_config, merge_adapter
from gensar_hf.generator.backbones import Backbone
from gensar_hf.generator.configuration_gensar import GenSARConfig
from gensar_hf.generator.initialization import (
    generator_from_causal_lm,
    generator_from_scratch,
    generator_from_t5,
    share_item_features,
    start_codes_near_their_items,
    start_item_vectors,
)
from gensar_hf.generator.item_vectors import plain_weights
from gensar_hf.generator.modeling_gensar import GenSARForConditionalGeneration
from gensar_hf.generator.packing import ExampleCollator, ExampleRows, batches_per_step
from gensar_hf.generator.prompts import Task
from gensar_hf.generator.tasks import DEFAULT_TASK_WEIGHTS, ExampleSampler, TrainingExamples
from gensar_hf.generator.teacher import TeacherItems, teacher_of_sasrec
from gensar_hf.generator.tokenization_gensar import GenSARTokenizer
from gensar_hf.identifiers import IdentifierTable
from gensar_hf.identifiers.configuration_joint_rqvae import JointRQVAEConfig
from gensar_hf.pipeline import GenSARPipeline

logger = logging.getLogger(__name__)

MAX_VALIDATION_USERS = 500  # that choose the weight of item vectors

TUNED = {
    "per_device_train_batch_size": 16,
    "learning_rate": 2e-3,
    "lr_scheduler_type": "linear",
    "warmup_steps": 100,
    "weight_decay": 0.1,
    "adam_beta2": 0.98,
    "optim": "adamw_torch_fused",
    "logging_steps": 50,
    "save_steps": 500,
    "remove_unused_columns": False,
    "train_sampling_strategy": "sequential",
}


@dataclass
class ModelArguments:
    """The generator, its history encoding and its tasks."""

    model_name_or_path: str | None = field(
        default=None,
        metadata={
            "help": "weights to start from: a T5, such as google-t5/t5-small, or any causal language model, such as "
            "packaged-smollm2; None: a small T5 from scratch."
        },
    )
    gguf_file: str | None = field(default=None, metadata={"help": "the file of that folder, of a GGUF checkpoint."})
    lora_rank: int = field(
        default=16, metadata={"help": "of LoRA on a causal language model; 0: all of its weights are trained."}
    )
    lora_modules: list[str] | None = field(
        default=None, metadata={"help": "layers with LoRA, such as q_proj v_proj; default: PEFT's for the model."}
    )
    history_encoding: Literal["events", "tokens"] = field(
        default="events",
        metadata={"help": "one position an event, or, as in the paper and always in a causal language model, a token."},
    )
    max_history_events: int = field(default=50, metadata={"help": "events of a history that are read."})
    max_target_tokens: int = field(default=120, metadata={"help": "response tokens packed into one row (events only)."})
    recent_share: float = field(
        default=0.5, metadata={"help": "share of the training histories that end at the user's last target."}
    )
    recommend_searched: bool = field(
        default=True, metadata={"help": "train the next recommended item on search clicks, too, their queries unseen."}
    )
    teacher_share: float = field(
        default=0.5, metadata={"help": "share of the next recommended items that SASRec names in place of the log."}
    )
    code_start: Literal["items", "random"] = field(
        default="items", metadata={"help": "code embeddings begin near the embeddings of their items, or at random."}
    )
    recency_slope: float = field(
        default=0.5, metadata={"help": "attention starts with less weight on older events (events only); 0: at random."}
    )
    item_vectors: bool = field(
        default=True,
        metadata={"help": "a vector for each item beside its identifiers; false, the paper's: identifiers alone."},
    )
    item_recurrence: bool = field(
        default=True, metadata={"help": "a recurrent layer reads the item vectors of the clicks beside attention."}
    )
    item_features: bool = field(
        default=True,
        metadata={
            "help": "train item vectors as a map of text and SASRec embeddings that all items share, plus a rest."
        },
    )
    item_dropout: float = field(default=0.35, metadata={"help": "on item vectors."})
    item_weight: float | None = field(
        default=None,
        metadata={
            "help": "of the log-probability by item vectors in an item's score; default: chosen on validation clicks."
        },
    )
    behavior_tokens: bool = field(
        default=True, metadata={"help": "tell the two kinds of identifiers apart by a token (false: an ablation)."}
    )
    text_vocab_size: int = field(default=2000, metadata={"help": "word pieces, when trained from scratch."})
    d_model: int = field(default=128, metadata={"help": "width."})
    d_kv: int = field(default=32, metadata={"help": "width of a head."})
    d_ff: int = field(default=256, metadata={"help": "width of the feed-forward layer."})
    num_layers: int = field(default=2, metadata={"help": "encoder layers."})
    num_decoder_layers: int = field(default=2, metadata={"help": "decoder layers."})
    num_heads: int = field(default=4, metadata={"help": "attention heads."})
    dropout_rate: float = field(default=0.0, metadata={"help": "T5's dropout; slow on CPUs."})
    target_epochs: float = field(
        default=8.0, metadata={"help": "passes over the training events, where max_steps is not given."}
    )
    task_weights: dict | None = field(default=None, metadata={"help": "task → weight; 0 switches a task off."})

    def __post_init__(self) -> None:
        if self.lora_rank < 0:
            raise ValueError(f"`lora_rank` must not be negative; got {self.lora_rank}.")
        if self.gguf_file is not None and self.model_name_or_path is None:
            raise ValueError("`gguf_file` needs the folder that holds it as `model_name_or_path`.")
        if not 0 <= self.teacher_share <= 1:
            raise ValueError(f"`teacher_share` must lie between 0 and 1; got {self.teacher_share}.")
        if not 0 <= self.item_dropout < 1 or not (self.item_weight is None or self.item_weight >= 0):
            raise ValueError(
                "`item_dropout` must be at least 0 and below 1, and `item_weight` not negative; got "
                f"{self.item_dropout} and {self.item_weight}."
            )
        unknown = set(self.task_weights or {}) - {task.value for task in Task}
        if unknown:
            tasks = ", ".join(task.value for task in Task)
            raise ValueError(f"`task_weights` names the unknown task '{min(unknown)}'; tasks are {tasks}.")

    @property
    def has_item_vectors(self) -> bool:
        """The paper's encoder, where every token is a position, has no place for them."""
        return self.item_vectors and self.history_encoding == "events"


SECTION = Section(MODEL, ModelArguments, lambda: TUNED)


def make_backbone(arguments: ModelArguments) -> Backbone | None:
    """The pretrained weights to start from; None: from scratch."""
    name = arguments.model_name_or_path
    return None if name is None else Backbone.named(name, arguments.gguf_file)


def is_decoder_only(backbone: Backbone | None) -> bool:
    """Whether the weights are a causal language model's."""
    return backbone is not None and not backbone.config().is_encoder_decoder


def make_tokenizer(
    arguments: ModelArguments,
    backbone: Backbone | None,
    identifiers: IdentifierTable,
    item_texts: list[str],
    events: UserEvents,
    split: Split,
) -> GenSARTokenizer:
    """A vocabulary of its own from item texts and training queries, or that of pretrained weights."""
    names = ("history_encoding", "max_history_events", "behavior_tokens")
    options = {name: getattr(arguments, name) for name in names}
    if backbone is not None:
        return GenSARTokenizer.from_text_tokenizer(
            backbone.text_tokenizer(), identifiers, **options, decoder_only=is_decoder_only(backbone)
        )
    used = np.unique(events.queries[training_mask(split)])
    queries = [events.query_texts[query] for query in used if query >= 0]
    return GenSARTokenizer.train_from_texts(
        [*item_texts, *queries], identifiers, vocab_size=arguments.text_vocab_size, **options
    )


def make_sampler(
    arguments: ModelArguments, log: TrainingExamples, seed: int, teacher: TeacherItems | None = None
) -> ExampleSampler:
    """Draws the training examples."""
    weights = {Task(task): weight for task, weight in (arguments.task_weights or DEFAULT_TASK_WEIGHTS).items()}
    max_target_tokens = arguments.max_target_tokens if arguments.history_encoding == "events" else 0
    return ExampleSampler(
        log,
        weights,
        window=arguments.max_history_events,
        max_target_tokens=max_target_tokens,
        recent_share=arguments.recent_share,
        seed=seed,
        recommend_searched=arguments.recommend_searched,
        teacher=teacher,
        teacher_share=arguments.teacher_share,
        item_vectors=arguments.has_item_vectors,
    )


def make_teacher(arguments: ModelArguments, log: TrainingExamples, run_dir: Path) -> TeacherItems | None:
    """What the run's SASRec expects at each training click; None where it is not asked."""
    weights = arguments.task_weights or DEFAULT_TASK_WEIGHTS
    if arguments.teacher_share == 0 or not weights.get(Task.NEXT_RECOMMENDED_ITEM):
        return None
    with damage_reported(run_dir / COLLABORATIVE):
        sasrec = SASRecModel.from_pretrained(run_dir / COLLABORATIVE)
    return teacher_of_sasrec(sasrec, log.events, log.train_ends)


def make_model(
    arguments: ModelArguments,
    backbone: Backbone | None,
    tokenizer: GenSARTokenizer,
    run_dir: Path,
    seed: int,
    num_clicks: np.ndarray,
) -> PreTrainedModel:
    """A new generator, from scratch or from pretrained weights; `num_clicks` `(num_items,)` are those of training."""
    set_seed(seed)
    code_spread: float | torch.Tensor = 1.0  # of a T5's embeddings when it is new
    options: dict[str, Any] = {
        "recency_slope": arguments.recency_slope,
        "num_items": tokenizer.identifiers.num_trained if arguments.has_item_vectors else 0,
        "item_dropout": arguments.item_dropout,
        "item_recurrence": arguments.item_recurrence,
    }
    if arguments.item_weight is not None:
        options["item_weight"] = arguments.item_weight
    model: PreTrainedModel
    if backbone is not None and tokenizer.decoder_only:
        model = generator_from_causal_lm(backbone, tokenizer)
        code_spread = model.get_input_embeddings().weight.detach().std(dim=0)
    elif backbone is not None:
        model = generator_from_t5(backbone.path, tokenizer, **options)
    else:
        sizes = ("d_model", "d_kv", "d_ff", "num_layers", "num_decoder_layers", "num_heads", "dropout_rate")
        config = GenSARConfig(**options, **{name: getattr(arguments, name) for name in sizes})
        model = generator_from_scratch(config, tokenizer)
    embeddings = known_of_items(run_dir, tokenizer)
    if arguments.code_start == "items":
        start_codes_near_their_items(model, tokenizer, embeddings, information=code_spread, seed=seed)
    if isinstance(model, GenSARForConditionalGeneration) and arguments.has_item_vectors:
        start_item_vectors(model, embeddings, num_clicks, seed)
    return model


def known_of_items(run_dir: Path, tokenizer: GenSARTokenizer) -> list[np.ndarray]:
    """The embeddings that the identifiers were made of, each `(num_items, dim)`."""
    kind = JointRQVAEConfig.from_pretrained(run_dir / RQVAE).embeddings
    # Codes made of one kind of embedding alone, an ablation, begin with that kind alone.
    stages = {"semantic": [SEMANTIC], "collaborative": [COLLABORATIVE], "both": [SEMANTIC, COLLABORATIVE]}[kind]
    item_ids = tokenizer.identifiers.item_ids
    return [load_item_embeddings(run_dir / stage / EMBEDDINGS_FILE, item_ids) for stage in stages]


def with_lora(model: PreTrainedModel, arguments: ModelArguments, tokenizer: GenSARTokenizer) -> Any:
    """A causal language model of which LoRA and the new tokens' rows are trained; every other model as it is."""
    if not tokenizer.decoder_only or arguments.lora_rank == 0:
        return model
    rank, modules = arguments.lora_rank, arguments.lora_modules
    token_ids = tokenizer.code_token_ids.tolist()
    return add_adapter(model, lora_config(model, token_ids, rank, alpha=2 * rank, target_modules=modules))


def suit_processor(training: TrainingArguments, model: PreTrainedModel, history_encoding: str) -> None:
    """Same steps, computed the way that takes least time without a GPU."""
    if training.device.type != "cpu":
        return
    if isinstance(model, GenSARForConditionalGeneration):
        # Attention with a bias that is learned has no fused kernel here; what SDPA falls back to is slower than eager.
        model.set_attn_implementation("eager")
    num_batches = batches_per_step(training.train_batch_size, history_encoding)
    training.per_device_train_batch_size //= num_batches
    training.gradient_accumulation_steps *= num_batches


def example_rows(sampler: ExampleSampler, training: TrainingArguments, max_positions: int) -> ExampleRows:
    """The rows of all steps of a training, those of one step sorted by length where it has several batches."""
    step_size = rows_per_step(training)
    # Every process draws all rows of a step in order to sort them; one batch a step has no use for it.
    is_sorted = training.gradient_accumulation_steps > 1 and training.train_sampling_strategy == "sequential"
    return ExampleRows(sampler, training.max_steps * step_size, max_positions, step_size if is_sorted else 1)


def save_trained(trainer: Trainer, folder: Path) -> None:
    """Save the model, a trained adapter merged into it; all processes call this.

    What FSDP or DeepSpeed has spread over them is put together.
    """
    model: Any = trainer.accelerator.unwrap_model(trainer.model)
    if hasattr(model, "peft_config"):
        if trainer.args.should_save:
            merge_adapter(model).save_pretrained(folder)
        return
    weights = trainer.accelerator.get_state_dict(trainer.model_wrapped)
    if trainer.args.should_save:
        if isinstance(model, GenSARForConditionalGeneration) and model.encoder.items is not None:
            weights = plain_weights(model.encoder.items, weights)
        model.save_pretrained(folder, state_dict=weights)


def choose_item_weight(folder: Path, log: InteractionLog, split: Split) -> dict[str, Any]:
    """Save the weight of the item vectors that is best on validation requests; details of the choice.

    A catalogue of few clicks an item wants another one than one of many: identifiers learn from fewer clicks, and tell
    less. The test requests have no part in it. Without validation requests the model keeps the weight it has.
    """
    evaluation = EvaluationArguments(part="validation", max_users=MAX_VALIDATION_USERS)
    requests, candidates = evaluation_requests(log, split, evaluation.part, evaluation)
    pipeline = GenSARPipeline.from_pretrained(folder)
    config = pipeline.model.config
    if candidates:
        qualities = qualities_of_weights(pipeline, requests, candidates)
        config.item_weight = max(qualities, key=qualities.__getitem__)
        config.save_pretrained(folder)
    return {"item weight": config.item_weight}


def run(settings: Settings) -> StageReport:
    """Build the tokenizer, train the generator, save both."""
    run_dir, (given, training) = settings.run_dir, settings[MODEL]

    def work(folder: Path, checkpoints: Path) -> dict:
        log, events, split = load_data(run_dir)
        identifiers, backbone = IdentifierTable.load(run_dir / RQVAE), make_backbone(given)
        arguments = replace(given, history_encoding="tokens") if is_decoder_only(backbone) else given
        tokenizer = make_tokenizer(arguments, backbone, identifiers, log.item_texts(), events, split)
        training_log = TrainingExamples(tokenizer, events, split.train_ends, log.item_texts())
        model = make_model(arguments, backbone, tokenizer, run_dir, training.seed, training_log.num_clicks())
        counts = {"parameters": model.num_parameters()}
        if arguments.has_item_vectors and arguments.item_features:
            share_item_features(model, known_of_items(run_dir, tokenizer), training.seed)
        teacher = make_teacher(arguments, training_log, run_dir)
        sampler = make_sampler(arguments, training_log, training.seed, teacher)
        is_packed = arguments.history_encoding == "events"
        if training.max_steps <= 0:
            targets_per_row = arguments.max_target_tokens / (1 + identifiers.num_levels) if is_packed else 1
            num_targets = arguments.target_epochs * training_mask(split).sum()
            training.max_steps = max(300, round(num_targets / (targets_per_row * rows_per_step(training))))
        # Room for a whole history and its instruction, or for many small examples side by side.
        max_positions = 1 + arguments.max_history_events if is_packed else 0
        suit_processor(training, model, arguments.history_encoding)
        rows = example_rows(sampler, training, max_positions)
        training.output_dir = str(checkpoints)
        trained = with_lora(model, arguments, tokenizer)
        counts["trained parameters"] = sum(part.numel() for part in trained.parameters() if part.requires_grad)
        trainer = Trainer(model=trained, args=training, train_dataset=rows, data_collator=ExampleCollator(tokenizer))
        show_training_bar(trainer)
        with metrics_unprinted():
            output = trainer.train(resume_from_checkpoint=last_checkpoint(checkpoints))
        save_trained(trainer, folder)
        tokenizer.save_pretrained(folder)
        if arguments.has_item_vectors and arguments.item_weight is None and process_rank() == 0:
            counts |= choose_item_weight(folder, log, split)
        return {**counts, "steps": output.global_step, "loss": output.training_loss}

    inputs = [given, training, run_dir / DATA, run_dir / RQVAE]
    inputs += [run_dir / stage / EMBEDDINGS_FILE for stage in (SEMANTIC, COLLABORATIVE)]
    inputs.append(run_dir / COLLABORATIVE / "model.safetensors")
    return run_stage(run_dir, MODEL, inputs, work, is_distributed=True)


if __name__ == "__main__":
    main(run, __doc__, [SECTION])
