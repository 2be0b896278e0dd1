"""Search queries from the items' own texts, so that a log without a single query trains a search.

A person who looks for an item types its title, a part of it, the beginning of it, or what the person remembers of it,
and mistypes one query in five. `TextQueries.draw` mixes these for training. The other methods give one kind each, for
the benchmark of `evaluation.query_kinds`.
"""

from __future__ import annotations

import re
import unicodedata
from bisect import bisect
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from itertools import accumulate
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from gensar_hf.data.queries import STOP_WORDS
from gensar_hf.errors import InputError

if TYPE_CHECKING:
    from gensar_hf.data.dataset import InteractionDataset

ValueT = TypeVar("ValueT")

MISSPELLED_SHARE = 0.2  # of the training queries of every kind
AS_WRITTEN_SHARE = 0.5  # of the whole titles: with capitals and punctuation; the others are plain words
NO_APOSTROPHE_SHARE = 0.5  # of the queries with an apostrophe: "schindlers list"
AFTER_TITLE_WORDS_SHARE = 0.5  # of the attributes: "toy 1995", "brush ceramic"

MAX_TITLE_WORDS = 16  # of a whole title; a catalogue without titles has its descriptions there
MIN_DESCRIPTION_WORDS = 12
MAX_VALUE_WORDS = 4  # mean words between two separators up to which a column holds values rather than sentences

_NUM_SAMPLED = 1000  # texts that show what kind of column this is, and which of its words are common
_MIN_SAMPLED = 50  # fewer texts do not show which words are common
_COMMON = 0.25  # share of the texts from which on a word says nothing, in any language
_VALUE_SEPARATORS = re.compile(r"[,;|>]")
# Function words of English sentences; `STOP_WORDS` are those of category names.
_SENTENCE_STOP_WORDS = STOP_WORDS | {
    "about", "after", "all", "also", "am", "any", "are", "be", "because", "been", "before", "being", "both", "but",
    "can", "could", "did", "do", "does", "doing", "down", "during", "each", "few", "further", "had", "has", "have",
    "having", "he", "her", "here", "him", "his", "how", "i", "if", "itself", "just", "me", "more", "most", "my",
    "no", "nor", "not", "now", "off", "once", "only", "our", "out", "over", "own", "same", "she", "should", "so",
    "some", "such", "than", "that", "their", "them", "then", "there", "these", "they", "this", "those", "through",
    "too", "under", "until", "up", "us", "very", "was", "we", "were", "what", "when", "where", "which", "while",
    "who", "whom", "why", "will", "would", "you",
}  # fmt: skip
# Keys beside each letter of a keyboard: what a wrong letter is in Latin script.
_KEY_ROWS = ("qwertyuiop", "asdfghjkl", "zxcvbnm")


class _WordCharacters(dict[int, int | str]):
    """The table of `str.translate` that keeps letters, digits and combining marks, filled as characters are met."""

    def __missing__(self, code: int) -> int | str:
        character = chr(code)
        if character in "'’":
            kept: int | str = "'"
        else:
            kept = code if unicodedata.category(character)[0] in "LMN" else " "
        self[code] = kept
        return kept


_WORD_CHARACTERS = _WordCharacters()


def words(text: str) -> list[str]:
    """The words of a text in order, lower-cased: letters, digits and combining marks of any script.

    An apostrophe inside a word is part of it. All other punctuation separates words.

    >>> words("Schindler's List: Part_2 (1993)")
    ["schindler's", 'list', 'part', '2', '1993']
    """
    found = unicodedata.normalize("NFC", text.lower()).translate(_WORD_CHARACTERS).split()
    if "'" in text or "’" in text:
        found = [word for word in (word.strip("'") for word in found) if word]
    if not text.isascii():  # emoji carry combining marks, which are no word on their own
        found = [word for word in found if any(character.isalnum() for character in word)]
    return found


def misspell(text: str, rng: np.random.Generator) -> str:
    """The text with one typing error: a letter missing, doubled, swapped with its neighbor, or wrong (a quarter each).

    The error is in a word of at least three letters or digits if there is one. Where an error is impossible (two equal
    neighbors, the only letter), a letter is doubled instead, so that a text with a letter or digit always changes.
    """
    parts = text.split(" ")
    lengths = [sum(map(str.isalnum, part)) for part in parts]
    candidates = [index for index, length in enumerate(lengths) if length > 2] or np.flatnonzero(lengths).tolist()
    if not candidates:
        return text
    chosen = _choice(candidates, rng)
    parts[chosen] = _with_error(parts[chosen], rng)
    return " ".join(parts)


def _with_error(word: str, rng: np.random.Generator) -> str:
    letters = [index for index, character in enumerate(word) if character.isalnum()]
    error, place = int(4 * rng.random()), _choice(letters, rng)
    if error == 0 and len(letters) > 1:
        return word[:place] + word[place + 1 :]
    if error == 1:
        swappable = [index for index in letters[:-1] if word[index + 1] != word[index] and word[index + 1].isalnum()]
        if swappable:
            place = _choice(swappable, rng)
            return word[:place] + word[place + 1] + word[place] + word[place + 2 :]
    if error == 2:
        others: Sequence[str] = _beside(word[place].lower()) or [
            word[index] for index in letters if word[index] != word[place]
        ]
        if others:
            return word[:place] + _choice(others, rng) + word[place + 1 :]
    return word[: place + 1] + word[place:]


