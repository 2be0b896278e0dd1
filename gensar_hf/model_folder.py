"""Model folders, our own and strangers': where they lie, what they may hold, and weights that are complete.

Nothing of a folder is run, and nothing outside it is opened. Sizes are compared with the files before memory is taken.
`SECURITY.md` says what is promised.
"""

import json
import os
import stat
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import snapshot_download
from safetensors import safe_open
from transformers import AutoConfig, PreTrainedConfig, PreTrainedModel

from gensar_hf.errors import InputError, types_checked
from gensar_hf.files import damage_reported, read_json
from gensar_hf.hub import explain_hub_error

TEXT_ENCODER_DIR, ITEM_ENCODER_DIR = "text_encoder", "item_encoder"
WEIGHTS_FILES = ("model.safetensors", "model.safetensors.index.json", "model-*-of-*.safetensors")
MODEL_FILES = ("config.json", "generation_config.json", *WEIGHTS_FILES)
_HUB_OPTIONS = ("cache_dir", "force_download", "local_files_only", "token", "revision")
COPY_AGAIN = "copy all files of the model again from where it was trained"
# Settings that make transformers fetch code or weights from elsewhere, or run kernels that are not its own.
_REFUSED_SETTINGS = (
    "attn_implementation", "_attn_implementation", "experts_implementation", "_experts_implementation",
    "quantization_config", "transformers_weights", "fusion_config", "distributed_config", "kernel_config",
    "use_kernels",
)  # fmt: skip
_HARMLESS_VALUES = (None, False, "eager", "sdpa")
_MOST_LAYERS = 256  # that a configuration may name whatever its file of weights holds
_JSON_BYTES, _JSON_BYTES_PER_TOKEN = 4 * 1024**2, 1000  # tokenizers of 128,000 to 262,000 tokens have 130 a token
_MOST_TOKENS = 40_000  # where there are no weights; the limit of bytes fits tokenizers of 300,000
# At the top of a folder; in the folders of the text encoder and the item encoder all JSON files are checked.
_JSON_FILES = (
    "config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json",
    "added_tokens.json", "vocab.json", "processor_config.json", "chat_template.json", "adapter_config.json",
    "adapter_base.json", "model.safetensors.index.json",
)  # fmt: skip


@types_checked
def open_folder(
    path: str | os.PathLike[str], files: Iterable[str], kwargs: dict[str, Any], what: str = "model"
) -> tuple[Path, dict[str, Any]]:
    """The local folder of a model, checked; a Hub repository's files are downloaded if they are not in the cache.

    Args:
        path: folder or Hub name.
        files: patterns of the names that are downloaded.
        kwargs: `revision`, `cache_dir`, `token`, `subfolder`, …, and others.
        what: the folder holds, for messages.

    Returns:
        the folder, and those of `kwargs` that do not say where it is.

    Raises:
        InputError: there is no such folder or repository; `trust_remote_code=True`; or see `check_folder`.
    """
    others = {name: value for name, value in kwargs.items() if name not in (*_HUB_OPTIONS, "subfolder")}
    if others.pop("trust_remote_code", None):
        raise InputError(
            f"Code in a model's folder is never run, so {os.fspath(path)} cannot be loaded with "
            "trust_remote_code=True; leave the argument out."
        )
    inner = Path(kwargs.get("subfolder") or "")
    root = Path(path)
    if not root.is_dir():
        options = {name: kwargs[name] for name in _HUB_OPTIONS if name in kwargs}
        try:
            patterns = [(inner / name).as_posix() for name in files]
            root = Path(snapshot_download(os.fspath(path), allow_patterns=patterns, **options))
        except Exception as error:  # the client's transport raises its own kinds of errors
            reason = explain_hub_error(path, error)
            raise InputError(f"The {what} in {os.fspath(path)} cannot be loaded: {reason}") from error
    folder = root / inner
    if not folder.is_dir():
        raise InputError(f"The {what} in {os.fspath(path)} cannot be loaded: it has no folder '{inner.as_posix()}'.")
    with damage_reported(f"The {what} in {folder}", COPY_AGAIN):
        check_folder(folder)
    return folder, others


