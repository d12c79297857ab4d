"""The benchmark of one device, run as a user runs it: two tiny layers, a few pairs, on the CPU."""

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
from transformers import ModernBertConfig, ModernBertForSequenceClassification

BENCHMARKS = Path(__file__).resolve().parent.parent.parent / "benchmarks"
SECTIONS = ("products", "scoring", "training", "peers", "resume", "memory", "compile", "busy")
OURS = {
    "scoring": {
        f"tiny, {length}, {layout}"
        for length in ("real", "512")
        for layout in ("padded", "unpadded")
    },
    "training": {
        f"tiny, infonce, {way}" for way in ("padded, plain", "padded, zero-1", "unpadded, plain")
    },
}
PEERS = {
    "predict: tiny, real",
    "predict: tiny, 512",
    "trainer: tiny, infonce",
}

pytestmark = [pytest.mark.slow(3), pytest.mark.timeout(1800)]


class Outcome(NamedTuple):
    result: dict
    printed: dict[str, dict]
    """Figures by section and row, as they were printed"""


def write_lists(count: int) -> Iterator[dict]:
    """Queries and 50 documents of each, of 40 to 160 words."""
    words = ["rank", "query", "passage", "tensor", "seed", "label", "score", "model"]
    random = np.random.default_rng(3)
    for _ in range(count):
        lengths = random.integers(40, 161, 50)
        documents = [" ".join(random.choice(words, length)) for length in lengths]
        yield {"query": " ".join(random.choice(words, 4)), "documents": documents}


@pytest.fixture(scope="module")
def outcome(tmp_path_factory) -> Outcome:
    """What the command leaves where sentence-transformers is not installed."""
    home = tmp_path_factory.mktemp("gpu")
    without = home / "python"
    without.write_text("#!/bin/sh\necho 'No module named sentence_transformers' >&2; exit 1\n")
    without.chmod(0o755)
    texts, out = home / "texts.jsonl", home / "results" / "cpu.json"
    texts.write_text("".join(json.dumps(line) + "\n" for line in write_lists(40)))
    command = [sys.executable, BENCHMARKS / "gpu.py", texts, "--device", "cpu", "--out", out]
    command += ["--shapes", "tiny", "--layers", "2", "--pairs", "8", "--objectives", "infonce"]
    command += ["--seconds", "0.05", "--limit", "1800", "--sentence-transformers", without]
    command += ["--sections", *SECTIONS[1:]]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    printed: dict[str, dict] = {}
    for line in done.stdout.splitlines():
        if line.startswith(SECTIONS):
            row, brace, figures = line.partition("{")
            section, row = row.split(maxsplit=1)
            printed.setdefault(section, {})[row.strip()] = json.loads(brace + figures)
    return Outcome(json.loads(out.read_text()), printed)


@pytest.fixture
def benchmarks(monkeypatch):
    """The benchmarks' modules can be imported."""
    monkeypatch.syspath_prepend(BENCHMARKS)


def test_the_file_has_what_was_printed_and_where_it_is_from(outcome):
    assert {section: outcome.result[section] for section in SECTIONS} == outcome.printed
    about = outcome.result["about"]
    assert about["device"] == "cpu"
    assert about["seconds"] == "of CPU time"
    assert about["threads"] == 1
    assert about["cpu"]
    assert about["date"].startswith("20")
    assert about["versions"].keys() >= {"torch", "transformers", "deepspeed"}
    assert outcome.result["options"]["layers"] == 2


@pytest.mark.parametrize("section", OURS)
def test_every_layout_and_engine_has_its_figures(outcome, section):
    rows = outcome.result[section]
    assert rows.keys() == OURS[section]
    for row, figures in rows.items():
        assert figures.get("pairs_per_s", 0) > 0, (row, figures)
        assert figures["of_products"] > 0
        assert figures["peak_mib"] > 0
        padding = figures["padding"]
        assert padding == 0 if "unpadded" in row or "512" in row else 0 < padding < 1
    if section == "scoring":
        assert rows["tiny, 512, padded"]["mean_tokens"] == 512
        assert all(f["from_text_pairs_per_s"] <= f["pairs_per_s"] for f in rows.values())


def test_rows_of_a_peer_that_is_not_there_say_why(outcome):
    rows = outcome.result["peers"]
    assert rows.keys() == PEERS
    reason = "the process ended early: No module named sentence_transformers"
    assert all(figures == {"left_out": reason} for figures in rows.values())


def test_ratios_are_quotients_of_the_figures_that_they_name(outcome):
    ratios = outcome.result["ratios"]
    # One of two layouts at two lengths; two of three ways; compiled or not.
    assert len(ratios) == 5
    for ratio in ratios:
        above, below = (
            outcome.result[section][row][figure]
            for section, row, figure in (ratio["of"], ratio["to"])
        )
        assert ratio["ratio"] == pytest.approx(above / below, abs=5e-4)