def _beside(letter: str) -> str:
    """The letters beside a letter on a keyboard; "" for other characters."""
    for row in _KEY_ROWS:
        if (place := row.find(letter)) >= 0:
            return row[max(place - 1, 0) : place] + row[place + 1 : place + 2]
    return ""


def _choice(values: Sequence[ValueT], rng: np.random.Generator) -> ValueT:
    """One of the values. `Generator.choice` takes ten times as long."""
    return values[int(rng.random() * len(values))]


def _some(values: Sequence[str], count: int, rng: np.random.Generator) -> list[str]:
    """`count` of the values (all, if there are fewer), in their order."""
    if count >= len(values):
        return list(values)
    places: set[int] = set()
    while len(places) < count:
        places.add(int(rng.random() * len(values)))
    return [values[place] for place in sorted(places)]


class TextQueries:
    """Queries made from the items' own texts: what a person types who looks for an item.

    A draw takes about 20 µs, the first one 7 s for a million titles.

    Args:
        titles: one per item.
        columns: other text columns, name → one text per item. A column of lists ("Animation, Children's, Comedy") or of
            short values is read as attributes, one of sentences as descriptions. A year has its decade, too, if the
            column's name says that it is one.

    Raises:
        InputError: a column has not one text per item.
    """

    def __init__(self, titles: Sequence[str], columns: Mapping[str, Sequence[str]]) -> None:
        for name, texts in columns.items():
            if len(texts) != len(titles):
                raise InputError(
                    f"The column {name} has {len(texts):,} texts for {len(titles):,} items; give one each."
                )
        self.titles, self.columns = titles, dict(columns)
        # Shares of the kinds of training queries. An item that lacks a kind (attributes, say) gets words of its title.
        kinds: dict[Callable[[int, np.random.Generator], str], float] = {
            self._whole_title: 0.22,
            self._rarest_words: 0.10,
            self._swapped_words: 0.05,
            self._prefix: 0.13,
            self._attributes: 0.15,
            self.description: 0.10,
            self._title_words: 0.25,
        }
        self._kinds, self._ends = list(kinds), list(accumulate(kinds.values()))[:-1]

    @classmethod
    def of_dataset(cls, dataset: InteractionDataset) -> TextQueries:
        """Queries for the items of a dataset; the titles are the column `title`, or else the first text column."""
        title_column = "title" if "title" in dataset.items.columns else dataset.text_columns[0]
        # The table's own arrays: a list would hold each text a second time.
        columns: dict[str, Any] = {column: dataset.items[column].array for column in dataset.text_columns}
        titles = columns.pop(title_column) if title_column in columns else dataset.titles
        return cls(titles, columns)

    def __len__(self) -> int:
        """Number of items."""
        return len(self.titles)

    def draw(self, item: int, rng: np.random.Generator) -> str:
        """A training query for the item, of a kind drawn by its share; "" if the item has no word at all."""
        query = self._kinds[bisect(self._ends, rng.random())](item, rng)
        query = query or self._title_words(item, rng) or self.attributes(item, rng) or self.description(item, rng)
        if "'" in query and rng.random() < NO_APOSTROPHE_SHARE:
            query = query.replace("'", "")
        return misspell(query, rng) if rng.random() < MISSPELLED_SHARE else query

    def title(self, item: int) -> str:
        """The title as it is written; "" if there is no word in it."""
        return self.titles[item] if self.title_words(item) else ""

    def title_words(self, item: int) -> list[str]:
        """The words of the title in order, lower-cased."""
        return words(self.titles[item])

    def part(self, item: int) -> str:
        """The two words that are in the fewest titles, in order; of equally rare ones the longer, then the earlier."""
        found, frequencies = list(dict.fromkeys(self.title_words(item))), self._title_frequencies
        if len(found) > 2:
            rarest = sorted(range(len(found)), key=lambda place: (frequencies[found[place]], -len(found[place]), place))
            found = [found[place] for place in sorted(rarest[:2])]
        return " ".join(found)

    def attributes(self, item: int, rng: np.random.Generator) -> str:
        """One or two values of columns of short values (genres, brand, year), in any order and lower case, or ""."""
        values = [value for name in self._value_columns for value in self._values(name, item)]
        chosen = [_choice(values, rng)] if values else []
        if values and rng.random() < 0.5:
            second = _choice(values, rng)
            chosen += [second] if second != chosen[0] else []
        return " ".join(_choice(value, rng) for value in chosen)

    def description(self, item: int, rng: np.random.Generator) -> str:
        """Three or four words of a text of at least 12 words, in order and lower case, without stop words, or "".

        Words that a quarter of the texts contain are stop words as well, whatever the language. In a catalogue of one
        text column the titles are these texts.
        """
        for texts, common in self._descriptions:
            found = words(texts[item])
            if len(found) >= MIN_DESCRIPTION_WORDS:
                content = [word for word in dict.fromkeys(found) if word not in common]
                return " ".join(_some(content, 3 + int(2 * rng.random()), rng))
        return ""

    # ---- kinds of training queries

    def _whole_title(self, item: int, rng: np.random.Generator) -> str:
        found = self.title_words(item)
        if len(found) <= MAX_TITLE_WORDS and rng.random() < AS_WRITTEN_SHARE:
            return self.title(item)
        return " ".join(found[:MAX_TITLE_WORDS])

    def _rarest_words(self, item: int, rng: np.random.Generator) -> str:
        return self.part(item)

    def _title_words(self, item: int, rng: np.random.Generator) -> str:
        """One to three words of the title in order, half of them neighbors, at least one of them no stop word."""
        return " ".join(self._chosen_words(item, 1 + int(3 * rng.random()), rng))

    def _chosen_words(self, item: int, count: int, rng: np.random.Generator) -> list[str]:
        found = self.title_words(item)
        if rng.random() < 0.5:
            start = int(rng.random() * (len(found) - count + 1)) if count < len(found) else 0
            chosen = found[start : start + count]
        else:
            chosen = _some(found, count, rng)
        if all(word in STOP_WORDS for word in chosen):
            content = [word for word in found if word not in STOP_WORDS]
            return [_choice(content, rng)] if content else chosen
        return chosen

    def _swapped_words(self, item: int, rng: np.random.Generator) -> str:
        chosen = self._chosen_words(item, 2 + int(2 * rng.random()), rng)
        if len(chosen) > 1:
            place = int(rng.random() * (len(chosen) - 1))
            chosen[place : place + 2] = chosen[place + 1], chosen[place]
        return " ".join(chosen)

    def _prefix(self, item: int, rng: np.random.Generator) -> str:
        """The beginning of the title up to the middle of its first, second or third word, at least two characters."""
        found = self.title_words(item)
        if found and found[0] in STOP_WORDS and rng.random() < 0.5:  # "godf" for "The Godfather"
            found = found[1:] or found
        typed = found[: 1 + int(3 * rng.random())]
        if not typed:
            return ""
        shortest = 1 if len(typed) > 1 else 2
        length = len(typed[-1])
        typed[-1] = typed[-1][: shortest + int(rng.random() * max(length - shortest, 1))]
        return " ".join(typed)

    def _attributes(self, item: int, rng: np.random.Generator) -> str:
        """Attributes, alone or after one or two words of the title."""
        query = self.attributes(item, rng)
        if query and rng.random() < AFTER_TITLE_WORDS_SHARE:
            return " ".join([*self._chosen_words(item, 1 + int(2 * rng.random()), rng), query])
        return query

    # ---- what the texts contain

    @cached_property
    def _title_frequencies(self) -> Counter[str]:
        """In how many titles each word is."""
        return Counter(word for title in self.titles for word in set(words(title)))

    def _sample(self, texts: Sequence[str]) -> list[str]:
        """Up to `_NUM_SAMPLED` of the texts that have a word, evenly over the catalogue."""
        sampled = texts[:: max(1, len(texts) // _NUM_SAMPLED)]
        return [text for text in sampled if words(text)]

    @cached_property
    def _value_columns(self) -> list[str]:
        """The columns of short values: few words between two separators."""
        return [name for name, texts in self.columns.items() if not self._has_sentences(texts)]

    def _has_sentences(self, texts: Sequence[str]) -> bool:
        values = [words(value) for text in self._sample(texts) for value in _VALUE_SEPARATORS.split(text)]
        lengths = [len(value) for value in values if value]
        return bool(lengths) and sum(lengths) > MAX_VALUE_WORDS * len(lengths)

    @cached_property
    def _descriptions(self) -> list[tuple[Sequence[str], frozenset[str]]]:
        """The columns of sentences, each with its stop words; the titles if there are no other columns."""
        columns = [texts for name, texts in self.columns.items() if name not in self._value_columns]
        return [(texts, self._stop_words(texts)) for texts in ([] if self.columns else [self.titles]) + columns]

    def _stop_words(self, texts: Sequence[str]) -> frozenset[str]:
        sampled = self._sample(texts)
        if len(sampled) < _MIN_SAMPLED:
            return _SENTENCE_STOP_WORDS
        counts = Counter(word for text in sampled for word in set(words(text)))
        return _SENTENCE_STOP_WORDS | {word for word, count in counts.items() if count > _COMMON * len(sampled)}

    def _values(self, name: str, item: int) -> list[tuple[str, ...]]:
        """The values of an item in a column, each as the ways to write it: a year is written as its decade, too."""
        values: list[tuple[str, ...]] = []
        is_year = "year" in name.lower()
        for text in _VALUE_SEPARATORS.split(self.columns[name][item]):
            value = " ".join(words(text))
            if is_year and len(value) == 4 and value.isdecimal():
                values.append((value, f"{value[:3]}0s"))
            elif value:
                values.append((value,))
        return values
