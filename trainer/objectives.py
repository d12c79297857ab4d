"""Objectives: the losses that a training can minimise, each one function under `@objective`.

`OBJECTIVES[name].function(scores_QD, targets_QD, mask_QD, **parameters) -> (sum, count)`.
Q queries by D documents; scores and targets fp32, higher is better; `mask_QD` is True for
documents and False for padding. The count depends on targets and mask only: a global batch can be
cut into micro-batches and their sums divided by the global count, and the cut changes nothing.

Planning a grid imports this module, so the functions import torch when they are called.
"""

from __future__ import annotations

import hashlib
import inspect
from collections.abc import Callable, Iterator, Mapping
from functools import cache
from importlib.metadata import EntryPoint, entry_points
from typing import TYPE_CHECKING, Literal, NamedTuple, get_args

from xsweep.errors import ConfigError
from xsweep.evaluator.specs import Spec

if TYPE_CHECKING:
    from torch import Tensor

    Loss = Callable[..., tuple[Tensor, Tensor]]

GROUP = "xsweep.objectives"
"""Entry-point group of losses in installed packages."""
Signal = Literal["labels", "scores", "ranking"]


class Package(Spec):
    """The installed package of a loss, part of the identity of its runs."""

    name: str
    version: str
    sha256: str
    """Checksum of the function's source text."""

    @property
    def title(self) -> str:
        """Name, version and the start of the checksum."""
        return f"{self.name} {self.version} (source {self.sha256[:8]})"


class Objective(NamedTuple):
    """A loss, the signals that can feed it, and its parameters."""

    function: Loss
    signals: frozenset[Signal]
    """Scores also give a ranking; only scores give scores."""
    parameters: dict[str, float]
    """The function's keyword-only parameters with their defaults, all positive numbers."""
    package: Package | None = None
    """None for a built-in loss."""
    pointwise: bool = False
    """True for a loss that learns from a document by itself."""

    @property
    def labels_only(self) -> bool:
        """True for a loss that learns only from labels."""
        return self.signals == {"labels"}


_DECLARED: dict[Loss, Objective] = {}
_BUILT_IN: dict[str, Objective] = {}


def objective(*, signals: tuple[Signal, ...], pointwise: bool = False) -> Callable[[Loss], Loss]:
    """Declares a function as a loss that any of these signals can feed.

    Raises ConfigError for an unknown signal and for a parameter whose default is not positive.
    """
    if not signals or set(signals) - set(get_args(Signal)):
        known = ", ".join(get_args(Signal))
        raise ConfigError(f"signals={signals!r}: name at least one of {known}")

    def declare(function: Loss) -> Loss:
        parameters = {}
        for name, parameter in inspect.signature(function).parameters.items():
            if parameter.kind is parameter.KEYWORD_ONLY:
                default = parameter.default
                if not isinstance(default, int | float) or not 0 < default < float("inf"):
                    raise ConfigError(
                        f"{function.__name__}: {name} needs a default that is positive and finite"
                    )
                parameters[name] = default
        declared = Objective(function, frozenset(signals), parameters, None, pointwise)
        _DECLARED[function] = declared
        if function.__module__ == __name__:
            _BUILT_IN[function.__name__] = declared
        return function

    return declare


class _Objectives(Mapping[str, Objective]):
    """Objectives by name: built-in ones, then those of installed packages.

    Looks at packages only for a name that is not built in and to list all names. Raises ConfigError
    for a package that fails to import or that takes the name of another loss.
    """

    def __getitem__(self, name: str) -> Objective:
        return _BUILT_IN[name] if name in _BUILT_IN else _load(name)

    def __iter__(self) -> Iterator[str]:
        return iter((*_BUILT_IN, *_entry_points()))

    def __len__(self) -> int:
        return len(_BUILT_IN) + len(_entry_points())


OBJECTIVES: Mapping[str, Objective] = _Objectives()


def _entry_points() -> dict[str, EntryPoint]:
    found: dict[str, EntryPoint] = {}
    owners = dict.fromkeys(_BUILT_IN, "xsweep")
    for point in entry_points(group=GROUP):
        assert point.dist, "set by entry_points()"
        if point.name in owners:
            raise ConfigError(
                f"the package {point.dist.name} has an objective {point.name!r}, as "
                f"{owners[point.name]} has: rename its entry point or uninstall the package"
            )
        found[point.name], owners[point.name] = point, point.dist.name
    return found


