import pytest
import torch
from torch.distributed import DistBackendError

from xsweep.errors import SetupError
from xsweep.evaluator import device
from xsweep.evaluator.device import choose_precision, is_out_of_memory, require_gpu


@pytest.mark.parametrize(
    ("vendor", "family", "expected"),
    [("AuthenticAMD", "25", False), ("AuthenticAMD", "26", True), ("GenuineIntel", "6", False)],
)
def test_amds_units_of_512_bits_are_known_by_the_family(monkeypatch, vendor, family, expected):
    fields = {"vendor_id": vendor, "cpu family": family}
    monkeypatch.setattr(device, "_cpuinfo", fields.__getitem__)
    assert device.has_wide_amd_units() is expected


def test_pytorchs_error_of_a_cpu_without_memory_is_recognised():
    with pytest.raises(RuntimeError) as raised:
        torch.empty(2**60)
    assert is_out_of_memory(raised.value)


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (torch.OutOfMemoryError("CUDA out of memory"), True),
        (MemoryError(), True),
        (RuntimeError("CUDA error: out of memory\nCompile with TORCH_USE_CUDA_DSA"), True),
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling cublasCreate"), True),
        (RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"), True),
        (DistBackendError("NCCL error: ... Cuda failure 2 'out of memory'"), True),
        (RuntimeError("could not create a primitive"), True),
        (RuntimeError("mat1 and mat2 shapes cannot be multiplied"), False),
        (ValueError("memory"), False),
    ],
)
def test_out_of_memory_errors_are_distinguished_from_others(error, expected):
    assert is_out_of_memory(error) is expected


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_missing_gpu_is_reported_in_the_words_of_pytorch():
    with pytest.raises(SetupError, match=r"can use none on .*: (Torch not compiled with|Found no)"):
        require_gpu()


def test_a_usable_gpu_is_no_error(monkeypatch):
    monkeypatch.setattr(torch.cuda, "init", lambda: None)
    require_gpu()


def test_precision_is_the_setting_or_follows_the_hardware(monkeypatch):
    assert choose_precision("fp32") == (torch.float32, "as asked")
    assert choose_precision("bf16") == (torch.bfloat16, "as asked")
    monkeypatch.setattr(device, "bf16_units", lambda: ("avx512_bf16",))
    assert choose_precision("auto") == (torch.bfloat16, "the CPU has avx512_bf16")
    monkeypatch.setattr(device, "bf16_units", tuple)
    assert choose_precision("auto")[0] == torch.float32
