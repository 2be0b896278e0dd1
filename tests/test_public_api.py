"""What `import gensar_hf` offers: lazy public names, Auto classes that know the models, nothing heavy at import."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
from transformers import AutoConfig, AutoModel, AutoModelForSeq2SeqLM, PreTrainedConfig, PreTrainedModel

import gensar_hf
from gensar_hf.identifiers import IdentifierTable

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


def in_a_fresh_process(code: str, *arguments: str | Path) -> str:
    """What `code` prints last; it must not write a warning."""
    command = [sys.executable, "-c", code, *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "Warning" not in done.stderr
    return done.stdout.splitlines()[-1]


def imported_by(code: str, names: tuple[str, ...], *arguments: str | Path) -> str:
    """Which of `names` are imported after `code`, as the text of a list."""
    return in_a_fresh_process(f"{code}\nimport sys\nprint([n for n in {names} if n in sys.modules])", *arguments)


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
        "set_catalogue", "add_items", "remove_items", "restore_items",
    ],
)  # fmt: skip
def test_the_methods_of_the_pipeline_are_documented(method: str) -> None:
    assert getattr(gensar_hf.GenSARPipeline, method).__doc__


def test_importing_the_package_imports_no_library() -> None:
    assert imported_by("import gensar_hf; dir(gensar_hf)", ("torch", "transformers", "pandas", "numpy")) == "[]"


def test_reading_identifiers_imports_no_torch(identifiers: IdentifierTable, tmp_path: Path) -> None:
    identifiers.save(tmp_path)
    code = "import sys; from gensar_hf import IdentifierTable; assert IdentifierTable.load(sys.argv[1]).num_items == 12"
    assert imported_by(code, ("torch", "transformers"), tmp_path) == "[]"


def test_the_pipeline_imports_nothing_that_only_training_needs() -> None:
    heavy = ("sentence_transformers", "bm25s", "sklearn", "peft", "evaluate", "datasets")
    assert imported_by("from gensar_hf import GenSARPipeline", heavy) == "[]"


@pytest.mark.parametrize(("config_class", "model_class", "auto_class"), MODELS)
def test_the_auto_classes_know_the_models(
    config_class: type[PreTrainedConfig], model_class: type[PreTrainedModel], auto_class: type
) -> None:
    assert type(AutoConfig.for_model(config_class.model_type)) is config_class
    assert auto_class._model_mapping[config_class] is model_class
    assert model_class.config_class is config_class


@pytest.mark.parametrize(
    "imports",
    [
        "import gensar_hf, transformers",
        "import transformers, gensar_hf",
        # transformers is lazy as well: here its Auto classes are imported before or after this package
        "from transformers import AutoConfig, AutoTokenizer; import gensar_hf",
        "import gensar_hf; from transformers import AutoConfig, AutoTokenizer",
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
