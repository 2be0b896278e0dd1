"""Which token may come next: a trie of identifiers and the logits processor that enforces it."""

from gensar_hf.decoding.logits_process import TrieLogitsProcessor
from gensar_hf.decoding.trie import ExcludedItems, Trie

__all__ = ["ExcludedItems", "Trie", "TrieLogitsProcessor"]
