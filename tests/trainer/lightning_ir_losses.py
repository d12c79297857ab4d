"""Losses of lightning-ir on given scores, as JSON; run by a Python that has that package."""

import json
import sys
from types import SimpleNamespace

import torch
from lightning_ir.loss.approximate import ApproxRankMSE
from lightning_ir.loss.listwise import InfoNCE, KLDivergence
from lightning_ir.loss.pairwise import RankNet, SupervisedMarginMSE

given = {name: torch.tensor(rows) for name, rows in json.loads(sys.argv[1]).items()}


def loss(function, targets_QD, columns=slice(None)):
    output = SimpleNamespace(scores=given["scores"][:, columns])
    batch = SimpleNamespace(targets=targets_QD[:, columns])
    return function.compute_loss(output, batch).item()


values = {
    "infonce": loss(InfoNCE(), given["labels"]),
    "distill_ranknet": loss(RankNet(), given["targets"]),
    # Its pairs are all with t_i > t_j, those of ours all with column 0: equal in lists of two.
    "margin_mse": loss(SupervisedMarginMSE(), given["targets"], slice(2)),
    "adr_mse": loss(ApproxRankMSE(discount="log2"), given["targets"]),
    "kl_div": loss(KLDivergence(), given["targets"]),
}
print(json.dumps(values))
