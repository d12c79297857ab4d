"""When what a step frees is kept for the next one."""

import platform
import subprocess
import sys

import pytest

ASK = """
import resource
from xsweep.trainer.cpu_kernels import keep_freed_memory
limit = {limit}
resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
print(keep_freed_memory())
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="the C library is not glibc")
@pytest.mark.parametrize(("limit", "kept"), [("resource.RLIM_INFINITY", True), ("2**40", False)])
def test_freed_memory_is_kept_where_the_address_space_has_no_limit(limit, kept):
    command = [sys.executable, "-c", ASK.format(limit=limit)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == str(kept)
