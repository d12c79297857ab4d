"""Collections, candidates, token stores, scoring with a cross-encoder, measures and statistics."""
