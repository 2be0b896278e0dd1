"""`train`: from a dataset to a pipeline, in stages that a killed run continues."""

import contextlib
import copy
import dataclasses
import io
import logging
import math
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from accelerate import PartialState
from tqdm.auto import tqdm
from transformers import PreTrainedModel, Trainer, TrainerCallback, TrainingArguments, set_seed

from gensar_hf.checkpoints import last_checkpoint, remove_checkpoints
from gensar_hf.data import SEARCH, TASKS, InteractionDataset, training_mask
from gensar_hf.data.tables import machine_bytes
from gensar_hf.embeddings.cold_start import CollaborativeMap
from gensar_hf.embeddings.modeling_sasrec import SASRecModel
from gensar_hf.embeddings.sasrec_training import num_training_steps, sasrec_training_arguments, train_sasrec
from gensar_hf.embeddings.text_encoder import TextEncoder
from gensar_hf.errors import InputError, extra_installed, types_checked
from gensar_hf.evaluation import Evaluation, choose_weights
from gensar_hf.files import (
    CARD_FILE,
    RECORD_FILE,
    STAGE_FILE,
    atomic_path,
    damage_reported,
    fingerprint,
    read_json,
    recorded_files,
    write_json,
)
from gensar_hf.folders import (
    content_hashes,
    finish_saving,
    is_changed,
    locked,
    refuse_changed_stage,
    refuse_foreign_stage,
    remove_leftovers,
    stage_of,
    write_errors_reported,
)
from gensar_hf.generator.backbones import Backbone, context_length
from gensar_hf.generator.configuration_gensar import GenSARConfig
from gensar_hf.generator.initialization import (
    generator_from_causal_lm,
    generator_from_scratch,
    generator_from_t5,
    share_item_features,
    start_item_vectors,
)
from gensar_hf.generator.item_vectors import merge_features
from gensar_hf.generator.modeling_gensar import GenSARForConditionalGeneration
from gensar_hf.generator.text_matching import TextIndex
from gensar_hf.generator.tokenization_gensar import GenSARTokenizer, titles_and_texts
from gensar_hf.identifiers import IdentifierTable
from gensar_hf.identifiers.identifier_table import build_identifier_table
from gensar_hf.identifiers.joint_rqvae_training import train_joint_rqvae
from gensar_hf.identifiers.modeling_joint_rqvae import JointRQVAE
from gensar_hf.item_embeddings import load_item_embeddings, row_chunks, save_item_embeddings
from gensar_hf.new_items import ItemEncoder
from gensar_hf.pipeline import GenSARPipeline
from gensar_hf.training.arguments import GenSARTrainingArguments
from gensar_hf.training.trainer import GenSARTrainer, check_metric, evaluation_of
from gensar_hf.training_defaults import machine_defaults

logger = logging.getLogger(__name__)

STAGES = DATA, SEMANTIC, COLLABORATIVE, RQVAE, MODEL = "data", "semantic", "collaborative", "rqvae", "model"
EMBEDDINGS_FILE = "item_embeddings.safetensors"
_PART_TEXTS = 16_384  # distinct texts that are encoded between two checkpoints
_VOCABULARY_TEXTS = 200_000  # that a vocabulary is trained on
CHECKPOINTS = "checkpoints"
# Settings of `TrainingArguments` that do not change what comes out of a training.
_NOT_AN_INPUT = {
    "output_dir", "run_name", "report_to", "disable_tqdm", "log_level", "log_level_replica", "logging_strategy",
    "logging_steps", "logging_first_step", "save_strategy", "save_steps", "save_total_limit", "use_cpu",
    "ddp_backend", "ddp_timeout", "dataloader_num_workers", "dataloader_pin_memory", "dataloader_prefetch_factor",
    "dataloader_persistent_workers", "push_to_hub", "hub_model_id", "hub_token", "hub_private_repo",
}  # fmt: skip
# Settings of the stages before the generator's, which their folders stand for.
_OF_OTHER_STAGES = {
    "text_encoder", "sasrec_epochs", "sasrec_config", "codebook_size", "num_shared_levels", "num_specific_levels",
    "rqvae_epochs", "sinkhorn_epsilon", "rqvae_config", "preset",
}  # fmt: skip

