"""Teachers: where samples come from. One sample is a query with its documents and targets."""

from __future__ import annotations

from collections.abc import Container, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from xsweep.trainer.teachers.teacher import Teacher

if TYPE_CHECKING:
    from xsweep.evaluator.data.collection import Collection
    from xsweep.trainer.specs import TeacherSpec


def open_teacher(
    spec: TeacherSpec,
    collection: Collection,
    documents: Container[str],
    inputs: Mapping[str, Path],
) -> Teacher:
    """The teacher that a specification names, over one collection's queries and qrels.

    Raises DataError where a file is missing, malformed or not what was declared, where a document
    is unknown, and where nothing is left to train on.
    """
    from xsweep.trainer.teachers.formats import FORMATS
    from xsweep.trainer.teachers.lists import ListTeacher, read_lists
    from xsweep.trainer.teachers.pairs import open_pairs

    if FORMATS[spec.source.type].pairs:
        return open_pairs(spec.source, collection, documents)
    lists = read_lists(spec, inputs)
    return ListTeacher(spec, lists, collection.queries, collection.qrels, documents)
