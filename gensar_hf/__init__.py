"""GenSAR for Hugging Face: one generative model for search and recommendation."""
