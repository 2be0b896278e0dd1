"""`CheckpointedTrainer`: a `Trainer` that continues from whole checkpoints alone and deletes none but its own."""

import logging
import math
import os
import re
import secrets
import shutil
import zipfile
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from transformers import Trainer, TrainerState
from transformers.trainer_utils import TrainOutput

from gensar_hf.catalogue_loss import is_sampled
from gensar_hf.errors import InputError
from gensar_hf.files import ASIDE_MARK, RECORD_FILE, STAGE_FILE, flush, read_json, recorded_files, write_json
from gensar_hf.folders import (
    LOCK_FILE,
    content_hashes,
    is_changed,
    locked,
    remove_leftovers,
    write_errors_reported,
)

logger = logging.getLogger(__name__)

_ITEM_TABLES = ("item_table", "table")  # names of the modules
_NAME = re.compile(r"checkpoint-\d+")
# What a checkpoint of an earlier version must have, which recorded no files.
_NEEDED = ("trainer_state.json", "optimizer.pt", "scheduler.pt", "rng_state*.pth", "*.safetensors")


class RowAdamW(torch.optim.AdamW):
    """AdamW that updates the rows of a sparse gradient alone, as `torch.optim.SparseAdam` does, with weight decay.

    Moments and weights of a row stay as they are in steps that do not read the row, where those of `AdamW` decay.
    """

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        """One step of all parameters."""
        sparse = [
            (group, parameter, parameter.grad)
            for group in self.param_groups
            for parameter in group["params"]
            if parameter.grad is not None and parameter.grad.is_sparse
        ]
        for _, parameter, _ in sparse:
            parameter.grad = None
        loss = super().step(closure)
        for group, parameter, gradient in sparse:
            self._step_rows(group, parameter, gradient.coalesce())
        return loss

    def _step_rows(self, group: dict[str, Any], parameter: torch.Tensor, gradient: torch.Tensor) -> None:
        state, (beta1, beta2) = self.state[parameter], group["betas"]
        if not state:
            state["step"] = torch.zeros(())
            state["exp_avg"], state["exp_avg_sq"] = torch.zeros_like(parameter), torch.zeros_like(parameter)
        state["step"] += 1
        step, rows, values = float(state["step"]), gradient._indices()[0], gradient._values()
        mean = state["exp_avg"][rows].lerp_(values, 1 - beta1)
        square = state["exp_avg_sq"][rows].lerp_(values.square(), 1 - beta2)
        state["exp_avg"][rows], state["exp_avg_sq"][rows] = mean, square
        change = (mean / (1 - beta1**step)) / ((square / (1 - beta2**step)).sqrt() + group["eps"])
        kept = parameter[rows] * (1 - group["lr"] * group["weight_decay"])
        parameter[rows] = kept - group["lr"] * change


