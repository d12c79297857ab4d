"""Models that score pairs or embed texts, their tokenizers and their token stores."""