Work = Callable[[Path, Path], dict[str, Any]]
EncodeParts = Callable[[TextEncoder, dict[Path, list[str]], Path], None]


@dataclass
class StageReport:
    """How a stage went.

    Attributes:
        stage: its name.
        seconds: that it took.
        skipped: whether it was finished before.
        details: what it noted.
        memory: most bytes that its process had held when it ended; None: not known, as on Windows.
    """

    stage: str
    seconds: float
    skipped: bool
    details: dict[str, Any]
    memory: int | None = None


@types_checked
def train(
    dataset: InteractionDataset,
    args: GenSARTrainingArguments,
    *,
    callbacks: list[TrainerCallback] | None = None,
    reuse: str | os.PathLike[str] | None = None,
    on_stage: Callable[[StageReport], None] | None = None,
    engine: Literal["local", "ray"] = "local",
    num_workers: int = 2,
    num_gpus: float = 0.0,
) -> GenSARPipeline:
    """Train everything that GenSAR consists of, and return it ready to answer.

    Five stages, each a folder in `args.output_dir`: `data` (the dataset), `semantic` (text embeddings), `collaborative`
    (SASRec), `rqvae` (joint RQ-VAE, unique identifiers), `model` (tokenizer, generator, item encoder). A finished stage
    is skipped when the call is repeated; a killed training continues from its last checkpoint and ends with the same
    weights as an uninterrupted one. `output_dir/model` alone is enough to answer, on another machine or from the Hub.

    Args:
        dataset: catalogue and log; what its split holds out is not read by any stage.
        args: the settings of all stages.
        callbacks: for the generator's `Trainer`.
        reuse: folder of other runs; a stage that one of them has finished with the same inputs is linked.
        on_stage: called after each stage, under `torchrun` by the first process.
        engine: what encodes the texts of a large catalogue: this process, or workers of a Ray cluster (extra `[ray]`).
        num_workers: of Ray, each with a copy of the text encoder.
        num_gpus: GPUs of each worker.

    Returns:
        the pipeline in `output_dir/model`.

    Raises:
        InputError: the data cannot be trained on, the items do not fit into the memory, the output folder cannot be
            written to, is used by another process or holds other files in a stage's place, a model cannot be loaded, or
            a training diverged.
    """
    if args.push_to_hub:
        raise InputError(
            "`push_to_hub` would upload the checkpoints of a stage; leave it out, and push the finished model with "
            "`gensar push` or `pipe.push_to_hub`."
        )
    run_dir, num_items = Path(args.output_dir or "."), len(dataset.item_ids)
    refuse_too_many_items(num_items, args)
    refuse_settings(args)
    if args.eval_strategy != "no":
        check_metric(args, {"": evaluation_of(dataset, args)})
    encode_parts: EncodeParts | None = None
    if engine == "ray":
        with extra_installed("ray"):
            from gensar_hf.embeddings.ray_encoding import encode_on_ray
        encode_parts = partial(encode_on_ray, num_workers=num_workers, num_gpus=num_gpus)
    for path in (args.text_encoder, args.model_name_or_path):
        refuse_input_in_stage(path, run_dir)
    if args.model_name_or_path is not None:
        Backbone(args.model_name_or_path).check()  # before hours of training
    data_dir, embeddings = run_dir / DATA, [run_dir / name / EMBEDDINGS_FILE for name in (SEMANTIC, COLLABORATIVE)]
    items = [data_dir / "items.parquet", data_dir / "dataset.json"]
    encoder_dir = [Path(args.text_encoder)] if args.text_encoder and Path(args.text_encoder).is_dir() else []
    sasrec = [args.sasrec(num_items).to_diff_dict(), args.sasrec_epochs, args.seed, args.bf16, data_dir]
    rqvae = [args.rqvae(1, 1, num_items).to_diff_dict(), args.rqvae_passes(num_items), args.seed, args.bf16]
    upstream = [data_dir, run_dir / RQVAE, run_dir / SEMANTIC, run_dir / COLLABORATIVE / "model.safetensors"]
    inputs: dict[str, list[Any]] = {
        DATA: dataset_inputs(dataset),
        SEMANTIC: [args.text_encoder, args.seed, *encoder_dir, *items],
        COLLABORATIVE: sasrec,
        RQVAE: [*rqvae, *items, *embeddings],
        MODEL: [generator_settings(args), *upstream, embeddings[1]],
    }
    work: dict[str, Work] = {
        DATA: lambda folder, _: save_dataset(dataset, folder),
        SEMANTIC: lambda folder, aside: encode_items(dataset, args, folder, aside, encode_parts),
        COLLABORATIVE: lambda folder, aside: train_collaborative(dataset, args, folder, aside),
        RQVAE: lambda folder, aside: train_identifiers(dataset, args, embeddings, folder, aside),
        MODEL: lambda folder, aside: train_generator(dataset, args, run_dir, folder, aside, callbacks),
    }
    with locked(run_dir):
        refuse_foreign_files(run_dir, inputs)
        for name in inputs:
            is_distributed = name not in (DATA, SEMANTIC)
            report = run_stage(run_dir, name, inputs[name], work[name], is_distributed, reuse)
            logger.info("Stage %s: %s.", name, "already finished" if report.skipped else f"{report.seconds:.1f} s")
            if on_stage is not None and process_rank() == 0:
                on_stage(report)
    if not any(len(requests) for requests in dataset.split.test.values()):
        logger.warning("The dataset holds no click out, so there is nothing to evaluate the model on.")
    with damage_reported(run_dir / MODEL):
        return GenSARPipeline.from_pretrained(run_dir / MODEL)


