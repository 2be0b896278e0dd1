"""Words to ids, for models that learn a vector per word."""

import os
import re
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np

from gensar_hf.files import read_json, write_json

PADDING = 0
MAX_WORDS = 64  # of a text that are read; catalogues hold descriptions of any length
_VOCABULARY_FILE = "vocabulary.json"
_WORD = re.compile(r"\w+")


class Vocabulary:
    """The lower-cased words that a model knows; a word's id is its place, counted from 1.

    Args:
        words: distinct.
    """

    def __init__(self, words: Sequence[str]) -> None:
        self.words = list(words)
        self._ids = {word: place for place, word in enumerate(self.words, start=1)}

    def __len__(self) -> int:
        return len(self.words)

    @classmethod
    def from_texts(cls, texts: Iterable[str]) -> "Vocabulary":
        """The texts' words, in the order of the alphabet: that of the log would tell where held-out queries stand."""
        return cls(sorted({word for text in texts for word in split_words(text)}))

    def encode(self, texts: Sequence[str]) -> np.ndarray:
        """The first `MAX_WORDS` known words of each text; unknown ones are passed over.

        Returns:
            `(num_texts, longest)` int64 word ids, 0 = padding, on the right; at least one column.

        >>> Vocabulary(["space", "war"]).encode(["War in space", "comedy"])
        array([[2, 1],
               [0, 0]])
        """
        rows = [[self._ids[word] for word in split_words(text) if word in self._ids][:MAX_WORDS] for text in texts]
        table = np.full((len(rows), max([1, *map(len, rows)])), PADDING, dtype=np.int64)
        for row, ids in zip(table, rows, strict=True):
            row[: len(ids)] = ids
        return table

    def save(self, folder: str | os.PathLike[str]) -> None:
        """Write `vocabulary.json`."""
        write_json(Path(folder) / _VOCABULARY_FILE, self.words)

    @classmethod
    def load(cls, folder: str | os.PathLike[str]) -> "Vocabulary":
        """Read what `save` wrote."""
        return cls(read_json(Path(folder) / _VOCABULARY_FILE))


def split_words(text: str) -> list[str]:
    """The words of a text, lower-cased, in order.

    >>> split_words("Children's film, 1990s")
    ['children', 's', 'film', '1990s']
    """
    return _WORD.findall(text.lower())