@cache
def _load(name: str) -> Objective:
    """Imports the loss of an installed package. Raises KeyError for an unknown name."""
    point = _entry_points()[name]
    package = point.dist
    assert package, "set by entry_points()"
    place = f"the objective {name!r} ({point.value}) of the package {package.name}"
    try:
        function = point.load()
        source = inspect.getsource(function)
    except Exception as error:  # foreign code can raise any type
        raise ConfigError(
            f"{place} {package.version} cannot be imported: {type(error).__name__}: {error}: "
            "repair the package or uninstall it"
        ) from error
    if function not in _DECLARED:
        raise ConfigError(f"{place} is not declared: put @objective(signals=…) above it")
    sha256 = hashlib.sha256(source.encode()).hexdigest()
    return _DECLARED[function]._replace(
        package=Package(name=package.name, version=package.version, sha256=sha256)
    )


def log_shares(values_QD: Tensor, mask_QD: Tensor, temperature: float = 1.0) -> Tensor:
    """log softmax(values / temperature) among each query's own documents.

    Padding takes no share and gets no gradient; its entries are meaningless.
    """
    import torch

    # A finite floor: -inf would give a query without documents a NaN gradient.
    floor = torch.finfo(values_QD.dtype).min
    return (values_QD / temperature).masked_fill(~mask_QD, floor).log_softmax(dim=-1)


def masked_sum(values: Tensor, mask: Tensor) -> Tensor:
    """Sums the values where the mask is True, on a GPU without the wait of `values[mask]`."""
    return values.where(mask, 0).sum()


def average_ranks(values_QD: Tensor, mask_QD: Tensor) -> Tensor:
    """The rank of each document, fp32: 1 is the highest value, ties share their average rank.

    Values (3, 1, 3) have ranks (1.5, 3, 1.5). The ranks of padding are meaningless.
    """
    others_QDD = mask_QD[:, None, :] & mask_QD[:, :, None]
    better_QDD = (values_QD[:, None, :] > values_QD[:, :, None]) & others_QDD
    tied_QDD = (values_QD[:, None, :] == values_QD[:, :, None]) & others_QDD
    return better_QDD.sum(dim=-1) + (tied_QDD.sum(dim=-1) + 1) / 2


def preferred_pairs(targets_QD: Tensor, mask_QD: Tensor) -> Tensor:
    """bool_QDD: True at (i, j) for documents i and j with t_i > t_j."""
    both_QDD = mask_QD[:, :, None] & mask_QD[:, None, :]
    return (targets_QD[:, :, None] > targets_QD[:, None, :]) & both_QDD


@objective(signals=("labels",), pointwise=True)
def bce(
    scores_QD: Tensor, targets_QD: Tensor, mask_QD: Tensor, *, positive_weight: float = 1.0
) -> tuple[Tensor, Tensor]:
    """Sum over documents of -w log σ(s) if the target is positive, else -log σ(-s); their count.

    w is `positive_weight`: in lists of 1 positive and 7 negatives, 7 gives both sides the same
    weight. Nogueira & Cho 2019, eq. 1 (https://arxiv.org/abs/1901.04085). Worked number: scores
    (2, 0), targets (1, 0) give log(1 + e^-2) + log 2 = 0.126928 + 0.693147 over 2 documents.
    """
    from torch.nn.functional import softplus

    positive_QD = targets_QD > 0
    losses_QD = softplus(scores_QD.where(~positive_QD, -scores_QD))
    if positive_weight != 1:
        losses_QD = losses_QD * (1 + positive_QD * (positive_weight - 1))
    return masked_sum(losses_QD, mask_QD), mask_QD.sum()


@objective(signals=("labels",))
def hinge(
    scores_QD: Tensor, targets_QD: Tensor, mask_QD: Tensor, *, margin: float = 1.0
) -> tuple[Tensor, Tensor]:
    """Sum over ordered pairs with t_i > t_j of max(0, margin - s_i + s_j); the count of pairs.

    With one positive and k negatives these are k pairs. Joachims 2002
    (https://doi.org/10.1145/775047.775067). Worked number: scores (2, 0.5, 1.5), the first
    relevant, give 0 + 0.5 over 2 pairs.
    """
    preferred_QDD = preferred_pairs(targets_QD, mask_QD)
    losses_QDD = (margin - scores_QD[:, :, None] + scores_QD[:, None, :]).relu()
    return masked_sum(losses_QDD, preferred_QDD), preferred_QDD.sum()


@objective(signals=("labels",))
def infonce(
    scores_QD: Tensor, targets_QD: Tensor, mask_QD: Tensor, *, temperature: float = 1.0
) -> tuple[Tensor, Tensor]:
    """Sum over positives of -log softmax(s / temperature) among the query's own documents.

    The count is the number of positives (target above 0); no in-batch negatives. Gao, Dai &
    Callan 2021, eq. 5 (https://arxiv.org/abs/2101.08751). Worked number: scores (2, 0.5, -1),
    the first relevant, give log(1 + e^-1.5 + e^-3) = 0.241311 over 1 positive.
    """
    log_shares_QD = log_shares(scores_QD, mask_QD, temperature)
    positives_QD = mask_QD & (targets_QD > 0)
    return -masked_sum(log_shares_QD, positives_QD), positives_QD.sum()


