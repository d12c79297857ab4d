"""The steps; a published one never changes again."""