def refuse_settings(args: GenSARTrainingArguments) -> None:
    """Refuse, before any stage, settings that `Trainer` would refuse after them: build all for a model of one weight.

    Raises:
        InputError: a package is missing, or an argument of the optimizer or the schedule does not exist.
    """
    trial = copy.copy(args)
    with tempfile.TemporaryDirectory() as folder:
        trial.output_dir, trial.report_to, trial.warmup_steps = folder, [], 0
        try:
            Trainer(torch.nn.Linear(1, 1), trial, eval_dataset=[]).create_optimizer_and_scheduler(1)
        except Exception as error:  # of whatever kind, as the settings reach many packages
            if isinstance(error, ValueError) and args.optim_target_modules:  # layers that this model does not have
                return
            reason = str(error).strip().rstrip(".")
            raise InputError(
                f"The optimizer, its schedule or `Trainer` cannot be built with these settings: {reason}; correct them."
            ) from error


def refuse_too_many_items(num_items: int, args: GenSARTrainingArguments) -> None:
    """Refuse a catalogue whose item vectors cannot be trained in the memory of this machine; a GPU's is not checked.

    Raises:
        InputError: the larger table, SASRec's or the generator's, needs more with its gradient and both moments.
    """
    if not args.use_cpu:
        return
    width = int((args.generator_config or {}).get("d_model", GenSARConfig().d_model)) * bool(args.item_vectors)
    width = max(width, args.sasrec(num_items).hidden_size)
    needed, available = 4 * 4 * num_items * width, machine_bytes()
    if needed > available:
        raise InputError(
            f"The vectors of {num_items:,} items, {width} wide, need {needed / 2**30:,.1f} GiB in training with their "
            f"gradients and the optimizer's states, and this machine has {available / 2**30:,.1f} GiB; make `d_model` "
            "in `generator_config` and `hidden_size` in `sasrec_config` smaller, or leave out rare items "
            "(`min_interactions`)."
        )


# ---- the stages


def dataset_inputs(dataset: InteractionDataset) -> list[Any]:
    """What a dataset consists of, for `files.fingerprint`."""
    frames = [dataset.items] if dataset.log is not None else [dataset.items, dataset.interactions]
    tables: list[Any] = [] if dataset.log is None else [*dataset.log.content]
    for frame in frames:
        with io.BytesIO() as buffer:
            frame.to_parquet(buffer, index=False)
            tables.append(buffer.getvalue())
    split = dataset.split
    requests = [part[task].targets for part in (split.validation, split.test) for task in TASKS]
    return [*tables, dataset.text_columns, dataset.split_method, split.train_ends, split.target_starts, *requests]


