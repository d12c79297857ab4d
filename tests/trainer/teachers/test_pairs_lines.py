import io

import pytest
from hypothesis import given
from hypothesis import strategies as st

from xsweep.trainer.teachers import pairs
from xsweep.trainer.teachers.pairs import STRIDE, keep_lines, open_lines


@given(
    st.lists(st.binary(max_size=9).map(lambda line: line.replace(b"\n", b"")), max_size=70),
    st.booleans(),
    st.integers(1, 40),
)
def test_lines_are_those_of_pythons_own_reader(tmp_path_factory, texts, closed, chunk_bytes):
    content = b"\n".join(texts) + (b"\n" if closed and texts else b"")
    path = tmp_path_factory.mktemp("lines") / "file"
    path.write_bytes(content)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pairs, "CHUNK_BYTES", chunk_bytes)
        found = open_lines(path)
    expected = [line.rstrip(b"\n") for line in io.BytesIO(content)]
    assert [found[number] for number in range(len(found))] == expected


def test_one_place_in_sixteen_is_kept_in_memory():
    found = keep_lines(b"q\ta\tb\n" for _ in range(10 * STRIDE))
    assert len(found) == 160
    assert len(found._starts) == 10 + 1
