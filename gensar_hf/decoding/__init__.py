"""Constrained decoding: a trie of identifiers, the logits processor and the beam search that follow it."""

from gensar_hf.decoding.beam_search import TrieBeamSearch
from gensar_hf.decoding.logits_process import TrieLogitsProcessor
from gensar_hf.decoding.trie import Trie

__all__ = ["Trie", "TrieBeamSearch", "TrieLogitsProcessor"]
