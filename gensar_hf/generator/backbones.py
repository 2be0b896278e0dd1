"""Pretrained checkpoints that a generator starts from."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import (
    MODEL_FOR_CAUSAL_LM_MAPPING,
    MODEL_FOR_MASKED_LM_MAPPING,
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForSeq2SeqLM,
    AutoTokenizer,
    PreTrainedConfig,
    PreTrainedModel,
)

from gensar_hf.decoding.tree_decoder import attention_window, check_model
from gensar_hf.errors import InputError
from gensar_hf.files import damage_reported
from gensar_hf.model_folder import check_finite, refuse_weights

_T5_TYPES = ("t5", "mt5")
LEAST_CONTEXT = 512  # tokens: an instruction, an event or two, and an answer


@dataclass(frozen=True)
class Backbone:
    """A checkpoint of a T5 or of a decoder-only model. Code in its folder is never run.

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

    def check(self) -> None:
        """Refuse a checkpoint that cannot become a generator, without reading its weights.

        Raises:
            InputError: it cannot be read, is neither a T5 nor a causal language model, or its attention cannot read
                trees of identifiers.
        """
        config = self.config()
        reason = None
        if config.is_encoder_decoder:
            if config.model_type not in _T5_TYPES:
                reason = f"of encoder-decoders only {' and '.join(_T5_TYPES)} do"
        elif type(config) not in MODEL_FOR_CAUSAL_LM_MAPPING or type(config) in MODEL_FOR_MASKED_LM_MAPPING:
            reason = "it is no causal language model"
        else:
            with damage_reported(f"The checkpoint '{self.path}'", "name another checkpoint"), torch.device("meta"):
                model = AutoModelForCausalLM.from_config(config, trust_remote_code=False)
            try:
                check_model(model)
            except ValueError as error:
                reason = str(error).partition(". Otherwise")[0]
            length = context_length(model)
            if length is not None and length < LEAST_CONTEXT:
                reason = f"its positions or its attention window have room for {length} tokens of {LEAST_CONTEXT}"
        if reason is not None:
            raise InputError(
                f"The checkpoint '{self.path}', a {config.model_type}, cannot become a generator: {reason}; name a T5 "
                "or a causal language model such as Llama or Qwen."
            )

    def text_tokenizer(self) -> Any:
        """The checkpoint's tokenizer."""
        return self._load(AutoTokenizer)

    def t5_model(self) -> PreTrainedModel:
        """The T5 in float32."""
        return self._model(AutoModelForSeq2SeqLM)

    def causal_model(self) -> PreTrainedModel:
        """The decoder-only model in float32: `Trainer` trains in a lower precision by autocast."""
        model = self._model(AutoModelForCausalLM)
        if self.gguf_file is None:
            return model
        # The loaded model still counts as quantized, which `Trainer` refuses and `save_pretrained` records.
        plain = AutoModelForCausalLM.from_config(self.config(), dtype=torch.float32)
        plain.load_state_dict(model.state_dict())
        return plain

    def _model(self, auto_class: Any) -> PreTrainedModel:
        options = {} if self.gguf_file is not None else {"use_safetensors": True}
        model, info = self._load(auto_class, dtype=torch.float32, output_loading_info=True, **options)
        # A checkpoint may hold more than the model, such as tables that an older version saved.
        refuse_weights(self.path, [f"{name} is missing" for name in sorted(info["missing_keys"])])
        check_finite(self.path, model)
        return model

    def _load(self, auto_class: Any, **kwargs: Any) -> Any:
        if self.gguf_file is not None:
            kwargs["gguf_file"] = self.gguf_file
        remedy = "give a folder, or a name on the Hub that this machine can reach"
        if self.gguf_file is not None:
            remedy = "run `pip install gensar-hf[gguf]`, which GGUF files need, or give another folder"
        with damage_reported(f"The checkpoint '{self.path}'", remedy):
            return auto_class.from_pretrained(self.path, trust_remote_code=False, **kwargs)


def context_length(model: PreTrainedModel) -> int | None:
    """Tokens of the longest prompt with its answer; None: the model has no such bound.

    The bound is the length of a table of positions, as in GPT-2, or the attention window of some layers, as in Gemma.
    """
    lengths = [
        module.num_embeddings - getattr(module, "offset", 0)
        for name, module in model.named_modules()
        if isinstance(module, nn.Embedding) and (name.endswith("wpe") or "position" in name.rpartition(".")[2])
    ]
    window = attention_window(model.config)
    return min(lengths if window is None else [*lengths, window], default=None)
