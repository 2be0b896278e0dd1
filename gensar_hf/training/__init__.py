"""Training: arguments, trainer, stages, adapters."""
