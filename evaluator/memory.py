"""When memory ran out: on a GPU PyTorch has an error of its own for it, on a CPU it has not."""

import torch


def is_out_of_memory(error: BaseException) -> bool:
    """Whether a device, or PyTorch's allocator of a CPU, had no memory left."""
    is_named = isinstance(error, torch.OutOfMemoryError | MemoryError)
    return is_named or "DefaultCPUAllocator" in str(error)
