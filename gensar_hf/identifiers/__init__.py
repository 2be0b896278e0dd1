"""Vectors → codes → identifiers: quantization, the joint RQ-VAE, unique assignment and the identifier table."""

from gensar_hf.identifiers.identifier_table import IdentifierTable

__all__ = ["IdentifierTable"]
