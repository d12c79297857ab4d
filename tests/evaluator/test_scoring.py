import weakref
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoModelForSequenceClassification

from xsweep.errors import DivergenceError, Stopped
from xsweep.evaluator import scoring
from xsweep.evaluator.models.cross_encoder import load_cross_encoder
from xsweep.evaluator.models.tokenizer import tokenize
from xsweep.evaluator.pairs import PairEncoder
from xsweep.evaluator.scoring import (
    PartialScores,
    ScoredPairs,
    ScoringState,
    batches,
    batches_without_padding,
    budget_on,
    digest_of,
    score_on,
    score_pairs,
    share_out,
)
from xsweep.evaluator.specs import ScoringSpec

LENGTHS = {"query_tokens": 12, "document_tokens": 40}
CPU = torch.device("cpu")
WORDS = [
    *("the", "quick", "brown", "fox", "ranks", "numbers", "and", "documents", "of", "france"),
    "numpy",
]


def _score(
    model: Any,
    encoder: PairEncoder,
    pairs: list,
    progress: Callable[[int], object] | None = None,
    **settings: Any,
) -> ScoredPairs:
    return score_pairs(model, encoder, pairs, ScoringSpec(**LENGTHS, **settings), progress=progress)


def _pairs(tokenizer, count: int = 40) -> list[tuple[np.ndarray, np.ndarray]]:
    random = np.random.default_rng(5)
    queries, documents = (
        [" ".join(random.choice(WORDS, int(random.integers(low, high)))) for _ in range(count)]
        for low, high in ((1, 6), (0, 30))
    )
    return list(
        zip(tokenize(tokenizer, queries, 99), tokenize(tokenizer, documents, 99), strict=True)
    )


@pytest.mark.parametrize("layout", ["auto", "padded"])
def test_sorted_batches_equal_a_slow_loop_over_single_unpadded_pairs(
    family: str, layout: str, make_model_folder: Callable
) -> None:
    folder = make_model_folder(family)
    model, tokenizer = load_cross_encoder(folder)
    pairs = _pairs(tokenizer)
    encoder = PairEncoder(tokenizer)
    fast = _score(model, encoder, pairs, batch_tokens=256, layout=layout)
    assert (fast.padding_waste == 0) == (layout == "auto" and family != "deberta")
    plain = AutoModelForSequenceClassification.from_pretrained(
        folder, dtype=torch.float32, attn_implementation="eager"
    ).eval()
    with torch.no_grad():
        slow = [
            plain(**encoder.collate([encoder.encode(query, document, 12, 40)])).logits.item()
            for query, document in pairs
        ]
    assert np.std(slow) > 0.05, "scores that hardly differ would prove nothing"
    np.testing.assert_allclose(fast.scores, slow, atol=1e-5)


def test_padding_changes_no_score(family: str, make_model_folder: Callable) -> None:
    model, tokenizer = load_cross_encoder(make_model_folder(family))
    encoder = PairEncoder(tokenizer)
    short, long = _pairs(tokenizer, 1)[0], (np.full(12, 9), np.full(40, 9))
    alone = _score(model, encoder, [short], layout="padded")
    # So large a budget that one call is worth the padding.
    together = _score(model, encoder, [short, long], layout="padded", batch_tokens=65_536)
    assert alone.padding_waste == 0 < together.padding_waste
    assert together.scores[0] == pytest.approx(alone.scores[0], abs=1e-5)


def test_bf16_is_near_fp32_and_scores_come_as_fp32(make_model_folder: Callable) -> None:
    model, tokenizer = load_cross_encoder(make_model_folder("bert"))
    pairs, encoder = _pairs(tokenizer), PairEncoder(tokenizer)
    fp32 = _score(model, encoder, pairs)
    bf16 = _score(model, encoder, pairs, precision="bf16")
    assert bf16.scores.dtype == np.float32
    assert np.abs(bf16.scores - fp32.scores).max() < 0.1
    assert model.dtype == torch.float32, "the caller's weights do not change"


def test_dropout_is_off_while_scoring_and_the_models_mode_is_restored(
    make_model_folder: Callable,
) -> None:
    model, tokenizer = load_cross_encoder(make_model_folder("bert"))
    pairs, encoder = _pairs(tokenizer, 6), PairEncoder(tokenizer)
    expected = _score(model, encoder, pairs).scores
    model.train()
    assert _score(model, encoder, pairs).scores.tolist() == expected.tolist()
    assert model.training


def _device_out_of_memory() -> None:
    raise torch.OutOfMemoryError("no memory for more than 150 slots")


def _host_out_of_memory() -> None:
    torch.empty(2**60)  # PyTorch's own error on a CPU, a RuntimeError