class CheckpointedTrainer(Trainer):
    """Records each checkpoint's files, and sums the loss over all steps, those before a resumption included.

    A training that writes checkpoints holds the lock of its `output_dir`. In one process, the item tables of large
    catalogues have sparse gradients, so that a step updates the rows of its batch alone (`RowAdamW`).
    """

    _loss_before = 0.0  # summed over the steps before the resumption
    _loss_sum: torch.Tensor  # over all steps, added in one order whether resumed or not
    _num_kept: int | None = None  # `save_total_limit`
    _has_sparse = False  # gradients

    def train(self, resume_from_checkpoint: str | bool | None = None, *args: Any, **kwargs: Any) -> TrainOutput:
        """As `Trainer.train`; with `True` the newest whole checkpoint is continued.

        Raises:
            InputError: the checkpoint is damaged, `output_dir` holds checkpoints of another program, another process
                writes there, or the disk is full.
        """
        settings: Any = self.args
        folder = Path(settings.output_dir)
        if str(settings.save_strategy) in ("no", "SaveStrategy.NO"):
            return self._train(resume_from_checkpoint, *args, **kwargs)
        with locked(folder), write_errors_reported(folder):
            remove_leftovers(folder)
            refuse_foreign_checkpoints(folder)
            # Transformers would also delete folders such as `checkpoint-best`, whoever made them.
            self._num_kept, settings.save_total_limit = settings.save_total_limit, None
            try:
                return self._train(resume_from_checkpoint, *args, **kwargs)
            finally:
                settings.save_total_limit = self._num_kept

    def _train(self, resume_from_checkpoint: str | bool | None, *args: Any, **kwargs: Any) -> TrainOutput:
        if resume_from_checkpoint is True:
            resume_from_checkpoint = last_checkpoint(Path(str(self.args.output_dir)))
            if resume_from_checkpoint is None:
                raise InputError(f"{self.args.output_dir} holds no checkpoint that can be continued; train from start.")
        self._loss_before = 0.0
        if resume_from_checkpoint:
            path = Path(resume_from_checkpoint)
            if damage := _damage_of(path):
                raise InputError(f"{path} cannot be continued: {damage}; name an earlier checkpoint, or none.")
            if (path / RECORD_FILE).is_file():
                self._loss_before = float(read_json(path / RECORD_FILE).get("loss_sum", 0))
            if self._is_last(state := TrainerState.load_from_json(str(path / "trainer_state.json"))):
                self._load_from_checkpoint(str(path))
                self.state = state
                if self.args.load_best_model_at_end and state.best_model_checkpoint:
                    self._load_best_model()
                loss = self._loss_before / max(state.global_step, 1)
                return TrainOutput(state.global_step, loss, {"train_loss": loss})
        output = super().train(resume_from_checkpoint or None, *args, **kwargs)
        loss = self._loss_sum.item() / max(self.state.global_step, 1)
        return output._replace(training_loss=loss, metrics={**output.metrics, "train_loss": loss})

    def _inner_training_loop(self, *args: Any, **kwargs: Any) -> TrainOutput:
        self._loss_sum = torch.tensor(self._loss_before, dtype=torch.float32, device=self.args.device)
        return super()._inner_training_loop(*args, **kwargs)

    def training_step(self, *args: Any, **kwargs: Any) -> torch.Tensor:
        """As in transformers; its loss is summed."""
        loss = super().training_step(*args, **kwargs)
        self._loss_sum += loss
        return loss

    def create_optimizer(self, *args: Any, **kwargs: Any) -> Any:
        """As in transformers, with `RowAdamW` for a model with a table of many items."""
        settings, model = self.args, self.model
        is_adamw = str(settings.optim).rpartition(".")[2].lower() in ("adamw_torch", "adamw_torch_fused")
        if (
            self.optimizer is None
            and model is not None
            and is_adamw
            and settings.world_size == 1
            and settings.n_gpu < 2
        ):
            for name, module in model.named_modules():
                is_table = isinstance(module, torch.nn.Embedding) and name.rpartition(".")[2] in _ITEM_TABLES
                if is_table and is_sampled(module.num_embeddings) and all(p.requires_grad for p in module.parameters()):
                    module.sparse = self._has_sparse = True
            if self._has_sparse:
                self.optimizer_cls_and_kwargs = RowAdamW, self.get_optimizer_cls_and_kwargs(settings)[1]
        return super().create_optimizer(*args, **kwargs)

    def _clip_grad_norm(self, model: Any) -> Any:
        if not self._has_sparse:
            return super()._clip_grad_norm(model)
        parts = []
        for parameter in model.parameters():
            part = parameter
            if parameter.grad is not None and parameter.grad.is_sparse:
                parameter.grad = parameter.grad.coalesce()
                values = parameter.grad._values()  # the gradient's own, which the clipping scales
                part = torch.nn.Parameter(torch.empty_like(values))
                part.grad = values
            parts.append(part)
        return self.accelerator.clip_grad_norm_(parts, self.args.max_grad_norm)

    def _is_last(self, state: TrainerState) -> bool:
        """Whether a checkpoint is that of the last step, after which `Trainer` would take one more."""
        settings: Any = self.args
        if self.is_deepspeed_enabled or self.is_fsdp_enabled:
            return False
        if settings.max_steps > 0:
            return state.global_step >= settings.max_steps
        return state.global_step >= state.max_steps and state.num_train_epochs == math.ceil(settings.num_train_epochs)

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        run_dir = Path(self._get_output_dir(trial=trial))
        folder = run_dir / f"checkpoint-{self.state.global_step}"
        if self.args.should_save:
            write_json(folder / RECORD_FILE, {"files": None})  # ours, and not complete
        super()._save_checkpoint(model, trial)
        self.accelerator.wait_for_everyone()
        if self.args.should_save:
            for path in [*folder.rglob("*"), folder]:
                flush(path)
            loss_sum = str(self._loss_sum.item())
            write_json(folder / RECORD_FILE, {"files": content_hashes(folder), "loss_sum": loss_sum})
            own = [path for path in run_dir.glob("checkpoint-*") if _NAME.fullmatch(path.name)]
            own = [path for path in own if (path / RECORD_FILE).is_file() and path != folder]
            own.sort(key=lambda path: path.stat().st_mtime, reverse=True)
            best = self.state.best_model_checkpoint
            kept = {folder, *([Path(best)] if best else [])}
            for path in own:
                if len(kept) < (self._num_kept or len(own) + 2):
                    kept.add(path)
                elif path not in kept:
                    _remove_checkpoint(path)


