from functools import partial
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from xsweep.evaluator.data.readers import read_texts
from xsweep.trainer.batching import (
    cut_pieces,
    deal,
    draw_samples,
    dropout_seed,
    group,
    pad_targets,
)
from xsweep.trainer.forward import Scorer, attention
from xsweep.trainer.objectives import OBJECTIVES
from xsweep.trainer.specs import FORWARD_TOKENS
from xsweep.trainer.teachers import Sample


class Units:
    """A teacher of bare units: a sample holds its unit and one random number."""

    uses_chance = True

    def __init__(self, units):
        self.units = units

    def __len__(self):
        return self.units

    def draw(self, unit, generator):
        number = np.array([generator.random()], dtype=np.float32)
        return Sample(str(unit), (), number, number)


def test_a_pass_uses_every_query_once_and_each_pass_has_its_own_order():
    seen = [sample.query_id for step in range(4) for sample in draw_samples(Units(10), 1, step, 5)]
    assert sorted(seen[:10], key=int) == sorted(seen[10:], key=int) == [str(n) for n in range(10)]
    assert seen[:10] != seen[10:]


def test_a_global_batch_depends_on_seed_and_step_alone():
    def content(seed, step):
        return [(s.query_id, s.targets_D.item()) for s in draw_samples(Units(10), seed, step, 3)]

    assert content(1, 7) == content(1, 7)
    assert content(1, 7) != content(2, 7)
    assert len({value for step in range(9) for _, value in content(1, step)}) == 27


def test_dropout_has_a_seed_for_each_forward_pass_of_each_step():
    seeds = {dropout_seed(*place) for place in np.ndindex(3, 3, 3, 3)}
    assert len(seeds) == 81


@given(st.lists(st.integers(1, 90), min_size=1, max_size=30), st.integers(1, 200))
def test_groups_are_consecutive_and_as_large_as_the_budget_allows(sizes, budget):
    groups = group(sizes, budget)
    assert [size for each in groups for size in sizes[each]] == sizes
    assert all(sum(sizes[each]) <= budget or each.stop - each.start == 1 for each in groups)
    for each, following in pairwise(groups):
        assert sum(sizes[each]) + sizes[following.start] > budget


BATCHES = [(32, 2), (64, 2), (4, 8), (8, 8), (1, 50)]
"""Queries and documents of the study's batches."""


def passage_lengths(queries, documents, seed):
    """Tokens of MS MARCO's pairs: a query of 3 to 12, a passage of 75 on average, up to 256."""
    random = np.random.default_rng(seed)
    query_Q1 = random.integers(3, 13, size=(queries, 1))
    passage_QD = np.clip(random.lognormal(4.2, 0.42, (queries, documents)), 8, 256).astype(int)
    return query_Q1 + passage_QD + 3


@pytest.mark.parametrize("batch", BATCHES)
@pytest.mark.parametrize("ranks", [2, 4, 8])
def test_the_slowest_rank_has_at_most_1_15_of_the_mean_share(batch, ranks):
    cut = partial(cut_pieces, largest_tokens=FORWARD_TOKENS)
    for seed in range(50):
        lengths_P = passage_lengths(*batch, seed).ravel()
        for merged in (False, True):
            dealt = deal([lengths_P], ranks, cut, merged=merged)
            shares = [sum(lengths_P[rows].sum() for rows in each.values()) for each in dealt]
            assert max(shares) <= 1.15 * np.mean(shares)
            assert sum(shares) == lengths_P.sum()


@given(
    st.lists(st.lists(st.integers(1, 300), min_size=1, max_size=20), min_size=1, max_size=3),
    st.integers(1, 9),
)
def test_pieces_do_not_depend_on_the_number_of_ranks_that_share_them(lengths, ranks):
    lengths = [np.array(each) for each in lengths]

    cut = partial(cut_pieces, largest_tokens=400)

    def pieces(ranks):
        dealt = deal(lengths, ranks, cut)
        found = [item for each in dealt for item in each.items()]
        return {number: rows.tolist() for number, rows in found}, len(found)

    alone, count = pieces(1)
    assert pieces(ranks) == (alone, count)
    assert len(alone) == count
    rows = list(range(sum(map(len, lengths))))
    assert sorted(row for each in alone.values() for row in each) == rows
    merged = deal(lengths, ranks, cut, merged=True)
    assert sorted(row for each in merged for own in each.values() for row in own) == rows


def test_a_piece_is_one_pass_of_a_cpu_or_a_single_pair():
    lengths_P = np.array([900, 2100] + [85] * 180)
    sizes = [lengths_P[rows].sum() for rows in cut_pieces(lengths_P, 2048)]
    assert len(sizes) % 8 == 0
    assert max(sizes) == 2100


@pytest.mark.parametrize(
    ("device", "packed", "settings", "merges"),
    [
        ("cpu", True, {}, True),
        ("cpu", False, {}, False),
        ("cpu", False, {"dropout": False}, True),
        ("cuda", False, {}, True),
        ("cuda", False, {"deterministic": True}, False),
        ("cuda", True, {"deterministic": True, "dropout": False}, True),
    ],
)
def test_pieces_are_computed_apart_where_dropout_would_depend_on_the_ranks(
    world, device, packed, settings, merges
):
    _, _, assembler, _ = world.prepared(packed=packed, **settings)
    assembler.device = torch.device(device)
    assert assembler.merges_pieces is merges


