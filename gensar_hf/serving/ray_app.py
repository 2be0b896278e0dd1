"""The application of `gensar serve` as a deployment of Ray Serve: replicas on several machines, as many as are needed.

    serve run gensar_hf.serving.ray_app:build model=films/model

`ray_serve.yaml` next to this file is a configuration with autoscaling, for `serve deploy`.
"""

from dataclasses import fields
from pathlib import Path
from typing import Any

from fastapi import FastAPI
from pydantic import TypeAdapter
from ray import serve

from gensar_hf.errors import InputError
from gensar_hf.pipeline import GenSARPipeline
from gensar_hf.serving.app import create_app
from gensar_hf.serving.settings import ServingSettings

_SETTINGS = [field.name for field in fields(ServingSettings) if field.name.startswith("max_")] + ["timeout_s"]


def build(arguments: dict[str, Any]) -> serve.Application:
    """The deployment `GenSAR`, in which each replica has its own model, batches and queue.

    There is no page, and the catalogue cannot be changed, since a request reaches one of the replicas.

    Args:
        arguments: `model`, a Hub name or a folder that all machines see; and limits of `ServingSettings`.

    Raises:
        InputError: no model, or an unknown setting.
    """
    values = dict(arguments)
    model = values.pop("model", None)
    unknown = [name for name in values if name not in _SETTINGS]
    if not model or unknown:
        what = f"there is no setting {unknown[0]}" if unknown else "no model is named"
        raise InputError(f"The arguments of the application are model, {', '.join(_SETTINGS)}; {what}.")
    folder = Path(model) / "model" if (Path(model) / "model").is_dir() else Path(model)
    name = str(folder.resolve()) if folder.is_dir() else model
    settings = TypeAdapter(ServingSettings).validate_python({**values, "page": False})

    def application() -> FastAPI:
        return create_app(GenSARPipeline.from_pretrained(name), settings)

    deployment = serve.deployment(serve.ingress(application)(), name="GenSAR")
    return deployment.options(max_ongoing_requests=settings.max_queue).bind()
