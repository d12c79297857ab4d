"""The space of a search: where the values of a setting come from, and samples drawn by Ray Tune."""

from collections.abc import Mapping
from typing import Any, Self

from pydantic import Field, model_validator

from evaluator.specs import Spec
from trainer.specs import OptimisationSpec

DIGITS = 4
"""Of a number that is drawn: `2.345e-05` can be read, and written into a grid file."""
DRAWS = 1_000
"""So many times is drawn for each sample that must differ from the others."""


class Range(Spec):
    """Values of a setting: `{choice: [1e-5, 3e-5]}`, `{uniform: [0, 0.1]}` or `{loguniform: …}`."""

    choice: tuple[Any, ...] | None = Field(None, min_length=1)
    uniform: tuple[float, float] | None = None
    """Between two numbers, each equally likely; whole numbers where the setting has such."""
    loguniform: tuple[float, float] | None = None
    """Between two positive numbers, their logarithms equally likely."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        given = [name for name in ("choice", "uniform", "loguniform") if getattr(self, name)]
        if len(given) != 1:
            raise ValueError("give exactly one of choice, uniform, loguniform")
        if bounds := self.uniform or self.loguniform:
            if not bounds[0] < bounds[1]:
                raise ValueError(f"the first bound must be below the second: {list(bounds)}")
            if self.loguniform and bounds[0] <= 0:
                raise ValueError(f"a loguniform bound must be positive: {list(bounds)}")
        return self


def draw(space: Mapping[str, Range], samples: int, seed: int) -> list[dict[str, Any]]:
    """So many different samples of the space, fewer where no new one comes any more.

    The same for the same arguments, whatever the order of the settings; those of fewer samples are
    the first of those of more.
    """
    import numpy as np

    random = np.random.default_rng(seed)
    domains = {name: _domain(name, values) for name, values in sorted(space.items())}
    found: list[dict[str, Any]] = []
    for _ in range(samples * DRAWS):
        drawn = {
            name: _readable(domain.sample(random_state=random)) for name, domain in domains.items()
        }
        if drawn not in found:
            found.append(drawn)
        if len(found) == samples:
            break
    return found


def _domain(name: str, values: Range) -> Any:
    """The domain of Ray Tune; whole numbers where the setting has such, both bounds included."""
    from ray import tune

    if values.choice is not None:
        return tune.choice(list(values.choice))
    is_whole = OptimisationSpec.model_fields[name].annotation is int
    low, high = values.uniform or values.loguniform or (0.0, 1.0)
    if is_whole:
        draw_whole = tune.randint if values.uniform else tune.lograndint
        return draw_whole(round(low), round(high) + 1)
    return tune.uniform(low, high) if values.uniform else tune.loguniform(low, high)


def _readable(value: Any) -> Any:
    if isinstance(value, float):
        return float(f"{value:.{DIGITS}g}")
    return value.item() if hasattr(value, "item") else value
