"""Train and compare cross-encoder re-rankers: a grid file in, tables that a reviewer trusts out."""

__version__ = "0.1.0"
