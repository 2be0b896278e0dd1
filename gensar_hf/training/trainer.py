"""`GenSARTrainer`: a `transformers.Trainer` for the generator of a pipeline."""

import contextlib
import copy
import dataclasses
import logging
import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader
from transformers import PreTrainedModel, set_seed
from transformers.trainer_callback import PrinterCallback, ProgressCallback, TrainerCallback
from transformers.trainer_utils import TrainOutput, speed_metrics

from gensar_hf.checkpoints import CheckpointedTrainer
from gensar_hf.data import InteractionDataset, training_mask
from gensar_hf.data.text_queries import TextQueries
from gensar_hf.errors import InputError, shown, types_checked
from gensar_hf.evaluation import Evaluation, validation_metrics
from gensar_hf.files import ASIDE_MARK, write_json
from gensar_hf.generator.adapters import (
    AdapterBase,
    add_adapter,
    grow_to,
    lora_config,
    merge_adapter,
    neighbors_of_marked_items,
    save_adapter,
)
from gensar_hf.generator.examples import (
    MOST_EXAMPLES,
    ExampleCollator,
    ExampleRows,
    ExampleSampler,
    TrainingExamples,
    batches_per_step,
)
from gensar_hf.generator.modeling_gensar import GenSARForConditionalGeneration
from gensar_hf.generator.prompts import Task
from gensar_hf.hub import push_errors_reported
from gensar_hf.identifiers import IdentifierTable
from gensar_hf.pipeline import GenSARPipeline, saving_model
from gensar_hf.training.arguments import GenSARTrainingArguments

logger = logging.getLogger(__name__)

MIN_STEPS = 300  # fewer leave a generator untrained, however small the log
MEASURES = "hr@5", "hr@10", "ndcg@5", "ndcg@10"
DEFAULT_LORA_RANK = 16  # of a causal language model


class ProgressBar(ProgressCallback):
    """The progress bar of the steps, with the latest loss, and one line an evaluation."""

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
        """Show the loss behind the bar."""
        if state.is_world_process_zero and self.training_bar is not None and logs and "loss" in logs:
            self.training_bar.set_postfix_str(f"loss {float(logs['loss']):.2f}", refresh=False)

    def on_evaluate(self, args: Any, state: Any, control: Any, metrics: Any = None, **kwargs: Any) -> None:
        """Write the step's NDCG@10."""
        if state.is_world_process_zero and self.training_bar is not None and metrics:
            shown = {name: value for name, value in metrics.items() if name.endswith("ndcg@10")}
            text = ", ".join(f"{name} {value:.4f}" for name, value in shown.items())
            self.training_bar.write(f"step {state.global_step}: {text}")