def check_folder(folder: Path) -> None:
    """Refuse what no model of this package holds and what could do harm; no file is opened but those in JSON.

    Raises:
        InputError: a link out of the folder, something that is no file, a setting that makes transformers fetch code or
            files, an index of weights that names a path, a pickle without safetensors, or a JSON file that is damaged
            or far too large.
    """
    root = _root(folder)
    for parent, folders, files in os.walk(folder):
        for name in (*folders, *files):
            _check_entry(Path(parent, name), root)
        is_top = Path(parent) == folder
        if is_top:
            folders[:] = [name for name in folders if name in (TEXT_ENCODER_DIR, ITEM_ENCODER_DIR)]
        if "pytorch_model.bin" in files and not any(name.endswith(".safetensors") for name in files):
            raise InputError(
                f"{parent} holds no model.safetensors, but pytorch_model.bin, a pickle, which may hold code and is "
                "never read; save the model with safetensors."
            )
        names = [name for name in files if name in _JSON_FILES or (name.endswith(".json") and not is_top)]
        num_tokens = _num_tokens(Path(parent)) if names else 0
        for name in names:
            _check_json(Path(parent, name), folder, num_tokens)


def _root(folder: Path) -> Path:
    """The folder that links may lead into: itself, or of a snapshot in the Hub's cache the cache of its repository."""
    resolved = folder.resolve()
    for parent in resolved.parents:
        if parent.name == "snapshots" and parent.parent.name.startswith("models--"):
            return parent.parent
    return resolved


def _check_entry(path: Path, root: Path) -> None:
    if path.is_symlink() and not path.resolve().is_relative_to(root):
        raise InputError(
            f"{path} is a link out of the model's folder, which is not followed; put a copy of the file in its place."
        )
    mode = path.stat().st_mode if path.exists() else 0
    if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):
        raise InputError(f"{path} is neither a file nor a folder; {COPY_AGAIN}.")


def _num_tokens(folder: Path) -> int:
    """Rows of the largest table of weights, which has one for each token; without weights, as of adapters, many."""
    shapes = [shape for shape, _ in weights_header(folder).values() if len(shape) == 2 and all(shape)]
    return max((rows for rows, _ in shapes), default=_MOST_TOKENS)


def _check_json(path: Path, folder: Path, num_tokens: int) -> None:
    limit = _JSON_BYTES + _JSON_BYTES_PER_TOKEN * num_tokens
    if (size := path.stat().st_size) > limit:
        raise InputError(
            f"{path} has {size:,} bytes, far more than a model with {num_tokens:,} tokens needs ({limit:,} at most); "
            f"{COPY_AGAIN}."
        )
    if path.name in ("tokenizer.json", "vocab.json"):
        return  # the tokenizer reads them
    content = read_json(path, COPY_AGAIN)
    if not isinstance(content, dict | list) or (path.name == "config.json" and not isinstance(content, dict)):
        raise InputError(f"{path} holds {type(content).__name__} instead of a JSON object; {COPY_AGAIN}.")
    for key, value in _entries(content):
        if key in _REFUSED_SETTINGS and not (value is None or value in _HARMLESS_VALUES):
            raise InputError(
                f"{path} sets `{key}`, with which transformers may fetch or run other code; remove it from the file, "
                "and pass it to `from_pretrained` if you want it."
            )
        if path.name == "modules.json" and key == "path" and not _is_inside(value):
            raise InputError(f"{path} names the path {value!r} outside its folder; {COPY_AGAIN}.")
        if path.name == "config.json" and "layers" in str(key) and isinstance(value, int) and value > _MOST_LAYERS:
            num_weights = len(weights_header(path.parent))
            if value > num_weights:
                raise InputError(f"{path} sets `{key}` to {value}, but there are {num_weights} weights; {COPY_AGAIN}.")
    if path.name.endswith(".index.json"):
        _index_files(path)
    if path.name == "adapter_config.json" and path.parent != folder:
        raise InputError(f"{path} makes transformers load another model; remove the file.")