@objective(signals=("scores",))
def margin_mse(scores_QD: Tensor, targets_QD: Tensor, mask_QD: Tensor) -> tuple[Tensor, Tensor]:
    """Sum over columns j >= 1 of ((s_0 - s_j) - (t_0 - t_j))²; the count of those pairs.

    Hofstätter et al. 2020, eq. 7 (https://arxiv.org/abs/2010.02666). Worked number: scores
    (2, 0.5), teacher scores (10, 7) give (1.5 - 3)² = 2.25 over 1 pair.
    """
    pairs_QP = mask_QD[:, :1] & mask_QD[:, 1:]
    margins_QP = scores_QD[:, :1] - scores_QD[:, 1:]
    teacher_margins_QP = targets_QD[:, :1] - targets_QD[:, 1:]
    return masked_sum((margins_QP - teacher_margins_QP).square(), pairs_QP), pairs_QP.sum()


@objective(signals=("scores", "ranking"))
def distill_ranknet(
    scores_QD: Tensor, targets_QD: Tensor, mask_QD: Tensor
) -> tuple[Tensor, Tensor]:
    """Sum over ordered pairs with t_i > t_j of ln(1 + e^-(s_i - s_j)); the count of those pairs.

    Natural logarithm; ties in the teacher give no pair. Burges et al. 2005, eq. 3
    (https://doi.org/10.1145/1102351.1102363); on permutations of language models: Sun et al.
    2023 (https://arxiv.org/abs/2304.09542). Worked number: scores (2, 0.5, -1) in the teacher's
    own order give (0.201413 + 0.048587 + 0.201413) over 3 pairs, a mean of 0.150471.
    """
    from torch.nn.functional import softplus

    preferred_QDD = preferred_pairs(targets_QD, mask_QD)
    margins_QDD = scores_QD[:, :, None] - scores_QD[:, None, :]
    return masked_sum(softplus(-margins_QDD), preferred_QDD), preferred_QDD.sum()


@objective(signals=("scores", "ranking"))
def adr_mse(
    scores_QD: Tensor, targets_QD: Tensor, mask_QD: Tensor, *, temperature: float = 1.0
) -> tuple[Tensor, Tensor]:
    """Approximate discounted rank error: the sum over documents of (r - r̂)² / log2(1 + r).

    The count is that of the documents. r is the teacher's rank among the query's documents (1 is
    best, tied targets share their average rank), r̂_i = 1 + Σ_{j≠i} σ((s_j - s_i) / temperature)
    approximates the student's. Schlatt et al. 2025, section 3 (https://arxiv.org/abs/2405.07920).
    Worked number: scores (2, 0.5, -1) in the teacher's own order have approximate ranks 1.2299, 2,
    2.7701; the mean over the 3 documents is 0.026416.
    """
    others_QDD = mask_QD[:, None, :] & mask_QD[:, :, None]
    above_QDD = ((scores_QD[:, None, :] - scores_QD[:, :, None]) / temperature).sigmoid()
    # A document is counted against itself as σ(0) = 1/2, so the sum starts at 1/2, not at 1.
    approximate_ranks_QD = 0.5 + (above_QDD * others_QDD).sum(dim=-1)
    ranks_QD = average_ranks(targets_QD, mask_QD)
    losses_QD = (ranks_QD - approximate_ranks_QD).square() / (1 + ranks_QD).log2()
    return masked_sum(losses_QD, mask_QD), mask_QD.sum()


@objective(signals=("scores",), pointwise=True)
def mse(scores_QD: Tensor, targets_QD: Tensor, mask_QD: Tensor) -> tuple[Tensor, Tensor]:
    """Sum over documents of (s - t)²; the count of documents.

    Ba & Caruana 2014, eq. 1 (https://arxiv.org/abs/1312.6184). Unlike margin_mse it also learns
    the level of the teacher's scores, which no ranking needs. Worked number: scores (2, 0.5),
    teacher scores (3, 0) give 1 + 0.25 over 2 documents.
    """
    return masked_sum((scores_QD - targets_QD).square(), mask_QD), mask_QD.sum()


