"""Adapters: LoRA and trainable token and item rows on top of a frozen model (PEFT).

An adapter's folder holds the files of PEFT (`adapter_config.json`, `adapter_model.safetensors`) and
`adapter_base.json`: a fingerprint of the base model, and how that model is enlarged before the adapter fits.
Works with encoder-decoders (T5, tied or untied) and with decoder-only models (Llama, Qwen, …).
"""

import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from safetensors.torch import load_file
from transformers import PreTrainedModel

from gensar_hf.errors import InputError
from gensar_hf.files import CARD_FILE, damage_reported, fingerprint, read_json, write_json
from gensar_hf.generator.item_vectors import add_item_vectors, item_vectors_of
from gensar_hf.identifiers import IdentifierTable
from gensar_hf.model_folder import COPY_AGAIN

if TYPE_CHECKING:  # takes seconds to import, and few models have an adapter
    from peft import LoraConfig, PeftModel

ADAPTER_CONFIG_FILE, ADAPTER_WEIGHTS_FILE = "adapter_config.json", "adapter_model.safetensors"
ADAPTER_BASE_FILE = "adapter_base.json"
_SAMPLED_VALUES = 64
# Settings of PEFT that copy layers, take regular expressions or compute for long, and that no adapter here has.
_REFUSED_SETTINGS = (
    "layer_replication", "rank_pattern", "alpha_pattern", "layers_pattern", "loftq_config", "eva_config",
    "corda_config", "exclude_modules",
)  # fmt: skip
_NO_NEIGHBORS = np.zeros((0, 0), dtype=np.int64)


@dataclass(frozen=True)
class AdapterBase:
    """The base model of an adapter, and how it is enlarged before the adapter fits.

    Attributes:
        name: folder or Hub name of the model; a relative folder is relative to the adapter's.
        fingerprint: `model_fingerprint` of the model in that folder.
        vocab_size: rows of the token tables, at least as many as the model has.
        neighbors: `(num_new, k)` rows of the model's item table, whose mean is a new item's first vector; empty for a
            model without item vectors.
    """

    name: str
    fingerprint: str
    vocab_size: int
    neighbors: np.ndarray = field(default_factory=_NO_NEIGHBORS.copy)

    @classmethod
    def of(
        cls, model: PreTrainedModel, name: str, vocab_size: int | None = None, neighbors: np.ndarray | None = None
    ) -> "AdapterBase":
        """Describe a model that has just been loaded from `name`, before it is changed; see the class."""
        num_tokens = len(model.get_input_embeddings().weight)  # type: ignore[arg-type]
        neighbors = _NO_NEIGHBORS if neighbors is None else np.asarray(neighbors, dtype=np.int64)
        return cls(name, model_fingerprint(model), max(num_tokens, vocab_size or 0), neighbors)


def model_fingerprint(model: PreTrainedModel) -> str:
    """A hash of names, shapes and some values of all parameters.

    The values are rounded to bfloat16, so that a model loaded in that precision has the same fingerprint, and sampled,
    so that a large model takes a second or two.
    """
    parts: list[Any] = [model.config.model_type]
    for name, parameter in model.named_parameters():
        values = parameter.detach().flatten()
        indices = torch.linspace(0, len(values) - 1, min(_SAMPLED_VALUES, len(values)), dtype=torch.float64).long()
        sample = values[indices.to(values.device)].to(torch.bfloat16).cpu().view(torch.int16)
        parts += [name, tuple(parameter.shape), sample.numpy()]
    return fingerprint(*parts)


def neighbors_of_marked_items(before: IdentifierTable, after: IdentifierTable) -> np.ndarray:
    """The neighbors, `(num_new, k)`, of the items that `after = before.mark_trained(…)` has marked, in its order.

    Their item vectors start as the means of the neighbors' vectors (`grow_to`, `add_item_vectors`).
    """
    marked = after.item_ids[after.num_trained + before.num_marked : after.num_trained + after.num_marked]
    rows = np.array([before.index_of(item_id) - before.num_trained for item_id in marked], dtype=np.int64)
    return before.neighbors[rows]


