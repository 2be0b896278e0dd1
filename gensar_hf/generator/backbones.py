"""Pretrained checkpoints that a generator starts from."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PreTrainedConfig, PreTrainedModel

from gensar_hf.errors import InputError


@dataclass(frozen=True)
class Backbone:
    """A checkpoint of an encoder-decoder or of a decoder-only model.

    Attributes:
        path: folder or name on the Hub. In a folder without config.json that holds one `*.gguf` file, that file is
            read and its weights are dequantized.
    """

    path: str

    @property
    def gguf_file(self) -> str | None:
        """Name of the folder's GGUF file, if it is what the checkpoint consists of."""
        folder = Path(self.path)
        files = [] if (folder / "config.json").is_file() else sorted(folder.glob("*.gguf"))
        return files[0].name if len(files) == 1 else None

    def config(self) -> PreTrainedConfig:
        """The checkpoint's configuration; `is_encoder_decoder` tells the kind."""
        return self._load(AutoConfig)

    def text_tokenizer(self) -> Any:
        """The checkpoint's tokenizer."""
        return self._load(AutoTokenizer)

    def causal_model(self) -> PreTrainedModel:
        """The decoder-only model in float32: `Trainer` trains in a lower precision by autocast."""
        model = self._load(AutoModelForCausalLM, dtype=torch.float32)
        if self.gguf_file is None:
            return model
        # The loaded model still counts as quantized, which `Trainer` refuses and `save_pretrained` records.
        plain = AutoModelForCausalLM.from_config(self.config(), dtype=torch.float32)
        plain.load_state_dict(model.state_dict())
        return plain

    def _load(self, auto_class: Any, **kwargs: Any) -> Any:
        if self.gguf_file is not None:
            kwargs["gguf_file"] = self.gguf_file
        try:
            return auto_class.from_pretrained(self.path, **kwargs)
        except (ImportError, OSError, ValueError) as error:
            reason = (str(error).strip() or type(error).__name__).splitlines()[0]
            if isinstance(error, ImportError):
                raise InputError(
                    f"{self.gguf_file or self.path} needs a package that is not installed ({reason}); run `pip install "
                    "gensar-hf[gguf]` for GGUF files."
                ) from error
            raise InputError(
                f"The checkpoint '{self.path}' cannot be loaded ({reason}); give a folder, or a name on the Hub that "
                "this machine can reach."
            ) from error