def save_dataset(dataset: InteractionDataset, folder: Path) -> dict[str, Any]:
    """Stage `data`: both tables and the split."""
    dataset.save(folder)
    events, split = dataset.events, dataset.split
    return {
        "users": events.num_users,
        "items": events.num_items,
        "events": events.num_events,
        "training events": int((split.train_ends - events.offsets[:-1]).sum()),
        "queries": len(events.query_texts),
        "test requests": {task: len(requests) for task, requests in split.test.items()},
    }


def encode_items(
    dataset: InteractionDataset,
    args: GenSARTrainingArguments,
    folder: Path,
    checkpoints: Path,
    encode_parts: EncodeParts | None = None,
) -> dict[str, Any]:
    """Stage `semantic`: the items' texts as embeddings, and the text encoder for new items."""
    texts = dataset.item_texts()
    encoder = TextEncoder.load(args.text_encoder, texts=texts, seed=args.seed)
    embeddings = encode_in_parts(encoder, texts, checkpoints, encode_parts)
    save_item_embeddings(folder / EMBEDDINGS_FILE, embeddings, dataset.item_ids)
    encoder.save(folder / "text_encoder")
    return {"model": args.text_encoder or "word statistics", "dimensions": embeddings.shape[1]}


def encode_in_parts(
    encoder: TextEncoder, texts: Sequence[str], checkpoints: Path, encode_parts: EncodeParts | None = None
) -> np.ndarray:
    """`(num_texts, dim)` float32 embeddings; what a killed call has encoded is read from its checkpoints.

    Each distinct text is encoded once. Of more than `_PART_TEXTS` the texts are sorted by length, so that the batches
    need little padding, and `checkpoint-N` holds the embeddings of the Nth part. `encode_parts` writes those that are
    missing; default: one after the other.
    """
    distinct = list(dict.fromkeys(texts))
    if len(distinct) <= _PART_TEXTS:
        return encoder.encode(texts)
    distinct.sort(key=len)
    row_of = {text: row for row, text in enumerate(distinct)}
    parts = {
        checkpoints / f"checkpoint-{number}" / EMBEDDINGS_FILE: distinct[part]
        for number, part in enumerate(row_chunks(len(distinct), _PART_TEXTS), start=1)
    }
    if encode_parts is not None:
        missing = {path: part for path, part in parts.items() if _encoded(path, part) is None}
        encode_parts(encoder, missing, checkpoints / "checkpoint-0")  # is removed with the others
    encoded: np.ndarray = np.zeros((0, 0), dtype=np.float32)
    end = 0
    for path, part in tqdm(parts.items(), desc="parts of the texts"):
        rows = _encoded(path, part)
        if rows is None:
            rows = encoder.encode(part)
            save_item_embeddings(path, rows, part)
        if not len(encoded):
            encoded = np.empty((len(distinct), rows.shape[1]), dtype=np.float32)
        encoded[end : end + len(part)] = rows
        end += len(part)
    return encoded[[row_of[text] for text in texts]]


def _encoded(path: Path, texts: list[str]) -> np.ndarray | None:
    """The embeddings of these texts; None: not encoded yet."""
    try:
        return load_item_embeddings(path, texts)
    except InputError:
        return None


def train_collaborative(
    dataset: InteractionDataset, args: GenSARTrainingArguments, folder: Path, checkpoints: Path
) -> dict[str, Any]:
    """Stage `collaborative`: SASRec on the training clicks, and its item table."""
    events, split = dataset.events, dataset.split
    windows = zip(events.offsets[:-1], split.train_ends, strict=True)
    histories = [items[items >= 0] for items in (events.items[start:end] for start, end in windows)]
    set_seed(args.seed)
    model = SASRecModel(args.sasrec(events.num_items))
    training = sasrec_training_arguments(
        str(checkpoints),
        num_train_epochs=args.sasrec_epochs,
        seed=args.seed,
        save_strategy="steps",
        save_steps=100,
        logging_strategy="no",
        logging_nan_inf_filter=False,  # otherwise the loss of a training that diverged is finite
        disable_tqdm=args.disable_tqdm,
        **{**machine_defaults(), "bf16": args.bf16, "use_cpu": args.use_cpu},
    )
    if args.sasrec_epochs >= 1:  # a part of an epoch is wanted as it is, say for a trial
        training.max_steps = num_training_steps(histories, training, model.config.max_length)
    with quiet_trainer():
        output = train_sasrec(model, histories, training, last_checkpoint(checkpoints))
    check_finite(COLLABORATIVE, {"loss": output.training_loss}, model)
    model.save_pretrained(folder)
    embeddings = model.item_embeddings().detach().float().cpu().numpy()
    save_item_embeddings(folder / EMBEDDINGS_FILE, embeddings, events.item_ids)
    return {"parameters": model.num_parameters(), "steps": output.global_step, "loss": output.training_loss}


