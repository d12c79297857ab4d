"""Rehearsals: the same jobs, with tiny random models on small data, generated in real formats."""