def test_a_training_that_is_killed_ends_with_the_weights_of_one_that_is_not(outcome):
    figures = outcome.result["resume"]["tiny"]
    assert "error" not in figures, figures
    assert figures["killed_after_step"] == 5
    assert figures["continued_from"] == "step-4"
    assert figures["equal"] is True
    undisturbed, killed = figures["digests"]
    assert undisturbed == killed
    assert len(killed) == 64


def test_a_training_under_a_cap_halves_its_micro_batches_and_has_the_losses_of_one_without(outcome):
    figures = outcome.result["memory"]["tiny"]
    assert "error" not in figures, figures
    assert figures["room_mib"] < figures["taken_mib"]
    assert figures["steps"] == 2
    assert figures["halved_budgets"]
    roomy, capped = figures["final_losses"]
    assert capped == pytest.approx(roomy, abs=1e-5)


def test_a_compiled_model_has_the_scores_of_the_plain_one(outcome):
    rows = outcome.result["compile"]
    assert rows.keys() == {"tiny, 512, eager", "tiny, 512, compiled"}
    for figures in rows.values():
        assert figures.get("pairs_per_s", 0) > 0, figures
        assert figures["largest_difference"] < (
            0.02 if outcome.result["options"]["precision"] == "bf16" else 1e-5
        )


def test_a_profile_says_how_much_of_the_time_is_computing(outcome):
    rows = outcome.result["busy"]
    ways = {
        f"tiny, {work}, {way}" for work in ("scoring", "training") for way in ("padded", "unpadded")
    }
    assert rows.keys() == ways
    for row, figures in rows.items():
        assert 0.2 < figures.get("busy", 0) < 1.01, (row, figures)


def test_spans_of_a_profile_that_overlap_count_once(benchmarks):
    from gpu_busy import covered

    assert covered([(5, 6), (0, 2), (1, 3), (1, 2)]) == 4
    assert covered([]) == 0


def test_the_best_way_is_compared_with_the_peer_from_texts(benchmarks):
    from gpu_report import ratios

    rows = {
        "scoring": {
            "tiny, real, padded": {"pairs_per_s": 100.0, "from_text_pairs_per_s": 80.0},
            "tiny, real, unpadded": {"pairs_per_s": 200.0, "from_text_pairs_per_s": 120.0},
            "tiny, 512, padded": {"error": "no memory"},
        },
        "training": {"tiny, infonce, padded, plain": {"pairs_per_s": 25.0}},
        "peers": {
            "predict: tiny, real": {"pairs_per_s": 60.0},
            "predict: tiny, 512": {"pairs_per_s": 60.0},
            "trainer: tiny, infonce": {"pairs_per_s": 10.0},
            "trainer: tiny, distill_ranknet": {"left_out": "no time"},
        },
    }
    found = {(*ratio["of"], ratio["to"][0]): ratio["ratio"] for ratio in ratios(rows)}
    assert found == {
        ("scoring", "tiny, real, unpadded", "from_text_pairs_per_s", "peers"): 2.0,
        ("scoring", "tiny, real, unpadded", "pairs_per_s", "scoring"): 2.0,
        ("training", "tiny, infonce, padded, plain", "pairs_per_s", "peers"): 2.5,
    }


def test_what_fails_or_comes_too_late_costs_no_other_row(benchmarks, capsys):
    from gpu_report import Report

    report = Report(limit_s=3600)
    report.add("scoring", "broken", lambda: {"pairs_per_s": 1 / 0})
    report.add("scoring", "sound", lambda: {"pairs_per_s": 2.0})
    report.limit_s = 0
    report.add("scoring", "late", lambda: {"pairs_per_s": 3.0})
    assert report.rows["scoring"] == {
        "broken": {"error": "ZeroDivisionError: division by zero"},
        "sound": {"pairs_per_s": 2.0},
        "late": {"left_out": "the time limit was reached"},
    }
    assert len(capsys.readouterr().out.splitlines()) == 3


def test_products_of_attention_are_counted_within_its_window(benchmarks):
    from measuring import product_flops

    config = ModernBertConfig(
        vocab_size=10,
        hidden_size=4,
        intermediate_size=6,
        num_attention_heads=2,
        num_hidden_layers=2,
        layer_types=["full_attention", "sliding_attention"],
        local_attention=2,
        pad_token_id=0,
    )
    model = ModernBertForSequenceClassification(config)
    # Of 5 tokens each sees all 5, and within 1 token 2, 3, 3, 3, 2 of them.
    attention = 4 * 4 * (25 + 13)
    linear = 2 * 5 * 2 * (4 * 4 * 4 + 3 * 4 * 6)
    assert product_flops(model, np.array([5]), first_token_only=False) == linear + attention
