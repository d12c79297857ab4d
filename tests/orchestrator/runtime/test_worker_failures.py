import errno

import pydantic
import pytest
import torch
from disks import run_on_a_small_disk
from torch.distributed import DistBackendError

from xsweep.errors import ConfigError, DataError, DivergenceError, SetupError, Stopped
from xsweep.orchestrator.runtime.worker import classify


class Settings(pydantic.BaseModel):
    steps: int


def invalid_settings() -> Exception:
    with pytest.raises(pydantic.ValidationError) as caught:
        Settings(steps="many")
    return caught.value


def test_wrong_settings_are_described_without_the_words_of_pydantic() -> None:
    expected = "steps should be a valid integer, unable to parse string as an integer, not 'many'"
    assert classify(invalid_settings()) == ("CONFIG", expected)


@pytest.mark.parametrize(
    ("error", "failure"),
    [
        (ConfigError("x"), "CONFIG"),
        (DataError("x"), "DATA"),
        (DivergenceError("x"), "NAN"),
        (SetupError("x"), "INFRA"),
        (Stopped("x"), "PREEMPTED"),
        (invalid_settings(), "CONFIG"),
        (ModuleNotFoundError("no flash_attn"), "CONFIG"),
        (torch.OutOfMemoryError("CUDA out of memory"), "OOM_GPU"),
        (RuntimeError("CUDA error: out of memory\nCompile with TORCH_USE_CUDA_DSA"), "OOM_GPU"),
        (
            RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling cublasCreate"),
            "OOM_GPU",
        ),
        (RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"), "OOM_GPU"),
        (DistBackendError("NCCL error: ... Cuda failure 2 'out of memory'"), "OOM_GPU"),
        (DistBackendError("NCCL error: remote process exited"), "NODE"),
        (RuntimeError("could not create a primitive"), "OOM_HOST"),
        (MemoryError(), "OOM_HOST"),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried"), "OOM_HOST"),
        (OSError(errno.ENOSPC, "No space left on device"), "INFRA"),
        (OSError(errno.ENOENT, "No such file"), "UNKNOWN"),
        (ZeroDivisionError("division by zero"), "UNKNOWN"),
        (SystemExit(3), "UNKNOWN"),
    ],
)
def test_an_exception_has_one_failure_class(error, failure):
    assert classify(error)[0] == failure


def test_the_message_of_our_own_error_is_the_reason():
    assert classify(DataError("run.gz:7: two columns"))[1] == "run.gz:7: two columns"


def test_the_reason_names_a_foreign_exception():
    assert classify(ZeroDivisionError("division by zero"))[1] == (
        "ZeroDivisionError: division by zero"
    )
    assert classify(MemoryError())[1] == "MemoryError: no message"


ON_A_FULL_DISK = """
from xsweep.orchestrator.runtime.worker import Worker

fill()
worker = Worker(gpus=0)
task = {"job_id": 1, "token": 1, "kind": "train", "name": "train", "spec": {}, "inputs": {}}
task |= {"out": f"{disk}/out", "log": f"{disk}/out.log", "previous": []}
outcome = worker.run({**task, "root": str(disk), "remote": None})
print(outcome["state"], outcome["failure"], outcome["reason"])
"""


def test_a_worker_on_a_full_disk_fails_as_infra(tmp_path):
    printed = run_on_a_small_disk(ON_A_FULL_DISK, tmp_path / "disk")
    assert printed.startswith("failed INFRA OSError: [Errno 28] No space left on device"), printed
