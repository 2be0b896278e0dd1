"""Text and identifiers → tokens → the next item."""