def train_identifiers(
    dataset: InteractionDataset, args: GenSARTrainingArguments, embeddings: list[Path], folder: Path, checkpoints: Path
) -> dict[str, Any]:
    """Stage `rqvae`: the joint RQ-VAE on both embeddings, and unique identifiers."""
    item_ids, texts = dataset.item_ids, dataset.item_texts()
    semantic, collaborative = (load_item_embeddings(path, item_ids) for path in embeddings)
    set_seed(args.seed)
    model = JointRQVAE(args.rqvae(semantic.shape[1], collaborative.shape[1], len(item_ids)))
    training = TrainingArguments(
        str(checkpoints),
        num_train_epochs=args.rqvae_passes(len(item_ids)),
        per_device_train_batch_size=256 if len(item_ids) < 5000 else 1024,
        learning_rate=1e-3,
        seed=args.seed,
        save_strategy="steps",
        save_steps=500,
        logging_strategy="no",
        disable_tqdm=args.disable_tqdm,
        **{**machine_defaults(), "bf16": args.bf16, "use_cpu": args.use_cpu},
    )
    with quiet_trainer():
        train_joint_rqvae(model, semantic, collaborative, training, last_checkpoint(checkpoints))
    check_finite(RQVAE, {}, model)
    table = build_identifier_table(model, semantic, collaborative, item_ids, dataset.titles, texts)
    model.save_pretrained(folder)
    table.save(folder)
    return {"parameters": model.num_parameters(), **table.report()}


def train_generator(
    dataset: InteractionDataset,
    args: GenSARTrainingArguments,
    run_dir: Path,
    folder: Path,
    checkpoints: Path,
    callbacks: list[TrainerCallback] | None = None,
) -> dict[str, Any]:
    """Stage `model`: tokenizer and generator on all tasks, the weight of the item vectors, the item encoder."""
    set_seed(args.seed)
    item_ids = dataset.item_ids
    semantic, collaborative = (
        load_item_embeddings(run_dir / name / EMBEDDINGS_FILE, item_ids) for name in (SEMANTIC, COLLABORATIVE)
    )
    with damage_reported(run_dir / RQVAE):
        table, rqvae = IdentifierTable.load(run_dir / RQVAE), JointRQVAE.from_pretrained(run_dir / RQVAE)
    clicked = dataset.events.items[training_mask(dataset.split) & (dataset.events.items >= 0)]
    num_clicks = np.bincount(clicked, minlength=len(item_ids))
    text_encoder = TextEncoder.load(run_dir / SEMANTIC / "text_encoder")
    tokenizer, model = new_generator(dataset, args, table, semantic, text_encoder)
    tokenizer.record_tasks([])
    if isinstance(model, GenSARForConditionalGeneration) and model.config.num_items:
        # Codes made of one kind of embedding alone, an ablation, go with vectors of that kind alone.
        kinds = {"semantic": [semantic], "collaborative": [collaborative], "both": [semantic, collaborative]}
        start_item_vectors(model, kinds[rqvae.config.embeddings], num_clicks, args.seed)
        if args.item_features:
            share_item_features(model, kinds[rqvae.config.embeddings], args.seed)
    encoder = ItemEncoder(
        text_encoder,
        dataset.text_columns,
        CollaborativeMap.fit(semantic, collaborative, args.seed, num_clicks),
        rqvae,
    )
    pipe = GenSARPipeline(model, tokenizer, item_encoder=encoder)
    details: dict[str, Any] = {"parameters": model.num_parameters()}
    training = dataclasses.replace(args, output_dir=str(checkpoints))
    trainer = GenSARTrainer(pipe, training, dataset, callbacks=callbacks)
    if trainer.model is not None:
        trained = sum(part.numel() for part in trainer.model.parameters() if part.requires_grad)
        details["trained parameters"] = trained
    with quiet_trainer():
        output = trainer.train(resume_from_checkpoint=last_checkpoint(checkpoints))
    if isinstance(pipe.model, GenSARForConditionalGeneration) and pipe.model.encoder.items is not None:
        merge_features(pipe.model.encoder.items)
    check_finite(MODEL, {"loss": output.training_loss}, pipe.model)
    if args.item_weight is None and getattr(pipe.model.config, "num_items", None):
        details |= set_best_weights(pipe, dataset, args)
    if process_rank() == 0:
        pipe.save_pretrained(folder)
    return {**details, "steps": output.global_step, "loss": output.training_loss}