def test_an_assembled_batch_counts_its_tokens_and_slots(world):
    _, _, assembler, samples = world.prepared(forward_tokens=100)
    batch = assembler.assemble(samples)
    masks = [inputs["attention_mask"] for inputs in batch.forwards]
    tokens = sum(int(each.sum()) for each in assembler.lengths(samples))
    assert batch.tokens == sum(int(mask.sum()) for mask in masks) == tokens
    assert batch.slots == sum(mask.numel() for mask in masks)
    assert all(mask.numel() <= 100 for mask in masks)


@pytest.mark.parametrize("packed", [False, True])
def test_an_assembled_batch_equals_pairs_encoded_one_by_one(world, packed):
    _, _, assembler, samples = world.prepared(packed=packed, forward_tokens=100)
    batch = assembler.assemble(samples)
    longest = batch.targets.mask_QD.shape[1]
    places = [divmod(place, longest) for place in batch.places_P.tolist()]
    assert len(places) == sum(len(sample.doc_ids) for sample in samples)
    for inputs in batch.forwards:
        count = len(inputs.lengths if packed else inputs["input_ids"])
        chosen, places = places[:count], places[count:]
        pairs = [
            assembler.encoder.encode(
                assembler.queries[samples[query].query_id],
                assembler.documents[samples[query].doc_ids[document]],
                *assembler.side_tokens,
            )
            for query, document in chosen
        ]
        if packed:
            assert inputs.ids_T.tolist() == [n for pair in pairs for n in pair.input_ids]
            assert inputs.segments_T.tolist() == [n for pair in pairs for n in pair.token_type_ids]
        else:
            for row, pair in enumerate(pairs):
                kept = inputs["attention_mask"][row].bool()
                assert inputs["input_ids"][row][kept].tolist() == pair.input_ids.tolist()
                assert kept.sum() == len(pair.input_ids)
    assert not places


@pytest.mark.parametrize(
    ("settings", "on_cpu", "on_gpu"),
    [({"forward_tokens": 2048}, 2048, 9000), ({"forward_tokens": 100}, 100, 100)],
)
def test_a_gpu_takes_a_micro_batch_in_one_pass_by_default(world, settings, on_cpu, on_gpu):
    _, _, assembler, _ = world.prepared(**settings)
    for device, expected in (("cpu", on_cpu), ("cuda", on_gpu)):
        assembler.device = torch.device(device)
        assembler.limit(9000)
        assert assembler.forward_tokens == expected


def plain_scores(model, tokenizer, world, samples):
    """The score matrix from texts, one padded batch and the model's own forward pass."""
    texts = dict(read_texts(Path(world.collection["documents"]["path"])))
    questions = dict(read_texts(Path(world.collection["queries"]["path"])))
    pairs = [
        (" ".join(questions[s.query_id].split()[:4]), " ".join(texts[d].split()[:24]))
        for s in samples
        for d in s.doc_ids
    ]
    inputs = tokenizer(*zip(*pairs, strict=True), padding=True, return_tensors="pt")
    logits = model(**inputs).logits[:, 0]
    targets_QD, _, mask_QD = pad_targets(samples)
    scores_QD = torch.zeros_like(targets_QD)
    scores_QD[mask_QD] = logits
    return scores_QD, targets_QD, mask_QD


@pytest.mark.parametrize("name", list(OBJECTIVES))
def test_gradients_of_cut_batches_equal_those_of_one_padded_batch(world, name):
    model, tokenizer, assembler, samples = world.prepared(
        micro_batch_tokens=220, forward_tokens=100
    )
    if OBJECTIVES[name].labels_only:
        samples = [
            s._replace(targets_D=np.eye(1, len(s.doc_ids), dtype=np.float32)[0]) for s in samples
        ]
    function = OBJECTIVES[name].function
    scores_QD, targets_QD, mask_QD = plain_scores(model, tokenizer, world, samples)
    total, count = function(scores_QD, targets_QD, mask_QD)
    (total / count).backward()
    expected = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()

    scorer, loss = Scorer(model, bf16=False), 0.0
    with attention(model, "eager"):
        for piece in (samples[:2], samples[2:]):
            batch = assembler.assemble(piece)
            targets_QD, _, mask_QD = batch.targets
            part, _ = function(batch.matrix(scorer(batch.forwards)), targets_QD, mask_QD)
            (part / count).backward()
            loss += part.item() / count.item()
    assert loss == pytest.approx((total / count).item(), rel=1e-5)
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(
            parameter.grad, expected[name], rtol=1e-4, atol=1e-5, msg=lambda m, n=name: f"{n}: {m}"
        )


def test_bf16_gives_fp32_logits_near_those_of_fp32(world):
    model, _, assembler, samples = world.prepared()
    batch = assembler.assemble(samples)
    with torch.no_grad():
        exact, rounded = (Scorer(model, bf16=bf16)(batch.forwards) for bf16 in (False, True))
    assert rounded.dtype == torch.float32
    torch.testing.assert_close(rounded, exact, atol=2e-2, rtol=0)