def _entries(content: Any) -> Iterator[tuple[str, Any]]:
    """All keys of a JSON value with their values, at any depth."""
    for value in content.values() if isinstance(content, dict) else content:
        if isinstance(value, dict | list):
            yield from _entries(value)
    if isinstance(content, dict):
        yield from content.items()


def _is_inside(name: Any) -> bool:
    """Whether a name is a relative path without `..`."""
    return isinstance(name, str) and not Path(name).is_absolute() and ".." not in Path(name).parts


def _index_files(index: Path) -> list[Path]:
    """The files of weights that an index names, all next to it."""
    weight_map = read_json(index, COPY_AGAIN).get("weight_map")
    names = sorted(set(weight_map.values())) if isinstance(weight_map, dict) else []
    if not names or not all(isinstance(name, str) and Path(name).name == name for name in names):
        raise InputError(f"{index} does not name files of weights next to it; {COPY_AGAIN}.")
    return [index.parent / name for name in names]


def weights_header(folder: Path) -> dict[str, tuple[tuple[int, ...], str]]:
    """Shape and dtype of every tensor in a folder's files of weights, of which only the headers are read.

    Raises:
        InputError: a file is damaged, or an index names a file that is not there.
    """
    index = folder / "model.safetensors.index.json"
    single = folder / "model.safetensors"
    files = [single] if single.is_file() else _index_files(index) if index.is_file() else []
    header = {}
    for file in files:
        with damage_reported(file, COPY_AGAIN), safe_open(file, framework="numpy") as tensors:
            for name in tensors.keys():  # noqa: SIM118 - not a dict
                part = tensors.get_slice(name)
                header[name] = tuple(part.get_shape()), part.get_dtype()
    return header


# ---- weights


class CheckedLoading:
    """Models whose `from_pretrained` loads a folder completely, or refuses it in one sentence; see `load_model`."""

    @classmethod
    def from_pretrained(cls, path: Any, *args: Any, output_loading_info: bool = False, **kwargs: Any) -> Any:
        """As in transformers, but see `load_model`; arguments and errors as there."""
        load: Any = super().from_pretrained  # type: ignore[misc]
        if path is None and "state_dict" in kwargs:  # weights that are passed as `state_dict`
            return load(None, *args, output_loading_info=output_loading_info, **kwargs)
        model, info = load_model(cls, path, *args, load=load, **kwargs)
        return (model, info) if output_loading_info else model


def load_model(
    model_class: Any, path: str | os.PathLike[str], *args: Any, load: Any = None, **kwargs: Any
) -> tuple[Any, dict[str, Any]]:
    """Load a model completely, or not at all.

    Args:
        model_class: of transformers.
        path: folder or Hub name.
        *args: for the model.
        load: its `from_pretrained`; default: the class's own.
        **kwargs: as for `from_pretrained` of transformers.

    Returns:
        the model, and transformers' report of the loading.

    Raises:
        InputError: a file is missing or damaged, a weight is missing, left over, of another shape or not finite, or the
            configuration describes another model than the weights.
    """
    folder, kwargs = open_folder(path, MODEL_FILES, kwargs)
    with damage_reported(f"The model in {folder}", COPY_AGAIN):
        config = kwargs.pop("config", None)
        if config is None:
            config = read_config(folder, model_class.config_class or AutoConfig)
        header = weights_header(folder)
        if not header:
            raise InputError(f"The model in {folder} cannot be loaded: it holds no model.safetensors; {COPY_AGAIN}.")
        if kwargs.get("quantization_config") is None:
            _check_shapes(folder, model_class, config, header)
        kwargs |= {"use_safetensors": True, "trust_remote_code": False, "ignore_mismatched_sizes": True}
        try:
            model, info = (load or model_class.from_pretrained)(
                folder, *args, config=config, output_loading_info=True, **kwargs
            )
        except TypeError as error:
            if "unexpected keyword argument" not in str(error):
                raise
            name = str(error).rpartition("argument ")[2]
            raise InputError(f"`from_pretrained` has no argument {name}; correct its name, or leave it out.") from error
        wrong = [f"{name} has another shape" for name, *_ in sorted(info["mismatched_keys"])]
        wrong += [f"{name} is missing" for name in sorted(info["missing_keys"])]
        wrong += [f"{name} is not a weight of the model" for name in sorted(info["unexpected_keys"])]
        refuse_weights(folder, wrong)
        check_finite(folder, model)
    return model, info