@pytest.mark.parametrize("run_out", [_device_out_of_memory, _host_out_of_memory])
def test_out_of_memory_halves_the_budget_and_loses_no_pair(
    make_model_folder: Callable, run_out: Callable
) -> None:
    model, tokenizer = load_cross_encoder(make_model_folder("bert"))
    pairs, encoder = _pairs(tokenizer), PairEncoder(tokenizer)
    expected = _score(model, encoder, pairs, layout="padded").scores
    sizes = []

    def refuse_large(module, arguments, named):
        sizes.append(named["input_ids"].numel())
        if sizes[-1] > 150:
            run_out()

    handle = model.register_forward_pre_hook(refuse_large, with_kwargs=True)
    scored = _score(model, encoder, pairs, batch_tokens=1000, layout="padded")
    handle.remove()
    assert max(sizes) > 150 >= sizes[-1]
    np.testing.assert_allclose(scored.scores, expected, atol=1e-5)


def test_tensors_of_a_failed_pass_are_freed_before_memory_is_released(
    make_model_folder: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, tokenizer = load_cross_encoder(make_model_folder("bert"))
    held: list[weakref.ref] = []
    alive: list[bool] = []

    def hold(module, arguments, named):
        if not held:
            activations = torch.zeros(8)
            held.append(weakref.ref(activations))
            raise torch.OutOfMemoryError("no memory at first")

    model.register_forward_pre_hook(hold, with_kwargs=True)
    monkeypatch.setattr(
        "xsweep.evaluator.scoring.release_freed_memory", lambda: alive.append(held[0]() is not None)
    )
    _score(model, PairEncoder(tokenizer), _pairs(tokenizer), layout="padded")
    assert alive == [False]


def test_a_single_pair_that_does_not_fit_is_an_error(make_model_folder: Callable) -> None:
    model, tokenizer = load_cross_encoder(make_model_folder("bert"))

    def refuse(module, arguments):
        raise torch.OutOfMemoryError("no memory at all")

    model.register_forward_pre_hook(refuse)
    with pytest.raises(torch.OutOfMemoryError):
        _score(model, PairEncoder(tokenizer), _pairs(tokenizer, 3), layout="padded")


def test_progress_counts_pairs_and_its_exception_ends_the_scoring(
    make_model_folder: Callable,
) -> None:
    model, tokenizer = load_cross_encoder(make_model_folder("bert"))
    pairs, encoder = _pairs(tokenizer), PairEncoder(tokenizer)
    reported: list[int] = []
    _score(model, encoder, pairs, batch_tokens=200, progress=reported.append)
    assert reported == sorted(reported)
    assert reported[-1] == len(pairs)

    def stop(done: int) -> None:
        raise KeyboardInterrupt

    model.train()
    with pytest.raises(KeyboardInterrupt):
        _score(model, encoder, pairs, progress=stop)
    assert model.training


def test_the_next_batch_is_assembled_while_the_device_computes(
    make_model_folder: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, tokenizer = load_cross_encoder(make_model_folder("bert"))
    pairs = _pairs(tokenizer)
    events: list[str] = []

    class Logits(torch.Tensor):
        def float(self) -> torch.Tensor:
            events.append("read")
            return self.as_subclass(torch.Tensor).float()

    class Model(torch.nn.Module):
        device, training = model.device, False

        def forward(self, **batch: torch.Tensor) -> SimpleNamespace:
            events.append("launched")
            return SimpleNamespace(logits=model(**batch).logits.as_subclass(Logits))

    encoder = PairEncoder(tokenizer)
    collate = encoder.collate
    monkeypatch.setattr(encoder, "collate", lambda ids: events.append("assembled") or collate(ids))
    scored = _score(Model(), encoder, pairs, batch_tokens=200, layout="padded")
    assert events[:5] == ["assembled", "launched", "assembled", "read", "launched"]
    assert events[-2:] == ["launched", "read"], "nothing is left to assemble"
    monkeypatch.undo()
    plain = _score(model, encoder, pairs, batch_tokens=200, layout="padded")
    assert (scored.scores == plain.scores).all()


def test_the_default_budget_is_larger_on_a_gpu() -> None:
    cpu, gpu = torch.device("cpu"), torch.device("cuda")
    assert [budget_on(cpu, tokens) for tokens in (4096, 32_768)] == [4096, 32_768]
    assert [budget_on(gpu, tokens) for tokens in (4096, 32_768)] == [65_536, 32_768]


def test_no_pairs_give_no_scores(make_model_folder: Callable) -> None:
    model, tokenizer = load_cross_encoder(make_model_folder("bert"))
    scored = _score(model, PairEncoder(tokenizer), [])
    assert (len(scored.scores), scored.padding_waste) == (0, 0.0)


@given(lengths=st.lists(st.integers(1, 300), min_size=1), budget=st.integers(1, 1000))
def test_batches_hold_every_row_once_within_the_budget(lengths: list[int], budget: int) -> None:
    sizes = np.array(lengths)
    made = list(batches(sizes, np.argsort(-sizes, kind="stable"), budget))
    assert sorted(np.concatenate(made).tolist()) == list(range(len(lengths)))
    assert all(len(rows) == 1 or len(rows) * sizes[rows].max() <= budget for rows in made)


def test_a_batch_ends_where_the_cost_per_token_is_lowest() -> None:
    # 640 slots, 10 for the call: 110/100, 210/200 and 310/240 slots a token, so two rows; then one.
    sizes = np.array([100, 100, 40])
    assert [rows.tolist() for rows in batches(sizes, np.arange(3), 640)] == [[0, 1], [2]]


@given(lengths=st.lists(st.integers(1, 300), min_size=1), budget=st.integers(1, 1000))
def test_unpadded_batches_hold_every_row_once_and_are_full(lengths: list[int], budget: int) -> None:
    sizes = np.array(lengths)
    order = np.argsort(-sizes, kind="stable")
    made = list(batches_without_padding(sizes, order, budget))
    assert np.concatenate(made).tolist() == order.tolist()
    assert all(len(rows) == 1 or sizes[rows].sum() <= budget for rows in made)
    for rows, following in pairwise(made):
        assert sizes[rows].sum() + sizes[following[0]] > budget


def test_scores_equal_sentence_transformers_raw_predictions(make_model_folder: Callable) -> None:
    from sentence_transformers import CrossEncoder

    folder: Path = make_model_folder("bert")
    model, tokenizer = load_cross_encoder(folder)
    texts = [("the first king", "who was the king of france"), ("numbers", "numpy holds numbers")]
    pairs = [
        (tokenize(tokenizer, list(pair), 99)[0], tokenize(tokenizer, list(pair), 99)[1])
        for pair in texts
    ]
    ours = _score(model, PairEncoder(tokenizer), pairs).scores
    theirs = CrossEncoder(str(folder)).predict(texts, activation_fn=torch.nn.Identity())
    np.testing.assert_allclose(ours, theirs, atol=1e-5)


def test_four_lengths_are_shared_out_to_two_devices() -> None:
    assert [rows.tolist() for rows in share_out(np.array([5, 4, 3, 3]), 2)] == [[0, 3], [1, 2]]


@given(lengths=st.lists(st.integers(1, 300), max_size=60), shares=st.integers(1, 8))
def test_every_row_is_in_one_share_and_shares_differ_by_one_row_at_most(
    lengths: list[int], shares: int
) -> None:
    sizes = np.array(lengths, dtype=np.int64)
    shared = share_out(sizes, shares)
    assert sorted(np.concatenate(shared).tolist()) == list(range(len(lengths)))
    sums = [int(sizes[rows].sum()) for rows in shared]
    assert max(sums) - min(sums) <= max(lengths, default=0)


@pytest.mark.parametrize("devices", [1, 2, 3])
def test_several_devices_give_the_scores_of_one_and_save_a_state_each(
    make_model_folder: Callable, devices: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scoring, "SAVE_EVERY_S", 0.0)
    model, tokenizer = load_cross_encoder(make_model_folder("bert"))
    encoder, pairs = PairEncoder(tokenizer), _pairs(tokenizer)
    expected = _score(model, encoder, pairs).scores
    settings, partial = ScoringSpec(**LENGTHS, batch_tokens=128), PartialScores([tmp_path], "s", "")
    reported: list[int] = []
    found = score_on([CPU] * devices, model, encoder, pairs, settings, reported.append, partial)
    np.testing.assert_allclose(found.scores, expected, atol=1e-5)
    assert max(reported) == len(pairs)
    saved = [np.load(path) for path in tmp_path.iterdir()]
    assert len(saved) == devices
    assert sum(int(state["rows"]) for state in saved) == len(pairs)


def test_devices_share_the_tokens_that_are_read(
    make_model_folder: Callable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scoring, "SAVE_EVERY_S", 0.0)
    model, tokenizer = load_cross_encoder(make_model_folder("bert"))
    # All documents are cut to 40 tokens, so that each device gets three pairs.
    pairs = [(np.full(5, 9), np.full(length, 9)) for length in (400, 40, 40, 40, 40, 40)]
    settings, partial = ScoringSpec(**LENGTHS), PartialScores([tmp_path], "s", "")
    score_on([CPU, CPU], model, PairEncoder(tokenizer), pairs, settings, partial=partial)
    assert [len(np.load(path)["scores"]) for path in tmp_path.iterdir()] == [3, 3]


def test_a_device_more_than_there_are_pairs_stays_idle(make_model_folder: Callable) -> None:
    model, tokenizer = load_cross_encoder(make_model_folder("bert"))
    encoder, settings = PairEncoder(tokenizer), ScoringSpec(**LENGTHS)
    for count in (0, 1):
        pairs = _pairs(tokenizer)[:count]
        assert len(score_on([CPU] * 3, model, encoder, pairs, settings).scores) == count


def test_a_stop_on_one_device_ends_all(make_model_folder: Callable) -> None:
    model, tokenizer = load_cross_encoder(make_model_folder("bert"))

    def stop(done: int) -> None:
        raise Stopped("stop requested")

    with pytest.raises(Stopped):
        score_on(
            [CPU, CPU],
            model,
            PairEncoder(tokenizer),
            _pairs(tokenizer),
            ScoringSpec(**LENGTHS),
            progress=stop,
        )


STATE = ScoringState(3, 512, np.arange(5, dtype=np.float32))
PAIRS = [(np.array([1, 2]), np.array([3]))]


def _save(folder: Path, state: ScoringState = STATE) -> None:
    partial = PartialScores([folder], "s", "settings")
    assert partial.read(PAIRS) is None
    partial.save(state)


def test_a_saved_state_is_found_for_equal_pairs_and_settings_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scoring, "SAVE_EVERY_S", 0.0)
    _save(tmp_path)
    folders = [tmp_path / "none", tmp_path]
    found = PartialScores(folders, "s", "settings").read(PAIRS)
    assert found is not None
    assert (found.rows, found.batch_tokens) == (3, 512)
    assert found.scores.tolist() == STATE.scores.tolist()
    assert PartialScores(folders, "s", "other settings").read(PAIRS) is None
    assert PartialScores(folders, "s", "settings").read(PAIRS * 2) is None
    assert PartialScores(folders, "other", "settings").read(PAIRS) is None


def test_the_furthest_of_several_attempts_counts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scoring, "SAVE_EVERY_S", 0.0)
    for name, rows in (("a", 2), ("b", 4), ("c", 1)):
        _save(tmp_path / name, STATE._replace(rows=rows))
    found = PartialScores([tmp_path / name for name in "abc"], "s", "settings").read(PAIRS)
    assert found is not None
    assert found.rows == 4


