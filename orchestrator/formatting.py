"""Format numbers, lists, durations and sizes for people."""

from collections.abc import Sequence


def signed(value: float, digits: int) -> str:
    """`+0.012` or `−0.012`, with a minus sign and not a hyphen."""
    return f"{'−' if value < 0 else '+'}{abs(value):.{digits}f}"


def p_value(p: float) -> str:
    """`p = 0.046` or `p < 0.001`."""
    return "p < 0.001" if p < 0.001 else f"p = {p:.3f}"


def listed(names: Sequence[str]) -> str:
    """`a`, `a and b`, `a, b and c`."""
    return " and ".join(filter(None, [", ".join(names[:-1]), *names[-1:]]))


def counted(number: int, noun: str) -> str:
    """`1 job`, `2 jobs`."""
    return f"{number} {noun}{'' if number == 1 else 's'}"


def duration(seconds: float) -> str:
    """Format as `45 s`, `12 min`, `3 h 20 min`, `2 d 4 h`."""
    if seconds < 99.5:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    if minutes < 100:
        return f"{minutes} min"
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours < 48 else f"{hours // 24} d {hours % 24} h"


def data_size(size_bytes: float) -> str:
    """Format as `999 B`, `1.5 kB`, `12 MB`, `1.2 TB`, by powers of 1000."""
    for unit in ("B", "kB", "MB", "GB"):
        if size_bytes < 1000:
            digits = 0 if size_bytes >= 10 or unit == "B" else 1
            return f"{size_bytes:.{digits}f} {unit}"
        size_bytes /= 1000
    return f"{size_bytes:.1f} TB"
