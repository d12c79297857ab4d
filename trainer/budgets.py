"""The token budget of a backward pass, halved where the memory did not hold it."""

import json
import logging
from collections.abc import Iterable
from pathlib import Path

log = logging.getLogger(__name__)

NAME = "budgets.json"


class Budgets:
    """The budget of every step; a smaller one cuts the same global batch into more pieces.

    Each halving is kept in `budgets.json` as [step, tokens], at once, so that the next attempt
    does not run into the same wall, and one that resumes before that step computes the steps up
    to it as they were computed.
    """

    def __init__(self, tokens: int, out: Path, earlier: Iterable[Path] = ()) -> None:
        """`earlier` are folders of earlier attempts; the smallest budget of a step counts."""
        self.tokens, self.path = tokens, out / NAME
        self.halved: list[list[int]] = []
        """[step, tokens]: the budget from that step on, where it is not the one asked for."""
        for path in (folder / NAME for folder in earlier):
            if path.is_file():
                self.halved += json.loads(path.read_text(encoding="utf-8"))
        self.halved = sorted(map(list, dict.fromkeys(map(tuple, self.halved))))
        if self.halved:
            self._write()

    def at(self, step: int) -> int:
        """The budget in tokens of a step."""
        return min((tokens for first, tokens in self.halved if first <= step), default=self.tokens)

    def halve(self, step: int, largest: int, error: Exception) -> None:
        """Halves the budget from a step on, to below its largest micro-batch.

        Raises the error again where nothing is left to halve.
        """
        tokens = min(self.at(step), largest) // 2
        if tokens < 1:
            raise error
        self.halved.append([step, tokens])
        self._write()
        log.warning(
            "out of memory in step %d: micro-batches of %d tokens from here on", step, tokens
        )

    def _write(self) -> None:
        self.path.write_text(json.dumps(self.halved) + "\n", encoding="utf-8")
