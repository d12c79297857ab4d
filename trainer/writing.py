"""Writing results: what the disk answers, as an error that says what to do."""

import errno
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError

from xsweep import SetupError

FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}


@contextmanager
def writing(place: Path) -> Iterator[None]:
    """Raises SetupError where writing to `place` fails; finished checkpoints are not touched."""
    try:
        yield
    except (OSError, SafetensorError) as error:
        number = getattr(error, "errno", None)
        full = number in FULL or any(f"os error {code}" in str(error) for code in FULL)
        hint = "the disk is full: make room" if full else "see to the disk and its rights"
        raise SetupError(
            f"{place}: cannot be written ({error}); {hint} and run the training again, it goes on "
            "from its last checkpoint"
        ) from error
