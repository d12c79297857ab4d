"""Rehearsals: the same jobs, with tiny random models on small generated data of the real formats."""