def lora_config(
    model: PreTrainedModel,
    token_ids: Sequence[int],
    rank: int = 8,
    alpha: float = 16,
    dropout: float = 0.0,
    target_modules: Sequence[str] | None = None,
    item_rows: Sequence[int] = (),
) -> "LoraConfig":
    """LoRA (Hu et al. 2021) on some layers, and fully trained rows of the token and item tables.

    Args:
        model: that the adapter is for.
        token_ids: tokens whose rows are trained in the input table and in an untied output table.
        rank: of the LoRA matrices.
        alpha: their product is scaled by `alpha / rank`.
        dropout: before them.
        target_modules: names of the layers; default: the queries and values of all attention layers, or all linear
            layers of a kind of model that PEFT does not know.
        item_rows: rows of the item table that are trained, in a model with item vectors.
    """
    from peft import LoraConfig
    from peft.utils import TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING

    names = {id(module): name for name, module in model.named_modules()}
    inputs, outputs = model.get_input_embeddings(), model.get_output_embeddings()
    rows = {names[id(inputs)]: [int(token) for token in token_ids]}
    if outputs is not None and outputs.weight is not inputs.weight:
        rows[names[id(outputs)]] = rows[names[id(inputs)]]
    if len(item_rows):
        rows[names[id(item_vectors_of(model).table)]] = [int(row) for row in item_rows]
    targets = target_modules or (["q", "v"] if model.config.model_type == "gensar" else None)
    targets = targets or TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING.get(model.config.model_type)
    if not targets:
        # A number, of a layer in a `Sequential`, is also the name of a block.
        linear = [name for name, part in model.named_modules() if isinstance(part, torch.nn.Linear)]
        short = {name if name.rpartition(".")[2].isdigit() else name.rpartition(".")[2] for name in linear}
        targets = sorted(short - {names[id(outputs)].rpartition(".")[2]})
    return LoraConfig(
        r=rank,
        lora_alpha=alpha,  # type: ignore[arg-type]
        lora_dropout=dropout,
        target_modules=list(targets),
        trainable_token_indices=rows,
    )


def add_adapter(model: PreTrainedModel, config: "LoraConfig") -> "PeftModel":
    """Put an adapter on a model, in place, and freeze everything else; `Trainer` trains the result."""
    from peft import get_peft_model

    # PEFT reads the model's declaration of tied tables, which is wrong for T5 v1.1: its output table is separate.
    declared: dict[str, str] = getattr(model, "_tied_weights_keys", None) or {}
    parameters = dict(model.named_parameters(remove_duplicate=False))
    model._tied_weights_keys = {
        name: source
        for name, source in declared.items()
        if name in parameters and parameters[name] is parameters.get(source)
    }
    model.config.tie_word_embeddings = bool(model._tied_weights_keys)
    return get_peft_model(model, config)


def grow_to(model: PreTrainedModel, base: AdapterBase) -> PreTrainedModel:
    """Add the rows of new tokens and new items to a base model, in place.

    Raises:
        ValueError: new items for a model without item vectors, or a neighbor that it does not have.
    """
    inputs, outputs = model.get_input_embeddings(), model.get_output_embeddings()
    if base.vocab_size > len(inputs.weight):  # type: ignore[arg-type]
        # A separate output table would be dropped where the configuration says "tied", as in T5 v1.1.
        model.config.tie_word_embeddings = outputs is None or outputs.weight is inputs.weight
        model.resize_token_embeddings(base.vocab_size, mean_resizing=False)  # the adapter holds the new rows
    if len(base.neighbors):
        items = item_vectors_of(model)
        add_item_vectors(items, base.neighbors)
        model.config.num_items = items.table.num_embeddings
    return model


def save_adapter(model: "PeftModel", folder: str | os.PathLike[str], base: AdapterBase) -> None:
    """Write an adapter, without the tokenizer, into `folder`; `base` is `AdapterBase.of` the model as it was loaded."""
    for config in model.peft_config.values():
        config.base_model_name_or_path = base.name
    # "auto" would compare vocabularies with the base model's, and save whole tables that have been enlarged.
    model.save_pretrained(str(folder), safe_serialization=True, save_embedding_layers=False)
    (Path(folder) / CARD_FILE).unlink(missing_ok=True)  # PEFT's empty template
    record = {"base_fingerprint": base.fingerprint, "vocab_size": base.vocab_size, "neighbors": base.neighbors}
    write_json(Path(folder) / ADAPTER_BASE_FILE, record)


