"""GenSAR for Hugging Face: one generative model for search and recommendation.

The public names are imported when they are first used (PEP 562), so that `import gensar_hf` takes no time. The model
classes are known to transformers' Auto classes in whichever order the two packages are imported.
"""

import importlib
import importlib.abc
import importlib.machinery
import os
import sys
from collections.abc import Sequence
from types import ModuleType
from typing import TYPE_CHECKING, Any

# On Linux the threads of PyTorch spin for milliseconds while they wait for each other. Once other processes compute, a
# training takes many times as long for it (docs/speed.md). Without effect if PyTorch was imported before.
if "OMP_WAIT_POLICY" not in os.environ:
    os.environ.setdefault("GOMP_SPINCOUNT", "1000")  # what libgomp itself takes for more threads than cores

_MODULES = {
    "GenSARConfig": "generator.configuration_gensar",
    "GenSARForConditionalGeneration": "generator.modeling_gensar",
    "GenSARPipeline": "pipeline",
    "GenSARTokenizer": "generator.tokenization_gensar",
    "GenSARTrainer": "training.trainer",
    "GenSARTrainingArguments": "training.arguments",
    "IdentifierTable": "identifiers.identifier_table",
    "InputError": "errors",
    "InteractionDataset": "data.dataset",
    "JointRQVAE": "identifiers.modeling_joint_rqvae",
    "JointRQVAEConfig": "identifiers.configuration_joint_rqvae",
    "SASRecConfig": "embeddings.configuration_sasrec",
    "SASRecModel": "embeddings.modeling_sasrec",
    "Trie": "decoding.trie",
    "TrieBeamSearch": "decoding.beam_search",
    "TrieLogitsProcessor": "decoding.logits_process",
    "train": "training.stages",
}
__all__ = [
    "GenSARConfig", "GenSARForConditionalGeneration", "GenSARPipeline", "GenSARTokenizer", "GenSARTrainer",
    "GenSARTrainingArguments", "IdentifierTable", "InputError", "InteractionDataset", "JointRQVAE", "JointRQVAEConfig",
    "SASRecConfig", "SASRecModel", "Trie", "TrieBeamSearch", "TrieLogitsProcessor", "train",
]  # fmt: skip
# Importing these registers their classes with the Auto classes.
_MODELS = "generator.modeling_gensar", "generator.tokenization_gensar", "embeddings.modeling_sasrec", \
    "identifiers.modeling_joint_rqvae"  # fmt: skip
_MODEL_TYPES = {"gensar", "sasrec", "joint_rqvae"}

if TYPE_CHECKING:
    from gensar_hf.data.dataset import InteractionDataset as InteractionDataset
    from gensar_hf.decoding.beam_search import TrieBeamSearch as TrieBeamSearch
    from gensar_hf.decoding.logits_process import TrieLogitsProcessor as TrieLogitsProcessor
    from gensar_hf.decoding.trie import Trie as Trie
    from gensar_hf.embeddings.configuration_sasrec import SASRecConfig as SASRecConfig
    from gensar_hf.embeddings.modeling_sasrec import SASRecModel as SASRecModel
    from gensar_hf.errors import InputError as InputError
    from gensar_hf.generator.configuration_gensar import GenSARConfig as GenSARConfig
    from gensar_hf.generator.modeling_gensar import GenSARForConditionalGeneration as GenSARForConditionalGeneration
    from gensar_hf.generator.tokenization_gensar import GenSARTokenizer as GenSARTokenizer
    from gensar_hf.identifiers.configuration_joint_rqvae import JointRQVAEConfig as JointRQVAEConfig
    from gensar_hf.identifiers.identifier_table import IdentifierTable as IdentifierTable
    from gensar_hf.identifiers.modeling_joint_rqvae import JointRQVAE as JointRQVAE
    from gensar_hf.pipeline import GenSARPipeline as GenSARPipeline
    from gensar_hf.training.arguments import GenSARTrainingArguments as GenSARTrainingArguments
    from gensar_hf.training.stages import train as train
    from gensar_hf.training.trainer import GenSARTrainer as GenSARTrainer


def __getattr__(name: str) -> Any:
    """Import a public name at its first use."""
    if name not in _MODULES:
        raise AttributeError(f"module 'gensar_hf' has no attribute {name!r}")
    value = getattr(importlib.import_module(f"gensar_hf.{_MODULES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_MODULES})


class _Registered(dict):
    """What was registered with an Auto mapping; imports this package's models when it is asked for one of them."""

    def __contains__(self, key: object) -> bool:
        if key in _MODEL_TYPES:
            _import_models()
        return super().__contains__(key)

    def items(self) -> Any:
        _import_models()  # the tokenizer classes are searched by name
        return super().items()


class _AutoFinder(importlib.abc.MetaPathFinder):
    """Prepares transformers' Auto mappings at their import, which may come after that of this package."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if fullname not in _MAPPINGS:
            return None
        spec = importlib.machinery.PathFinder.find_spec(fullname, path)
        if spec is not None and spec.loader is not None:
            execute: Any = spec.loader.exec_module

            def exec_module(module: ModuleType) -> None:
                execute(module)
                _prepare(module)

            spec.loader.exec_module = exec_module  # type: ignore[method-assign]
        return spec


_MAPPINGS = {
    "transformers.models.auto.configuration_auto": "CONFIG_MAPPING",
    "transformers.models.auto.tokenization_auto": "TOKENIZER_MAPPING",
}


def _prepare(module: ModuleType) -> None:
    mapping = getattr(module, _MAPPINGS[module.__name__])
    mapping._extra_content = _Registered(mapping._extra_content)


def _import_models() -> None:
    for name in _MODELS:
        if f"gensar_hf.{name}" not in sys.modules:  # otherwise it is imported, or being imported now
            importlib.import_module(f"gensar_hf.{name}")


sys.meta_path.insert(0, _AutoFinder())
for _name in [name for name in _MAPPINGS if name in sys.modules]:
    _prepare(sys.modules[_name])