@objective(signals=("scores",))
def kl_div(
    scores_QD: Tensor, targets_QD: Tensor, mask_QD: Tensor, *, temperature: float = 1.0
) -> tuple[Tensor, Tensor]:
    """Sum over queries of Σ_d p_d ln(p_d / q_d); the count of queries.

    p = softmax(t / temperature) is the teacher's, q = softmax(s / temperature) the student's
    distribution. Hinton, Vinyals & Dean 2015, section 2 (https://arxiv.org/abs/1503.02531),
    without its factor temperature². Worked number: scores (0, 0), teacher scores (ln 3, 0) give
    p = (3/4, 1/4), q = (1/2, 1/2) and 3/4 ln 3/2 + 1/4 ln 1/2 = 0.130812 over 1 query.
    """
    teacher_QD = log_shares(targets_QD, mask_QD, temperature)
    student_QD = log_shares(scores_QD, mask_QD, temperature)
    losses_QD = teacher_QD.exp() * (teacher_QD - student_QD)
    return masked_sum(losses_QD, mask_QD), mask_QD.any(dim=-1).sum()


@objective(signals=("labels", "scores"))
def list_net(scores_QD: Tensor, targets_QD: Tensor, mask_QD: Tensor) -> tuple[Tensor, Tensor]:
    """Sum over queries of -Σ_d p_d ln q_d with p = softmax(t), q = softmax(s); count of queries.

    Cao et al. 2007, eq. 5 with top-one probabilities (https://doi.org/10.1145/1273496.1273513).
    Its gradient is that of kl_div, its value is larger by the teacher's entropy; it takes labels
    too. Worked number: scores (0, 0), teacher scores (ln 3, 0) give ln 2 = 0.693147 over 1 query.
    """
    teacher_QD = log_shares(targets_QD, mask_QD)
    losses_QD = -teacher_QD.exp() * log_shares(scores_QD, mask_QD)
    return masked_sum(losses_QD, mask_QD), mask_QD.any(dim=-1).sum()


@objective(signals=("labels",))
def lambda_rank(scores_QD: Tensor, targets_QD: Tensor, mask_QD: Tensor) -> tuple[Tensor, Tensor]:
    """Sum over ordered pairs with t_i > t_j of |ΔnDCG_ij| ln(1 + e^-(s_i - s_j)); count of pairs.

    |ΔnDCG_ij| = |g_i - g_j| |1/log2(1 + r_i) - 1/log2(1 + r_j)| / idealDCG, with gains
    g = 2^max(t, 0) - 1 and r the student's ranks (tied scores share their average rank), which
    have no gradient. Burges 2010, section 4 (Microsoft Research MSR-TR-2010-82), as eq. 16 of
    Wang et al. 2018 (https://doi.org/10.1145/3269206.3271784). Worked number: scores
    (0.5, 2, -1), the first relevant: its swaps with ranks 1 and 3 are worth 1 - 0.630930 and
    0.630930 - 0.5, so 0.369070 · 1.701413 + 0.130930 · 0.201413 = 0.654312 over 2 pairs.
    """
    from torch.nn.functional import softplus

    gains_QD = (targets_QD.clamp(min=0).exp2() - 1) * mask_QD
    discounts_QD = (1 + average_ranks(scores_QD.detach(), mask_QD)).log2().reciprocal()
    best_first_QD = gains_QD.sort(dim=-1, descending=True).values
    places_D = best_first_QD.new_ones(best_first_QD.shape[-1]).cumsum(0)
    ideal_Q = (best_first_QD / (1 + places_D).log2()).sum(dim=-1).clamp(min=1e-10)
    weights_QDD = (
        (gains_QD[:, :, None] - gains_QD[:, None, :]).abs()
        * (discounts_QD[:, :, None] - discounts_QD[:, None, :]).abs()
        / ideal_Q[:, None, None]
    )
    preferred_QDD = preferred_pairs(targets_QD, mask_QD)
    margins_QDD = scores_QD[:, :, None] - scores_QD[:, None, :]
    losses_QDD = weights_QDD * softplus(-margins_QDD)
    return masked_sum(losses_QDD, preferred_QDD), preferred_QDD.sum()


@objective(signals=("scores", "ranking"))
def distill_lambda_rank(
    scores_QD: Tensor, targets_QD: Tensor, mask_QD: Tensor
) -> tuple[Tensor, Tensor]:
    """lambda_rank on a teacher's order: the target of a document is 1 / (its teacher's rank).

    The targets that Sun et al. 2023 (https://arxiv.org/abs/2304.09542) give to permutations of
    language models; tied targets share their average rank and give no pair. Worked number: scores
    (0.5, 2) in the teacher's own order have gains 1 and √2 - 1 and idealDCG 1.261340; the pair
    weighs 0.585786 · 0.369070 / 1.261340 = 0.171402 and costs 0.171402 · 1.701413 = 0.291626.
    """
    return lambda_rank(scores_QD, average_ranks(targets_QD, mask_QD).reciprocal(), mask_QD)
