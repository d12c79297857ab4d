"""Fine-tunes a cross-encoder from one specification: a JSON file in, a folder out."""
