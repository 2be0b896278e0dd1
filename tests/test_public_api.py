"""What `import gensar_hf` offers: lazy public names, Auto classes that know the models, nothing heavy at import."""

import os
import re
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest
from transformers import AutoConfig, AutoModel, AutoModelForSeq2SeqLM, PreTrainedConfig, PreTrainedModel

import gensar_hf

PUBLIC_NAMES = {
    "GenSARConfig", "GenSARForConditionalGeneration", "GenSARPipeline", "GenSARTokenizer", "GenSARTrainer",
    "GenSARTrainingArguments", "IdentifierTable", "InputError", "InteractionDataset", "JointRQVAE", "JointRQVAEConfig",
    "SASRecConfig", "SASRecModel", "Trie", "TrieBeamSearch", "TrieLogitsProcessor", "train",
}  # fmt: skip
MODELS = [
    (gensar_hf.GenSARConfig, gensar_hf.GenSARForConditionalGeneration, AutoModelForSeq2SeqLM),
    (gensar_hf.SASRecConfig, gensar_hf.SASRecModel, AutoModel),
    (gensar_hf.JointRQVAEConfig, gensar_hf.JointRQVAE, AutoModel),
]


def in_a_fresh_process(code: str, *arguments: str | Path, env: Mapping[str, str] | None = None) -> str:
    """What `code` prints last; it must not write a warning."""
    command = [sys.executable, "-c", code, *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=env)
    assert done.returncode == 0, done.stderr
    assert "Warning" not in done.stderr
    return done.stdout.splitlines()[-1]


@pytest.mark.parametrize(
    ("given", "expected"),
    [({}, "1000"), ({"GOMP_SPINCOUNT": "77"}, "77"), ({"OMP_WAIT_POLICY": "active"}, "None")],
)
def test_threads_that_wait_soon_sleep(given: dict[str, str], expected: str) -> None:
    """Spinning threads slow a training ten times beside other programs. What the user has set stays."""
    env = {name: value for name, value in os.environ.items() if name not in ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY")}
    code = "import sys, os, gensar_hf; assert 'torch' not in sys.modules; print(os.environ.get('GOMP_SPINCOUNT'))"
    assert in_a_fresh_process(code, env={**env, **given}) == expected


def test_every_public_name_is_listed_and_documented() -> None:
    assert set(gensar_hf.__all__) == PUBLIC_NAMES
    assert set(dir(gensar_hf)) >= PUBLIC_NAMES
    for name in gensar_hf.__all__:
        assert getattr(gensar_hf, name).__doc__
    with pytest.raises(AttributeError, match="module 'gensar_hf' has no attribute 'nothing'"):
        gensar_hf.nothing  # noqa: B018


@pytest.mark.parametrize(
    "method",
    [
        "from_pretrained", "save_pretrained", "push_to_hub", "recommend", "search", "suggest_queries", "rank",
        "filter", "set_catalogue", "add_items", "remove_items", "restore_items",
    ],
)  # fmt: skip
def test_the_methods_of_the_pipeline_are_documented(method: str) -> None:
    assert getattr(gensar_hf.GenSARPipeline, method).__doc__


@pytest.mark.parametrize(("config_class", "model_class", "auto_class"), MODELS)
def test_the_auto_classes_know_the_models(
    config_class: type[PreTrainedConfig], model_class: type[PreTrainedModel], auto_class: type
) -> None:
    assert type(AutoConfig.for_model(config_class.model_type)) is config_class
    assert auto_class._model_mapping[config_class] is model_class
    assert model_class.config_class is config_class


LAZY = """
import sys

def check(*names):
    assert not (imported := [name for name in names if name in sys.modules]), imported

import gensar_hf
assert "GenSARPipeline" in dir(gensar_hf)
check("torch", "transformers", "pandas", "numpy")
assert gensar_hf.IdentifierTable.load(sys.argv[1]).num_items == 12
check("torch", "transformers")
from transformers import AutoModelForSeq2SeqLM, AutoTokenizer
classes = AutoModelForSeq2SeqLM, AutoTokenizer
names = [type(each.from_pretrained(sys.argv[1])).__name__ for each in classes]
gensar_hf.GenSARPipeline.from_pretrained(sys.argv[1], device="cpu").recommend([])
import gensar_hf.evaluation
check("sentence_transformers", "bm25s", "sklearn", "peft", "evaluate", "datasets")
print(*names)
"""


def test_a_fresh_process_imports_only_what_it_uses(model_dirs: dict[str, Path]) -> None:
    """Nothing for `import gensar_hf`; no torch to read identifiers; no library of the training to answer."""
    assert in_a_fresh_process(LAZY, model_dirs["events"]) == "GenSARForConditionalGeneration GenSARTokenizer"


@pytest.mark.slow
@pytest.mark.parametrize(
    "imports",
    [
        "import gensar_hf, transformers",
        "import transformers, gensar_hf",
        # transformers is lazy as well: here its Auto classes are imported before this package
        "from transformers import AutoConfig, AutoTokenizer; import gensar_hf",
    ],
)
def test_auto_classes_load_a_model_folder_in_either_order_of_the_imports(
    imports: str, model_dirs: dict[str, Path]
) -> None:
    code = f"{imports}\n" + (
        "import sys\n"
        "from transformers import AutoModelForSeq2SeqLM, AutoTokenizer\n"
        "classes = AutoModelForSeq2SeqLM, AutoTokenizer\n"
        "print(*(type(each.from_pretrained(sys.argv[1])).__name__ for each in classes))"
    )
    assert in_a_fresh_process(code, model_dirs["events"]) == "GenSARForConditionalGeneration GenSARTokenizer"


def test_no_module_reads_pickles_and_only_the_command_line_prints() -> None:
    package = Path(gensar_hf.__file__).parent
    for path in package.rglob("*.py"):
        text = path.read_text(encoding="utf-8")
        assert not re.search(r"^\s*(import|from) (pickle|joblib|dill)\b|torch\.load\(", text, re.MULTILINE), path
        assert path == package / "cli.py" or not re.search(r"^\s*print\(", text, re.MULTILINE), path