def last_checkpoint(checkpoints: Path) -> str | None:
    """The newest whole checkpoint in a `Trainer`'s `output_dir`; a warning names those that are passed over."""
    paths = [path for path in checkpoints.glob("checkpoint-*") if _NAME.fullmatch(path.name)]
    for path in sorted(paths, key=lambda path: int(path.name.rpartition("-")[2]), reverse=True):
        damage = _damage_of(path)
        if damage is None:
            logger.info("Going on from %s.", path)
            return str(path)
        logger.warning("%s is passed over: %s.", path, damage)
    return None


def _damage_of(path: Path) -> str | None:
    """What makes a checkpoint useless."""
    files = recorded_files(path)
    if files is None:
        missing = [name for name in _NEEDED if not any(path.glob(name))]
        if missing:
            return f"it was not finished, {missing[0]} is missing"
        if (path / RECORD_FILE).is_file():  # killed before; the loss until then is not known either
            return "it was not finished, its files were not recorded"
        damaged = [file.name for name in _NEEDED for file in path.glob(name) if not _is_readable(file)]
        return f"{damaged[0]} is damaged" if damaged else None
    for name, digest in files.items():
        if not (path / name).is_file():
            return f"{name} is missing"
        if is_changed(path, name, digest):
            return f"{name} is damaged"
    return None


def _is_readable(path: Path) -> bool:
    """Whether a file that `Trainer` wrote is whole, as its own format tells; nothing in it is run."""
    try:
        if path.suffix == ".json":
            TrainerState.load_from_json(str(path))
        elif path.suffix == ".safetensors":
            with safe_open(path, "pt"):
                pass
        else:  # torch writes archives with checksums
            with zipfile.ZipFile(path) as archive:
                return archive.testzip() is None
    except Exception:  # damage takes many forms
        return False
    return True


def refuse_foreign_checkpoints(folder: Path) -> None:
    """Refuse an `output_dir` with checkpoints of another program, which a training could overwrite.

    Raises:
        InputError: there is one.
    """
    if (folder / STAGE_FILE).is_file():  # the checkpoints of a stage
        return
    for path in folder.glob("checkpoint-*"):
        if _NAME.fullmatch(path.name) and not (path / RECORD_FILE).is_file():
            settings: Any = {}
            if (path / "training_args.json").is_file():  # an earlier version wrote it
                settings = read_json(path / "training_args.json")
            if "text_query_share" not in settings and any(path.iterdir()):
                raise InputError(
                    f"{path} was not written by this package, and a checkpoint of this training would replace it; name "
                    "another `output_dir`, or move it away."
                )


def remove_checkpoints(folder: Path) -> None:
    """Delete the checkpoints of a stage, and their folder if nothing else is in it."""
    remove_leftovers(folder)
    for path in folder.glob("checkpoint-*"):
        if _NAME.fullmatch(path.name):
            _remove_checkpoint(path)
    for name in (LOCK_FILE, STAGE_FILE):  # without its record the folder is empty, also after a kill
        (folder / name).unlink(missing_ok=True)
    for inner in (folder, folder.parent):
        try:
            inner.rmdir()
        except OSError:  # somebody's file is in it
            return


def _remove_checkpoint(path: Path) -> None:
    """Delete a folder that nobody can take for a checkpoint meanwhile."""
    aside = path.with_name(f".{path.name}{ASIDE_MARK}{secrets.token_hex(4)}")
    os.rename(path, aside)
    shutil.rmtree(aside, ignore_errors=True)
