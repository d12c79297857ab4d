"""The history of the schema, one numbered step per file in `versions`."""
