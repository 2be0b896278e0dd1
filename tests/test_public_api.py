import re
import subprocess
import sys
from pathlib import Path

import pytest
from transformers import AutoConfig, AutoModel, AutoModelForSeq2SeqLM, AutoTokenizer, PreTrainedConfig, PreTrainedModel

import gensar_hf

PUBLIC_NAMES = {
    "GenSARConfig", "GenSARForConditionalGeneration", "GenSARPipeline", "GenSARTokenizer",
    "IdentifierTable",
    "JointRQVAE", "JointRQVAEConfig", "SASRecConfig", "SASRecModel", "Trie", "TrieBeamSearch",
    "TrieLogitsProcessor",
}  # fmt: skip
HEAVY = ("sentence_transformers", "bm25s", "sklearn", "peft", "evaluate", "datasets")
MODELS = [
    (gensar_hf.GenSARConfig, gensar_hf.GenSARForConditionalGeneration, AutoModelForSeq2SeqLM),
    (gensar_hf.SASRecConfig, gensar_hf.SASRecModel, AutoModel),
    (gensar_hf.JointRQVAEConfig, gensar_hf.JointRQVAE, AutoModel),
]


def test_every_public_name_exists_and_is_documented() -> None:
    assert set(gensar_hf.__all__) == PUBLIC_NAMES
    for name in gensar_hf.__all__:
        assert getattr(gensar_hf, name).__doc__


@pytest.mark.parametrize(
    "method", ["from_pretrained", "recommend", "search", "suggest_queries", "rank", "set_catalogue"]
)
def test_the_pipeline_has_the_methods_it_is_known_for(method: str) -> None:
    assert getattr(gensar_hf.GenSARPipeline, method).__doc__


@pytest.mark.parametrize(("config_class", "model_class", "auto_class"), MODELS)
def test_the_auto_classes_know_the_models(
    config_class: type[PreTrainedConfig], model_class: type[PreTrainedModel], auto_class: type
) -> None:
    assert type(AutoConfig.for_model(config_class.model_type)) is config_class
    assert auto_class._model_mapping[config_class] is model_class
    assert model_class.config_class is config_class


def test_the_auto_tokenizer_knows_the_tokenizer(model_dirs: dict[str, Path]) -> None:
    assert type(AutoTokenizer.from_pretrained(model_dirs["events"])) is gensar_hf.GenSARTokenizer
    assert type(AutoConfig.from_pretrained(model_dirs["events"])) is gensar_hf.GenSARConfig


def test_importing_the_package_imports_nothing_heavy() -> None:
    """Each of them takes seconds, and none is needed to answer a request."""
    code = f"import sys, gensar_hf; print([name for name in {HEAVY} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"
    assert "Warning" not in done.stderr


def test_no_file_of_the_package_reads_pickles_or_prints() -> None:
    for path in Path(gensar_hf.__file__).parent.rglob("*.py"):
        text = path.read_text(encoding="utf-8")
        assert not re.search(
            r"^\s*(import|from) (pickle|joblib|dill)\b|torch\.load\(|^\s*print\(", text, re.MULTILINE
        ), path
