"""Items to vectors: text encoders, SASRec (collaborative embeddings), and cold-start prediction."""