class GenSARTrainer(CheckpointedTrainer):
    """Trains the generator of a pipeline on all tasks; evaluates with HR@k and NDCG@k on held-out clicks.

    Args:
        pipe: as `GenSARPipeline.from_pretrained` or `train` return it; its model is trained in place.
        args: a `lora_rank` above 0 trains LoRA, the code tokens and the vectors of items that were added, and leaves
            all other weights as they are; `save_model` then writes an adapter.
        train_dataset: matched to the pipeline's catalogue by item id. What its split holds out is not read.
        eval_dataset: evaluation uses its validation requests; a mapping of names to datasets prefixes the metrics
            with the names. Default: `train_dataset`.
        callbacks, optimizers, …: as for `Trainer`.

    Raises:
        InputError: the dataset has an item that the catalogue lacks, no training events, or, with `eval_strategy`, no
            validation requests.
    """

    @types_checked
    def __init__(
        self,
        pipe: GenSARPipeline,
        args: GenSARTrainingArguments,
        train_dataset: InteractionDataset | None = None,
        eval_dataset: InteractionDataset | Mapping[str, InteractionDataset] | None = None,
        *,
        callbacks: list[TrainerCallback] | None = None,
        **kwargs: Any,
    ) -> None:
        set_seed(args.seed)
        self.pipe, self.dataset = pipe, train_dataset
        self._evaluations: dict[int, tuple[InteractionDataset, Evaluation]] = {}
        args = copy.copy(args)
        self._steps_follow_epochs = args.max_steps <= 0
        if train_dataset is not None:
            pipe.tokenizer.catalogue.item_rows(train_dataset.item_ids)  # all are known, or the pipeline stays as it is
        self._scalars: set[str] = set()  # names of parameters that FSDP has made vectors of
        self._base: AdapterBase | None = None  # with LoRA, the model that the adapter is for
        model: Any = self._prepare_model(args)
        if train_dataset is not None:
            split = train_dataset.split
            text_queries = TextQueries.of_dataset(train_dataset) if args.text_query_share else None
            self._examples = TrainingExamples(
                pipe.tokenizer, train_dataset.events, split.train_ends, split.target_starts, text_queries
            )
            self._tasks = self._sampler(args).tasks  # complains if there is nothing to train on
        self._batch_sizes = args.per_device_train_batch_size, args.gradient_accumulation_steps
        tune_for_cpu(args, pipe.model, pipe.tokenizer.history_encoding)
        if self._steps_follow_epochs and train_dataset is not None:
            args.max_steps = self._num_steps(args)
        super().__init__(
            model=model,
            args=args,
            data_collator=ExampleCollator(pipe.tokenizer),
            train_dataset=None,
            eval_dataset=eval_dataset if eval_dataset is not None else train_dataset,
            processing_class=pipe.tokenizer,
            callbacks=callbacks,
            **kwargs,
        )
        for callback in (ProgressCallback, PrinterCallback):
            self.remove_callback(callback)
        if not args.disable_tqdm:
            self.add_callback(ProgressBar())
        if args.eval_strategy != "no":  # complains now, and not after the first steps
            datasets: Any = self.eval_dataset
            by_name = datasets if isinstance(datasets, Mapping) else {"": datasets}
            for dataset in by_name.values():
                pipe.tokenizer.catalogue.item_rows(dataset.item_ids)
            check_metric(args, {name: self._evaluation(dataset) for name, dataset in by_name.items()})

    def _prepare_model(self, args: GenSARTrainingArguments) -> Any:
        """The pipeline's model with room for items that are trained for the first time, and with LoRA if wanted."""
        pipe = self.pipe
        if pipe.adapter is not None:  # of an earlier training
            pipe.model, pipe.adapter, pipe.name_or_path = merge_adapter(pipe.adapter), None, None
        rank = args.lora_rank
        if rank is None:
            rank = DEFAULT_LORA_RANK if pipe.tokenizer.decoder_only else 0
        table, marked = pipe.tokenizer.identifiers, self._with_new_items_marked()
        num_vectors = getattr(pipe.model.config, "num_items", 0)
        neighbors = neighbors_of_marked_items(table, marked) if marked is not table and num_vectors else None
        if neighbors is not None or rank:
            base = AdapterBase.of(pipe.model, pipe.name_or_path or "", neighbors=neighbors)
            grow_to(pipe.model, base)
            self._base = base if rank else None
        if marked is not table:
            pipe.tokenizer.attach_identifiers(marked)
        if rank == 0:
            return pipe.model
        config = lora_config(
            pipe.model,
            pipe.tokenizer.code_token_ids.tolist(),
            rank,
            alpha=2 * rank,
            target_modules=args.lora_target_modules,
            item_rows=range(num_vectors, getattr(pipe.model.config, "num_items", 0)),
        )
        pipe.adapter = add_adapter(pipe.model, config)
        return pipe.adapter

    def _with_new_items_marked(self) -> IdentifierTable:
        """The catalogue, its added items marked that the training clicks for the first time."""
        table = self.pipe.tokenizer.identifiers
        if self.dataset is None:
            return table
        events, split = self.dataset.events, self.dataset.split
        is_target = training_mask(split) & (np.arange(events.num_events) >= split.target_starts[events.event_users()])
        clicked = {events.item_ids[row] for row in np.unique(events.items[is_target & (events.items >= 0)])}
        new_items = [
            item_id for item_id in table.item_ids[table.num_trained + table.num_marked :] if item_id in clicked
        ]
        return table.mark_trained(new_items) if new_items else table

    # ---- data

    def _num_steps(self, args: Any) -> int:
        """Steps of `num_train_epochs` passes over the training events, `MIN_STEPS` at least."""
        targets_per_row = MOST_EXAMPLES if self.pipe.tokenizer.history_encoding == "events" else 1
        num_targets = args.num_train_epochs * self._examples.is_target.sum()
        return max(MIN_STEPS, round(num_targets / (targets_per_row * rows_per_step(args))))

    def get_train_dataloader(self) -> DataLoader:
        """Rows of examples for all steps, drawn as they are read."""
        if self.dataset is None:
            raise InputError("`GenSARTrainer` has no `train_dataset`; give an InteractionDataset to train on.")
        args: Any = self.args
        tokenizer = self.pipe.tokenizer
        is_packed = tokenizer.history_encoding == "events"
        step_size = rows_per_step(args)
        # Only one process sorts: several would each have to draw all rows of a step.
        is_sorted = args.gradient_accumulation_steps > 1 and args.world_size == 1
        num_rows = args.max_steps * step_size
        # Room for a whole history and its instruction, or for many small examples side by side.
        max_positions = 1 + tokenizer.max_history_events if is_packed else 0
        self.train_dataset = ExampleRows(self._sampler(args), num_rows, max_positions, step_size if is_sorted else 1)
        return super().get_train_dataloader()

    def _sampler(self, args: Any) -> ExampleSampler:
        tokenizer = self.pipe.tokenizer
        weights = None if args.task_weights is None else {Task(name): w for name, w in args.task_weights.items()}
        return ExampleSampler(
            self._examples,
            weights,
            window=tokenizer.max_history_events,
            max_target_tokens=args.max_target_tokens if tokenizer.history_encoding == "events" else 0,
            seed=args.seed,
            item_vectors=getattr(self.pipe.model.config, "num_items", 0) > 0,
            text_query_share=args.text_query_share or 0.0,
        )

    def init_hf_repo(self, *args: Any, **kwargs: Any) -> None:
        """As `Trainer.init_hf_repo`; a Hub that cannot be reached is one sentence."""
        with push_errors_reported(str(self.args.hub_model_id or Path(str(self.args.output_dir)).name)):
            super().init_hf_repo(*args, **kwargs)

    # ---- training

    def train(self, resume_from_checkpoint: str | bool | None = None, *args: Any, **kwargs: Any) -> TrainOutput:
        """Train; the pipeline answers with the trained model afterwards. Arguments as for `Trainer.train`."""
        if self.dataset is not None and self.pipe.tokenizer.trained_tasks is not None:
            self.pipe.tokenizer.record_tasks(self._tasks)
        output = super().train(resume_from_checkpoint, *args, **kwargs)
        self._answer_with_trained()
        return output

    def _prepare_for_training(self, *args: Any, **kwargs: Any) -> Any:
        """As `Trainer` wraps the model; with FSDP2 the tables that share one weight are one unit."""
        if self.accelerator.is_fsdp2:
            self._scalars |= set(flatten_scalars(self.model))
            group_tied_tables(self.accelerator, self.model)
        return super()._prepare_for_training(*args, **kwargs)

    def _answer_with_trained(self) -> None:
        """Let the pipeline answer with the trainer's model."""
        self.pipe.model = self._plain_model().eval()
        if self._base is None:
            self.pipe.name_or_path = None  # that folder holds the model as it was before
        else:
            self.pipe.adapter = self.accelerator.unwrap_model(self.model, keep_fp32_wrapper=False)

    def _hp_search_setup(self, trial: Any) -> None:
        """As `Trainer` sets a trial up, whose batch sizes and epochs are those before `tune_for_cpu`."""
        args: Any = self.args
        args.per_device_train_batch_size, args.gradient_accumulation_steps = self._batch_sizes
        super()._hp_search_setup(trial)
        self._batch_sizes = args.per_device_train_batch_size, args.gradient_accumulation_steps
        tune_for_cpu(args, self.pipe.model, self.pipe.tokenizer.history_encoding)
        if trial is not None:
            self._train_batch_size = args.train_batch_size
            self.create_accelerator_and_postprocess()
        if self._steps_follow_epochs and self.dataset is not None:
            args.max_steps = self._num_steps(args)

    def _plain_model(self) -> PreTrainedModel:
        """The generator, out of what wraps it; LoRA layers stay in it."""
        model: Any = self.accelerator.unwrap_model(self.model, keep_fp32_wrapper=False)
        return model.get_base_model() if hasattr(model, "peft_config") and hasattr(model, "get_base_model") else model

    def hyperparameter_search(self, *args: Any, **kwargs: Any) -> Any:
        """As `Trainer.hyperparameter_search`; each trial starts from the present model, and so does a later `train`.

        The sum of the metrics is maximized unless `compute_objective` and `direction` say otherwise.
        """
        name = self.pipe.name_or_path
        start: Any = copy.deepcopy(self.model)
        self.model_init = lambda: copy.deepcopy(start)
        kwargs.setdefault("direction", "maximize")
        try:
            return super().hyperparameter_search(*args, **kwargs)
        finally:
            self.model = self.model_wrapped = self.call_model_init()
            self._answer_with_trained()
            self.pipe.name_or_path = name

    # ---- evaluation

    def evaluate(  # type: ignore[override]
        self,
        eval_dataset: InteractionDataset | Mapping[str, InteractionDataset] | str | None = None,
        ignore_keys: list[str] | None = None,
        metric_key_prefix: str = "eval",
    ) -> dict[str, float]:
        """HR@k and NDCG@k on the validation requests of a dataset, against sampled candidates.

        Args:
            eval_dataset: default: the trainer's.
            ignore_keys: of no effect.
            metric_key_prefix: of the metrics' names.

        Returns:
            `eval_recommendation_ndcg@10`, `eval_search_hr@5`, …, and `eval_ndcg@10`, the mean over the tasks. Of
            several datasets also the mean over the datasets.

        Raises:
            InputError: the dataset has no validation requests.
        """
        dataset: Any = self.eval_dataset if eval_dataset is None else eval_dataset
        if isinstance(dataset, str):
            dataset = self.eval_dataset[dataset]  # type: ignore[index]
        if isinstance(dataset, Mapping):
            metrics: dict[str, float] = {}
            for name, part in dataset.items():
                metrics |= self.evaluate(part, ignore_keys, f"{metric_key_prefix}_{name}")
            for measure in MEASURES:
                per_dataset = [metrics[f"{metric_key_prefix}_{name}_{measure}"] for name in dataset]
                metrics[f"{metric_key_prefix}_{measure}"] = float(np.mean(per_dataset))
            return metrics
        if dataset is None:
            raise InputError("There is nothing to evaluate on; give an InteractionDataset as `eval_dataset`.")
        start = time.time()
        evaluation = self._evaluation(dataset)
        pipe = copy.copy(self.pipe)
        pipe.model = self._plain_model()
        values = validation_metrics(pipe, evaluation)
        for measure in MEASURES:
            values[measure] = float(np.mean([value for name, value in values.items() if name.endswith(f"_{measure}")]))
        metrics = {f"{metric_key_prefix}_{name}": value for name, value in values.items()}
        num_requests = sum(len(sets) for sets in evaluation.candidates.values())
        metrics |= speed_metrics(metric_key_prefix, start, num_samples=num_requests)
        self.log(metrics)
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics

    def _evaluation(self, dataset: InteractionDataset) -> Evaluation:
        """The validation requests of a dataset and their candidates, drawn at the first call."""
        if id(dataset) not in self._evaluations:
            args: Any = self.args
            self._evaluations[id(dataset)] = dataset, evaluation_of(dataset, args)
        return self._evaluations[id(dataset)][1]

    # ---- saving

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Write a folder that `GenSARPipeline.from_pretrained` loads: a model, or with LoRA an adapter.

        Raises:
            InputError: an adapter for a model that is in no folder, because it has been trained since it was loaded, or
                as for `GenSARPipeline.save_pretrained`.
        """
        folder = output_dir or self.args.output_dir or "."
        if self._base is not None and not self._base.name and not _internal_call:
            raise InputError(
                "An adapter needs the folder of the model that it is for, and this one was trained after it was "
                "loaded. Write the whole model with `pipe.save_pretrained`, or save it before a training with LoRA."
            )
        if _internal_call:  # a checkpoint
            super().save_model(folder, _internal_call)
            return
        if self._base is not None and Path(self._base.name).resolve() == Path(folder).resolve():
            raise InputError(f"{folder} holds the model that the adapter is for; name another folder, beside it.")
        with saving_model(folder) if self.args.should_save else contextlib.nullcontext(folder) as aside:
            super().save_model(str(aside))
            if self.args.should_save:
                self.pipe.save_extras(aside)
        if self.args.should_save and self._base is None:
            self.pipe.name_or_path = folder

    def _save(self, output_dir: str | None = None, state_dict: dict | None = None) -> None:
        """As `Trainer` saves; the settings as JSON, not as a pickled file."""
        folder = Path(output_dir or self.args.output_dir or ".")
        if state_dict is not None:
            state_dict |= {name: state_dict[name].reshape(()) for name in self._scalars & state_dict.keys()}
        base = self._base
        if base is None:
            super()._save(str(folder), state_dict)
        elif self.args.should_save:
            if base.name and Path(base.name).is_dir():  # as seen from the adapter, so that both may be moved together
                final = folder.parent if ASIDE_MARK in folder.name else folder
                base = dataclasses.replace(base, name=os.path.relpath(base.name, final))
            save_adapter(self.accelerator.unwrap_model(self.model), folder, base)
            self.pipe.tokenizer.save_pretrained(folder)
        if self.args.should_save:
            (folder / "training_args.bin").unlink(missing_ok=True)
            write_json(folder / "training_args.json", self.args.to_dict())

    def push_to_hub(self, repo_id: str | None = None, **kwargs: Any) -> Any:  # type: ignore[override]
        """Upload model, tokenizer, identifiers and card in one commit.

        Args:
            repo_id: such as `"me/films"`; default: `args.hub_model_id`.
            **kwargs: as for `GenSARPipeline.push_to_hub`.
        """
        name = repo_id or self.args.hub_model_id
        if not name:
            raise InputError("Name the repository: `trainer.push_to_hub('me/films')`, or set `hub_model_id`.")
        return self.pipe.push_to_hub(name, **kwargs)


def evaluation_of(dataset: InteractionDataset, args: GenSARTrainingArguments) -> Evaluation:
    """The validation requests of a dataset, and their candidates.

    Raises:
        InputError: there are no requests.
    """
    evaluation = Evaluation(
        dataset,
        part="validation",
        num_negatives=args.num_negatives,
        max_users=args.eval_max_users,
        skip_clicked=args.exclude_seen,
        seed=args.seed,
    )
    if not evaluation.candidates:
        raise InputError(
            "The dataset has no validation requests to evaluate on: no user has three clicks of one kind and an item "
            "left to click; give another `eval_dataset`, or train with eval_strategy='no'."
        )
    return evaluation


def check_metric(args: GenSARTrainingArguments, evaluations: Mapping[str, Evaluation]) -> None:
    """Refuse a `metric_for_best_model` that no evaluation has, as the first one would after many steps.

    Args:
        args: of the training.
        evaluations: by the name of their dataset, `""` for the only one.

    Raises:
        InputError: there is no such metric.
    """
    known = list(MEASURES)
    for name, evaluation in evaluations.items():
        parts = [name] if name else []
        for task in [[], *([task] for task in evaluation.candidates)]:
            known += ["_".join([*parts, *task, measure]) for measure in MEASURES]
    metric = args.metric_for_best_model
    if metric is not None and metric.removeprefix("eval_") not in known:
        raise InputError(
            f"`metric_for_best_model` is {shown(metric)}, which no evaluation has; name one of "
            f"{', '.join(dict.fromkeys(known))}."
        )


def flatten_scalars(model: Any) -> list[str]:
    """Make vectors of the parameters that are single numbers, which FSDP2 refuses, in place; returns their names."""
    scalars = [name for name, parameter in model.named_parameters() if parameter.ndim == 0]
    for name in scalars:
        owner, _, own_name = name.rpartition(".")
        parameter = model.get_parameter(name)
        flat = torch.nn.Parameter(parameter.detach().reshape(1), requires_grad=parameter.requires_grad)
        setattr(model.get_submodule(owner), own_name, flat)
    return scalars


def group_tied_tables(accelerator: Any, model: Any) -> None:
    """Make one unit of FSDP2 of all modules that share the table of token embeddings, in place.

    T5 has four of them: its table, those of encoder and decoder, and the head. accelerate 1.15 groups the first and the
    last only, and torch refuses a parameter in two groups.
    """
    from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard

    weight = model.get_input_embeddings().weight
    owners = [module for module in model.modules() if any(own is weight for own in module.parameters(recurse=False))]
    if len(owners) <= 2 or isinstance(owners[0], FSDPModule):
        return
    plugin, mesh = accelerator.state.fsdp_plugin, getattr(accelerator, "torch_device_mesh", None)
    fully_shard(
        owners,
        mesh=mesh[tuple(accelerator.parallelism_config.fsdp_dim_names)] if mesh is not None else None,
        reshard_after_forward=False,  # the decoder reads the table after the encoder
        mp_policy=plugin.mixed_precision_policy or MixedPrecisionPolicy(),
        offload_policy=plugin.cpu_offload,
    )


def rows_per_step(args: Any) -> int:
    """Rows of one optimizer step, over all devices, processes and accumulated batches."""
    return args.train_batch_size * args.gradient_accumulation_steps * args.world_size


def tune_for_cpu(args: Any, model: Any, history_encoding: str) -> None:
    """Compute the same steps in the way that takes least time without a GPU; changes `args` in place."""
    if args.device.type != "cpu":
        return
    if isinstance(model, GenSARForConditionalGeneration):
        # Attention with a learned bias has no fused kernel on CPUs; what SDPA falls back to is slower than eager.
        model.set_attn_implementation("eager")
    num_batches = batches_per_step(args.train_batch_size, history_encoding)
    args.per_device_train_batch_size //= num_batches
    args.gradient_accumulation_steps *= num_batches
