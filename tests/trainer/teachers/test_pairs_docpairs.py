from pathlib import Path

import pytest

from xsweep.evaluator.data import load_collection
from xsweep.evaluator.specs import IrdsSpec
from xsweep.orchestrator.rehearsal.datasets import training_corpus, triples, write_datasets
from xsweep.trainer.teachers import pairs
from xsweep.trainer.teachers.formats import DocpairsSource


@pytest.mark.parametrize("dataset", ["msmarco-passage/train", "msmarco-passage/train/triples-v2"])
def test_triples_of_ir_datasets_are_read_from_their_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, dataset: str
) -> None:
    monkeypatch.setenv("XSWEEP_HOME", str(tmp_path / "home"))
    write_datasets(tmp_path / "irds", [dataset])
    spec = IrdsSpec(name="train", id=dataset, home=str(tmp_path / "irds"))
    collection = load_collection(spec)
    monkeypatch.setattr(pairs, "keep_lines", None)  # not line by line
    teacher = pairs.open_pairs(DocpairsSource(id=dataset), collection, training_corpus().documents)
    expected = triples(training_corpus()).splitlines()
    assert len(teacher) == len(expected) > 300
    for unit in (0, 17, len(expected) - 1):
        query, positive, negative = expected[unit].split("\t")
        sample = teacher.draw(unit)
        assert (sample.query_id, sample.doc_ids) == (query, (positive, negative))