def adapter_base(folder: str | os.PathLike[str]) -> AdapterBase | None:
    """The base model of the adapter in a folder; None if there is no adapter.

    Raises:
        InputError: `adapter_base.json` is missing or damaged.
    """
    path = Path(folder)
    config_path, base_path = path / ADAPTER_CONFIG_FILE, path / ADAPTER_BASE_FILE
    if not config_path.is_file():
        return None
    if not base_path.is_file():
        raise InputError(
            f"{path} holds an adapter, but no {ADAPTER_BASE_FILE}, which describes its base model; copy the file from "
            "the folder where the adapter was trained."
        )
    record = read_json(base_path, COPY_AGAIN)
    try:
        rows = record["lenders"] if "lenders" in record else record["neighbors"]  # files of version 0.1 have lenders
        neighbors = np.array(rows or _NO_NEIGHBORS, dtype=np.int64)
        if neighbors.ndim != 2:
            raise ValueError("its neighbors are not a table")
        name = str(read_json(config_path, COPY_AGAIN)["base_model_name_or_path"])
        return AdapterBase(name, str(record["base_fingerprint"]), int(record["vocab_size"]), neighbors)
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        raise InputError(f"{base_path} does not describe the base model of an adapter ({error}).") from None


def load_adapter(model: PreTrainedModel, folder: str | os.PathLike[str]) -> "PeftModel":
    """Put the adapter in a folder on its base model, in place.

    Raises:
        InputError: the adapter is missing or damaged, or has another base model.
    """
    from peft import LoraConfig, get_peft_model_state_dict, set_peft_model_state_dict

    path, base = Path(folder), adapter_base(folder)
    weights_path = path / ADAPTER_WEIGHTS_FILE
    if base is None or not weights_path.is_file():
        missing = ADAPTER_CONFIG_FILE if base is None else ADAPTER_WEIGHTS_FILE
        raise InputError(f"{path} holds no {missing}; give the folder of an adapter that `save_adapter` wrote.")
    if model_fingerprint(model) != base.fingerprint:
        raise InputError(
            f"The adapter in {path} was made for another model: its base model is {base.name}, with other weights than "
            "this one; load the model that the adapter was trained on."
        )
    record = read_json(path / ADAPTER_CONFIG_FILE, COPY_AGAIN)
    with damage_reported(f"The adapter in {path}", COPY_AGAIN, "is damaged"):
        if record.get("peft_type") != "LORA":
            raise ValueError(f"{ADAPTER_CONFIG_FILE} has the peft_type {record.get('peft_type')!r}, and not 'LORA'")
        for name in _REFUSED_SETTINGS:
            if record.get(name):
                raise ValueError(f"{ADAPTER_CONFIG_FILE} sets `{name}`, which is not supported")
        if not isinstance(record.get("target_modules"), list | None):
            raise ValueError(f"{ADAPTER_CONFIG_FILE} has a pattern for `target_modules` instead of a list of names")
        weights = load_file(weights_path)
        if integers := [weight.dtype for weight in weights.values() if not weight.is_floating_point()]:
            raise ValueError(f"{ADAPTER_WEIGHTS_FILE} holds numbers of type {integers[0]}")
        if not all(bool(torch.isfinite(weight).all()) for weight in weights.values()):
            raise ValueError(f"{ADAPTER_WEIGHTS_FILE} holds NaN or an infinity")
        # What is built for the adapter is not larger than what its file holds.
        longest = max((size for weight in weights.values() for size in weight.shape), default=0)
        inputs: Any = model.get_input_embeddings()
        num_new = (base.vocab_size - len(inputs.weight)) * inputs.weight.shape[1]
        if record["r"] > longest or num_new > sum(weight.numel() for weight in weights.values()):
            raise ValueError(
                f"{ADAPTER_WEIGHTS_FILE} holds less than {ADAPTER_CONFIG_FILE} and {ADAPTER_BASE_FILE} say"
            )
        config = LoraConfig.from_peft_type(**record)
        config.megatron_config = None  # PEFT would import the module that `megatron_core` names
        config.inference_mode, config.base_model_name_or_path = False, None
        with_adapter = add_adapter(grow_to(model, base), config)
        expected = get_peft_model_state_dict(with_adapter, save_embedding_layers=False)
        if weights.keys() != expected.keys():  # PEFT would leave a missing one at its random start
            raise ValueError(f"{ADAPTER_WEIGHTS_FILE} does not hold the weights that {ADAPTER_CONFIG_FILE} describes")
        set_peft_model_state_dict(with_adapter, weights)
    return with_adapter


def merge_adapter(model: "PeftModel") -> PreTrainedModel:
    """The base model with the adapter added to its weights, in place; its answers stay the same.

    All weights can be trained again, which the adapter had frozen.
    """
    return model.merge_and_unload().requires_grad_(True)
