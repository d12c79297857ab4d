"""Per-query scores as packed arrays: a little-endian float64 per query, ids once per collection."""

import hashlib
import json
import math
import struct
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from sqlalchemy import Connection, insert, select, text

from xsweep.db.schema import QuerySet, Score
from xsweep.db.transaction import to_json
from xsweep.errors import DataError


@dataclass(frozen=True, kw_only=True)
class PackedScores:
    """The scores of one evaluation, ready to be stored."""

    name: str
    query_ids: tuple[str, ...]
    """Ascending; the order of the values in every array."""
    arrays: dict[str, bytes]
    means: dict[str, float]


def pack_scores(scores: Mapping[str, Mapping[str, float]], name: str) -> PackedScores:
    """Pack {measure: {query id: value}}; `name` is the collection's.

    {"nDCG@10": {"q2": 0.5, "q1": 1.0}} packs 1.0 and 0.5, of q1 and q2; their mean is 0.75. Raises
    DataError when measures cover different queries, or none, or a value is not finite.
    """
    query_ids = tuple(sorted(next(iter(scores.values()), ())))
    arrays: dict[str, bytes] = {}
    means: dict[str, float] = {}
    for measure, values in scores.items():
        if values.keys() != set(query_ids) or not values:
            raise DataError(
                f"scores of {name}: {measure} has {len(values)} queries where the first measure has"
                f" {len(query_ids)}; every measure needs a value for every query of the qrels"
            )
        ordered = [float(values[query_id]) for query_id in query_ids]
        if not all(map(math.isfinite, ordered)):
            worst = next(q for q in query_ids if not math.isfinite(values[q]))
            raise DataError(f"scores of {name}: {measure} of query {worst} is {values[worst]}")
        arrays[measure] = struct.pack(f"<{len(ordered)}d", *ordered)
        means[measure] = math.fsum(ordered) / len(ordered)
    return PackedScores(name=name, query_ids=query_ids, arrays=arrays, means=means)


def store_scores(connection: Connection, job_id: int, packed: PackedScores) -> None:
    """Insert the arrays of an accepted result."""
    if not packed.arrays:
        return
    set_id = _query_set(connection, packed.name, packed.query_ids)
    rows = [
        {"job_id": job_id, "measure": measure, "query_set_id": set_id, "packed": array}
        | {"mean": packed.means[measure]}
        for measure, array in packed.arrays.items()
    ]
    connection.execute(insert(Score), rows)


def checksum_scores(packed: PackedScores) -> str | None:
    """The checksum of an evaluation's scores, None when there are none."""
    if not packed.arrays:
        return None
    digest = digest_query_ids(packed.query_ids)
    return checksum_arrays((measure, digest, array) for measure, array in packed.arrays.items())


def checksum_arrays(scores: Iterable[tuple[str, str, bytes]]) -> str:
    """SHA-256 over (measure, digest of its query ids, array), in the order of the measures."""
    checksum = hashlib.sha256()
    for measure, digest, array in sorted(scores):
        checksum.update(f"{measure}\0{digest}\0{len(array)}\0".encode())
        checksum.update(array)
    return checksum.hexdigest()


def digest_query_ids(query_ids: Iterable[str]) -> str:
    """SHA-256 of the ids as a JSON list."""
    return hashlib.sha256(json.dumps(list(query_ids)).encode()).hexdigest()


def _query_set(connection: Connection, name: str, query_ids: tuple[str, ...]) -> int:
    digest = digest_query_ids(query_ids)
    known = select(QuerySet.id).where(QuerySet.digest == digest)
    if (found := connection.scalar(known)) is not None:
        return found
    row = {"digest": digest, "name": name, "query_ids": to_json(query_ids)}
    new = "INSERT INTO query_set (digest, name, query_ids) VALUES (:digest, :name, :query_ids)"
    connection.execute(text(f"{new} ON CONFLICT DO NOTHING"), row)
    return connection.scalar(known)  # type: ignore[return-value]