def test_states_are_saved_at_intervals_and_a_damaged_file_is_ignored(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _save(tmp_path)
    assert not list(tmp_path.iterdir())
    monkeypatch.setattr(scoring, "SAVE_EVERY_S", 0.0)
    _save(tmp_path)
    path = tmp_path / "s.npz"
    for damaged in (path.read_bytes()[:50], b""):
        path.write_bytes(damaged)
        assert PartialScores([tmp_path], "s", "settings").read(PAIRS) is None


def test_the_digest_distinguishes_pairs_and_settings() -> None:
    one, two = np.array([1, 2]), np.array([3])
    digests = {
        digest_of("x", [(one, two)]),
        digest_of("y", [(one, two)]),
        digest_of("x", [(two, one)]),
        digest_of("x", [(np.array([1]), np.array([2, 3]))]),
        digest_of("x", [(one, two), (one, two)]),
    }
    assert len(digests) == 5
    assert digest_of("x", [(one, two)]) == digest_of("x", [(one.astype(np.uint16), two)])


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("layout", ["auto", "padded"])
def test_a_model_whose_scores_are_not_finite_raises_after_its_first_batch(
    value: float, layout: str, make_model_folder: Callable
) -> None:
    model, tokenizer = load_cross_encoder(make_model_folder("bert"))
    encoder, done = PairEncoder(tokenizer), list[int]()
    with torch.no_grad():
        model.classifier.bias.fill_(value)
    message = r"no finite value to \d+ of \d+ pairs of a batch, .*: 1 of its weights are not finite"
    with pytest.raises(DivergenceError, match=message):
        _score(model, encoder, _pairs(tokenizer), done.append, batch_tokens=64, layout=layout)
    assert done == []


def test_sums_that_overflow_are_named_as_such(make_model_folder: Callable) -> None:
    model, tokenizer = load_cross_encoder(make_model_folder("bert"))
    with torch.no_grad():
        model.bert.pooler.dense.bias.fill_(9.0)
        model.classifier.weight.fill_(3e38)
    with pytest.raises(DivergenceError, match="its sums overflow"):
        _score(model, PairEncoder(tokenizer), _pairs(tokenizer))
