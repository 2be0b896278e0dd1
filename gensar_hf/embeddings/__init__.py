"""Items to vectors: text encoders, and SASRec whose item table is the collaborative embedding.

Import from the modules, so that reading embeddings loads neither torch nor transformers.
"""