def set_best_weights(
    pipe: GenSARPipeline, dataset: InteractionDataset, args: GenSARTrainingArguments
) -> dict[str, list[float]]:
    """Give each task the weights of identifier and item vector that rank validation clicks best, if there are any."""
    evaluation = Evaluation(
        dataset, "validation", num_negatives=args.num_negatives, max_users=args.eval_max_users, seed=args.seed
    )
    best, config = choose_weights(pipe, evaluation.requests, evaluation.candidates), pipe.model.config
    weights = [best.get(task, config.score_weights(task == SEARCH)) for task in TASKS]
    config.identifier_weight, config.item_weight = ([pair[place] for pair in weights] for place in (0, 1))
    return {"identifier weights": config.identifier_weight, "item weights": config.item_weight}


def new_generator(
    dataset: InteractionDataset,
    args: GenSARTrainingArguments,
    table: IdentifierTable,
    text_vectors: np.ndarray | None = None,
    text_encoder: TextEncoder | None = None,
) -> tuple[GenSARTokenizer, PreTrainedModel]:
    """An untrained generator and its tokenizer: from scratch, or from the weights of `args.model_name_or_path`.

    `text_vectors` `(num_items, dim)` are the items' texts, read by `text_encoder`; without them no texts are matched.
    """
    backbone = None if args.model_name_or_path is None else Backbone(args.model_name_or_path)
    is_causal = backbone is not None and not backbone.config().is_encoder_decoder
    history_encoding = "tokens" if is_causal else str(args.history_encoding)
    options: dict[str, Any] = {
        "history_encoding": history_encoding,
        "max_history_events": args.max_history_events,
        "behavior_tokens": args.behavior_tokens,
    }
    if backbone is None:
        events = dataset.events
        used = np.unique(events.queries[training_mask(dataset.split)])
        texts = [*dataset.item_texts(), *(events.query_texts[query] for query in used if query >= 0)]
        if len(texts) > _VOCABULARY_TEXTS:
            chosen = np.random.default_rng(args.seed).choice(len(texts), _VOCABULARY_TEXTS, replace=False)
            texts = [texts[place] for place in np.sort(chosen).tolist()]
        tokenizer = GenSARTokenizer.train_from_texts(texts, table, vocab_size=args.text_vocab_size, **options)
    else:
        text_tokenizer = backbone.text_tokenizer()
        model = backbone.causal_model() if is_causal else None
        tokenizer = GenSARTokenizer.from_text_tokenizer(
            text_tokenizer,
            table,
            **options,
            decoder_only=is_causal,
            num_positions=None if model is None else context_length(model),
        )
        if model is not None:
            return tokenizer, generator_from_causal_lm(model, tokenizer)
    has_vectors = args.item_vectors and history_encoding == "events"
    config = {"num_items": table.num_trained if has_vectors else 0, **(args.generator_config or {})}
    if args.item_weight is not None:
        config["item_weight"] = args.item_weight
    is_matching = args.text_matching and history_encoding == "events"
    if is_matching and text_vectors is not None and text_encoder is not None:
        text_index = TextIndex(*titles_and_texts(table), text_vectors, text_encoder)
        tokenizer.attach_identifiers(table, text_index)
        config["text_dim"] = text_index.dim
    if backbone is not None:
        return tokenizer, generator_from_t5(backbone.path, tokenizer, **config)
    return tokenizer, generator_from_scratch(GenSARConfig(**config), tokenizer)


