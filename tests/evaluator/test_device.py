import pytest
import torch

from xsweep.evaluator.device import is_out_of_memory


def test_pytorchs_error_of_a_cpu_without_memory_is_recognised():
    with pytest.raises(RuntimeError) as raised:
        torch.empty(2**60)
    assert is_out_of_memory(raised.value)


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (torch.OutOfMemoryError("CUDA out of memory"), True),
        (MemoryError(), True),
        (RuntimeError("could not create a primitive"), True),
        (RuntimeError("mat1 and mat2 shapes cannot be multiplied"), False),
        (ValueError("memory"), False),
    ],
)
def test_out_of_memory_errors_are_distinguished_from_others(error, expected):
    assert is_out_of_memory(error) is expected
