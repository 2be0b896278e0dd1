"""The files of a Hugging Face Space that shows the page of a model: `gensar space`."""

import json
import os
import shutil
from importlib.metadata import version
from pathlib import Path

from gensar_hf.errors import InputError
from gensar_hf.files import atomic_path

_MODEL_DIR = "model"
_GRADIO = "6.31.0"  # the oldest version that the extra [serve] takes

_CARD = """---
title: {title}
emoji: 🔎
colorFrom: blue
colorTo: gray
sdk: gradio
sdk_version: {gradio}
app_file: app.py
{models}---

One generative model that recommends, searches and suggests queries ([gensar-hf](https://doi.org/10.1145/3705328.3748071)).
"""

_APP = '''"""The page of a GenSAR model. The REST API is at /v1, its description at /docs."""

import os
from pathlib import Path

from gensar_hf import GenSARPipeline
from gensar_hf.serving.server import run
from gensar_hf.serving.settings import ServingSettings

MODEL = {model}

if __name__ == "__main__":
    settings = ServingSettings(host="0.0.0.0", port=int(os.environ.get("PORT", "7860")))
    run(lambda: GenSARPipeline.from_pretrained(MODEL), settings, print)
'''


def write_space(model: str, output_dir: str | os.PathLike[str]) -> Path:
    """Write `README.md`, `app.py` and `requirements.txt`, and a copy of the model if it is a folder.

    Args:
        model: Hub name, or a run or model folder.
        output_dir: of the Space; must not exist, or be empty.

    Returns:
        the folder.

    Raises:
        InputError: the folder is not empty, or there is no such model folder.
    """
    folder, source = Path(output_dir), Path(model)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise InputError(f"{folder} exists already and is not an empty folder; name another one with --output_dir.")
    source = source / _MODEL_DIR if (source / _MODEL_DIR).is_dir() else source
    is_folder = source.is_dir()
    if is_folder and not (source / "config.json").is_file():
        raise InputError(f"{source} holds no model (config.json); give a run, a model folder or a Hub name.")
    if not is_folder and model.count("/") != 1:
        raise InputError(f"{model} is neither a folder nor a Hub name such as me/films.")
    name = source.parent.name if source.name == _MODEL_DIR else source.name
    models = "" if is_folder else f"models:\n  - {model}\npreload_from_hub:\n  - {model}\n"
    written = {
        "README.md": _CARD.format(title=json.dumps(f"GenSAR: {name}"), gradio=_GRADIO, models=models),
        "app.py": _APP.format(model=f'Path(__file__).parent / "{_MODEL_DIR}"' if is_folder else json.dumps(model)),
        "requirements.txt": f"gensar-hf[serve]=={version('gensar-hf')}\n",
    }
    with atomic_path(folder) as aside:
        aside.mkdir()
        for file_name, text in written.items():
            (aside / file_name).write_text(text, encoding="utf-8")
        if is_folder:
            shutil.copytree(source, aside / _MODEL_DIR)
    return folder