def generator_settings(args: GenSARTrainingArguments) -> dict[str, Any]:
    """The settings that the generator depends on: those that differ from the defaults of this machine."""
    # Another `use_cpu` would set accelerate's processes up again.
    usual = GenSARTrainingArguments(output_dir=".", use_cpu=args.use_cpu, bf16=args.bf16).to_dict()
    passed_over = _NOT_AN_INPUT | _OF_OTHER_STAGES
    return {
        name: value
        for name, value in args.to_dict().items()
        if name not in passed_over and (name == "bf16" or value != usual.get(name))
    }


# ---- running a stage


def run_stage(
    run_dir: Path,
    stage: str,
    inputs: list[Any],
    work: Work,
    is_distributed: bool = False,
    reuse: str | os.PathLike[str] | None = None,
) -> StageReport:
    """Run one stage into `run_dir/stage`, or skip it when it is finished and was made from the same inputs.

    Under `torchrun` the first process alone writes; the others take part where the work is distributed, and wait for it
    otherwise.

    Args:
        run_dir: the run's folder.
        stage: name of the stage and of its folder.
        inputs: all that the result depends on, see `files.fingerprint`.
        work: called with the folder to fill and a folder for checkpoints; returns details for `stage.json`.
        is_distributed: whether all processes do the work together (a `Trainer`).
        reuse: folder of other runs, whose finished stage with the same inputs is linked.

    Raises:
        InputError: an input is missing, the folder holds something that no stage wrote, or a figure in the details is
            not finite, as after a training that diverged.
    """
    with locked(run_dir), write_errors_reported(run_dir):
        _tidy(run_dir, stage)
        folder, mark = run_dir / stage, fingerprint(stage, *inputs)
        if reuse is not None and process_rank() == 0 and not is_finished(folder, stage, mark):
            _link_finished(folder, Path(reuse), stage, mark)
        _wait_for_all()
        skipped = is_finished(folder, stage, mark)
        if skipped:  # a card may be edited
            files = {name: digest for name, digest in (recorded_files(folder) or {}).items() if name != CARD_FILE}
            refuse_changed_stage(folder, files)
        else:
            refuse_foreign_stage(folder, stage)
        _wait_for_all()  # all have looked before the first one writes
        checkpoints = run_dir / CHECKPOINTS / f"{stage}-{fingerprint(mark, process_count())[:12]}"
        if not skipped and process_rank() == 0:
            _run(folder, stage, mark, work, checkpoints, is_distributed)
        elif not skipped and is_distributed:
            with tempfile.TemporaryDirectory() as unused:
                work(Path(unused), checkpoints)
            _wait_for_all()
        if process_rank() == 0:  # after a new result, checkpoints of other settings as well
            for path in checkpoints.parent.glob(checkpoints.name if skipped else f"{stage}-*"):
                if stage_of(path) == stage:
                    remove_checkpoints(path)
            for path in (checkpoints, checkpoints.parent):  # left empty by a kill
                with suppress(OSError):
                    path.rmdir()
        _wait_for_all()
        record = read_json(folder / STAGE_FILE)
        return StageReport(stage, record.get("seconds", 0.0), skipped, record.get("details", {}), record.get("memory"))


def _tidy(run_dir: Path, stage: str) -> None:
    """Finish or remove what killed processes have left of a stage; the run's lock must be held."""
    if process_rank() == 0:
        remove_leftovers(run_dir)
        if not (run_dir / stage).is_symlink():
            finish_saving(run_dir / stage)
            remove_leftovers(run_dir / stage)
    _wait_for_all()


def refuse_foreign_files(run_dir: Path, inputs: dict[str, list[Any]]) -> None:
    """Refuse a run that would replace somebody's files, before its first stage.

    Args:
        run_dir: the run's folder, locked.
        inputs: all that each stage depends on, in the order of the stages.

    Raises:
        InputError: the folder of a stage that has to be run holds files that are not its own, or edited ones.
    """
    is_due = False
    for stage, its_inputs in inputs.items():
        _tidy(run_dir, stage)
        is_due = is_due or not is_finished(run_dir / stage, stage, fingerprint(stage, *its_inputs))
        if is_due:
            refuse_foreign_stage(run_dir / stage, stage)
    if is_due and (run_dir / CHECKPOINTS).exists() and not (run_dir / CHECKPOINTS).is_dir():
        raise InputError(f"{run_dir / CHECKPOINTS} is a file, but checkpoints are written there; move it away.")
    _wait_for_all()