def read_config(folder: Path, config_class: Any = AutoConfig) -> PreTrainedConfig:
    """The configuration in a folder. Raises `InputError` if it is damaged or of a class that transformers lacks."""
    with damage_reported(folder / "config.json", COPY_AGAIN):
        return config_class.from_pretrained(folder, trust_remote_code=False)


def _check_shapes(folder: Path, model_class: Any, config: PreTrainedConfig, header: dict[str, Any]) -> None:
    """Compare a configuration with the files of weights before memory is taken for what it describes."""
    with torch.device("meta"):
        model = model_class._from_config(config) if hasattr(model_class, "_from_config") else model_class(config)
    tied: dict[int, list[str]] = {}  # names of one tensor
    weights = model.state_dict(keep_vars=True)
    for name, weight in weights.items():
        tied.setdefault(id(weight), []).append(name)
    num_values = sum(weights[names[0]].numel() for names in tied.values())
    num_saved = sum(int(torch.Size(shape).numel()) for shape, _ in header.values())
    wrong = []
    for names in tied.values():
        saved = [name for name in names if name in header]
        if not saved and num_values > num_saved:  # transformers may convert names, but does not add values
            wrong.append(f"{names[0]} is missing")
        for name in saved:
            shape, dtype = header[name]
            if shape != tuple(weights[name].shape):
                expected = tuple(weights[name].shape)
                wrong.append(f"{name} has the shape {shape}, and not {expected} as in config.json")
            elif weights[name].is_floating_point() and dtype[0] not in "FB":
                wrong.append(f"{name} holds numbers of type {dtype}")
    refuse_weights(folder, wrong)
    if num_values > num_saved:
        raise InputError(
            f"The weights in {folder} hold {num_saved} numbers, config.json wants {num_values}; {COPY_AGAIN}."
        )


def refuse_weights(folder: object, wrong: list[str]) -> None:
    """Raise an `InputError` that names the first of the weights that are wrong, if there are any."""
    if wrong:
        more = f" (and {len(wrong) - 1} more)" if len(wrong) > 1 else ""
        raise InputError(f"The weights in {folder} do not fit their config.json: {wrong[0]}{more}; {COPY_AGAIN}.")


def check_finite(folder: object, model: PreTrainedModel) -> None:
    """Raise an `InputError` if a weight is NaN or infinite."""
    for name, weight in [*model.named_parameters(), *model.named_buffers()]:
        if weight.is_floating_point() and weight.device.type != "meta" and weight.numel():
            low, high = torch.aminmax(weight.detach())
            if not (torch.isfinite(low) and torch.isfinite(high)):
                raise InputError(
                    f"The weights in {folder} are damaged: {name} holds NaN or an infinity; {COPY_AGAIN}, or train it "
                    "again with a lower learning rate."
                )


def read_object(path: Path) -> dict[str, Any]:
    """A JSON object in a file. Raises `InputError` if it holds something else."""
    content = read_json(path, COPY_AGAIN)
    if not isinstance(content, dict):
        raise InputError(f"{path} holds {json.dumps(content)[:50]} instead of a JSON object; {COPY_AGAIN}.")
    return content
