"""Which token may come next, and the search over it: a trie of identifiers, what enforces it, what is fast with it."""

from gensar_hf.decoding.beam_search import TrieBeamSearch
from gensar_hf.decoding.excluded_items import AllowedItems, ExcludedItems
from gensar_hf.decoding.logits_process import TrieLogitsProcessor
from gensar_hf.decoding.packed_linear import pack_linears
from gensar_hf.decoding.trie import Trie

__all__ = ["AllowedItems", "ExcludedItems", "Trie", "TrieBeamSearch", "TrieLogitsProcessor", "pack_linears"]