def refuse_input_in_stage(path: str | None, run_dir: Path) -> None:
    """Refuse to read what the run would replace.

    Raises:
        InputError: the file or folder lies in the folder of a stage.
    """
    if path and os.path.exists(path):
        place = Path(path).resolve()
        for stage in STAGES:
            if run_dir.resolve() / stage in (place, *place.parents):
                raise InputError(
                    f"{path} lies in {run_dir / stage}, which the training would replace; copy it elsewhere, or name "
                    "another `output_dir`."
                )


def _run(folder: Path, stage: str, mark: str, work: Work, checkpoints: Path, is_distributed: bool) -> None:
    start = time.perf_counter()
    with atomic_path(folder, replace_folder=True) as aside:
        aside.mkdir(parents=True, exist_ok=True)
        if is_distributed or stage == SEMANTIC:  # the folder is ours
            write_json(checkpoints / STAGE_FILE, {"stage": stage, "inputs_fingerprint": mark})
        details = work(aside, checkpoints)
        if is_distributed:
            _wait_for_all()  # others may still be busy with the last checkpoint, which is deleted later
        check_finite(stage, details)
        for path in aside.rglob(RECORD_FILE):
            path.unlink()
        record = {
            "stage": stage,
            "inputs_fingerprint": mark,
            "package_version": _package_version(),
            "seconds": round(time.perf_counter() - start, 3),
            "memory": _peak_memory(),
            "details": details,
            "files": content_hashes(aside),
        }
        write_json(aside / STAGE_FILE, record)


def check_finite(stage: str, details: dict[str, Any], model: torch.nn.Module | None = None) -> None:
    """Refuse the result of a training that diverged.

    Raises:
        InputError: a figure is not finite, or a weight of the model.
    """
    for name, value in details.items():
        if isinstance(value, float) and not math.isfinite(value):
            raise InputError(f"Stage {stage} diverged: its {name} is {value}; lower the learning rate.")
    if model is not None and not all(bool(weights.isfinite().all()) for weights in model.parameters()):
        raise InputError(f"Stage {stage} diverged: its weights are not finite; lower the learning rate.")


def is_finished(folder: str | os.PathLike[str], stage: str, mark: str) -> bool:
    """Whether a folder holds this stage, made from the same inputs, and none of its files was deleted since."""
    path = Path(folder) / STAGE_FILE
    if not path.is_file() or stage_of(Path(folder)) != stage or read_json(path).get("inputs_fingerprint") != mark:
        return False
    files = recorded_files(folder)
    return files is not None and all((Path(folder) / name).is_file() for name in files)


def _link_finished(folder: Path, runs: Path, stage: str, mark: str) -> bool:
    """Link another run's stage with the same inputs; whether there was one."""
    for other in sorted(runs.glob(f"*/{stage}")):
        files = recorded_files(other) or {}
        is_other = other != folder and not other.is_symlink() and is_finished(other, stage, mark)
        if is_other and not any(is_changed(other, name, digest) for name, digest in files.items()):
            if folder.is_symlink():
                folder.unlink()
            if not folder.exists():
                folder.parent.mkdir(parents=True, exist_ok=True)
                folder.symlink_to(os.path.relpath(other, folder.parent), target_is_directory=True)
                return True
    return False


@contextmanager
def quiet_trainer() -> Iterator[None]:
    """Keep the dictionary off the screen that `Trainer` prints at its end; `stage.json` has its values."""
    with contextlib.redirect_stdout(io.StringIO()):
        yield


def process_rank() -> int:
    """This process's number under `torchrun`; 0 without."""
    return int(os.environ.get("RANK", "0"))


def process_count() -> int:
    """How many processes `torchrun` has started; 1 without."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def _wait_for_all() -> None:
    if process_count() > 1:
        PartialState(cpu=not torch.accelerator.is_available()).wait_for_everyone()


def _peak_memory() -> int | None:
    """Most bytes of memory that this process has held so far; None where the system does not say."""
    try:
        import resource
    except ImportError:  # Windows
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else 1024 * peak


def _package_version() -> str:
    try:
        return metadata.version("gensar-hf")
    except metadata.PackageNotFoundError:
        return "not installed"
