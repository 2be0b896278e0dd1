"""The generator: tokenizer, model, training examples, adapters, and scores of items."""
