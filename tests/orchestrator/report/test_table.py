import math
import re

import numpy as np
import pytest
from reports import make_report

from xsweep.errors import ConfigError, DataError
from xsweep.orchestrator.report.table import build_table, natural_key

NDCG = ["nDCG@10"]


def test_a_table_computed_by_hand(make_cell):
    table = build_table(
        [
            make_cell(0, system="first_stage", nDCG_at_10=[0.2, 0.4, 0.0, 0.6]),
            make_cell(1, seed=1, nDCG_at_10=[0.4, 0.6, 0.2, 0.8]),
            make_cell(2, seed=2, nDCG_at_10=[0.6, 0.4, 0.4, 0.8]),
            make_cell(3, seed=3, nDCG_at_10=[0.5, 0.5, 0.0, 0.2]),
        ],
        NDCG,
    )
    first_stage, run = table.rows
    (column,) = table.columns
    assert table.entries[first_stage, column].mean == pytest.approx(0.30)
    assert math.isnan(table.entries[first_stage, column].std)
    entry = table.entries[run, column]
    assert entry.means == pytest.approx({1: 0.50, 2: 0.55, 3: 0.30})
    assert entry.mean == pytest.approx(0.45)
    # deviations 0.05, 0.10, -0.15: squares sum to 0.035, half of it is 0.0175
    assert entry.std == pytest.approx(math.sqrt(0.0175))
    assert entry.per_query[0] == pytest.approx([0.5, 0.5, 0.2, 0.6])


def test_percent_scales_the_standard_deviation_and_not_the_variance(make_cell):
    report = make_report(
        [
            make_cell(0, system="first_stage", nDCG_at_10=[0.5, 0.5]),
            make_cell(1, seed=1, nDCG_at_10=[0.5, 0.5]),
            make_cell(2, seed=2, nDCG_at_10=[0.54, 0.54]),
        ],
        percent=True,
        digits=4,
    )
    shown = report.shown(report.table.rows[1], report.table.columns[0])
    # the variance is 0.0008: sqrt(100 * 0.0008) would be 0.28
    assert (shown.value, shown.spread) == ("52.00", "2.83")


def test_a_suite_is_the_unweighted_mean_of_its_collections(make_cell):
    table = build_table(
        [
            make_cell(0, collection="large", nDCG_at_10=[0.1, 0.1, 0.1, 0.1]),
            make_cell(1, collection="small", nDCG_at_10=[0.9]),
            make_cell(2, collection="other", nDCG_at_10=[0.7]),
        ],
        NDCG,
        {"both": ("small", "large")},
    )
    assert [column.place for column in table.columns] == ["both", "other"]
    means = [table.entries[table.rows[0], column].mean for column in table.columns]
    assert means == pytest.approx([0.5, 0.7])


def test_parts_of_cqadupstack_count_as_one_collection_in_beirs_mean(make_cell):
    cells = [
        make_cell(0, collection="scifact", nDCG_at_10=[0.6]),
        make_cell(1, collection="cqadupstack-gis", nDCG_at_10=[0.2]),
        make_cell(2, collection="beir/cqadupstack/tex", nDCG_at_10=[0.4]),
    ]
    table = build_table(cells, NDCG, {"beir": [cell.labels["collection"] for cell in cells]})
    # 1/2 * 0.6 + 1/4 * 0.2 + 1/4 * 0.4, and not a third of 1.2
    assert table.entries[table.rows[0], table.columns[0]].mean == pytest.approx(0.45)
    assert table.columns[0].weights == (0.5, 0.25, 0.25)


def test_a_seed_counts_in_a_suite_only_with_all_of_its_collections(make_cell):
    table = build_table(
        [
            make_cell(0, collection="a", seed=1, nDCG_at_10=[0.2]),
            make_cell(1, collection="b", seed=1, nDCG_at_10=[0.4]),
            make_cell(2, collection="a", seed=2, nDCG_at_10=[0.9]),
            make_cell(3, collection="b", seed=2, state="failed", failure="NAN"),
            make_cell(4, collection="a", seed=3, nDCG_at_10=[0.9]),
        ],
        NDCG,
        {"ab": ("a", "b")},
    )
    entry = table.entries[table.rows[0], table.columns[0]]
    assert entry.means == {1: pytest.approx(0.3)}
    assert entry.unfinished == (("failed", 1), ("not planned", 1))


def test_rows_and_columns_come_in_the_order_of_submission(make_cell):
    cells = [
        make_cell(5, backbone="L12", objective="adr_mse", nDCG_at_10=[0.1]),
        make_cell(3, backbone="L6", objective="adr_mse", collection="z", nDCG_at_10=[0.1]),
        make_cell(2, backbone="L6", objective="bce", nDCG_at_10=[0.1]),
        make_cell(9, system="first_stage", nDCG_at_10=[0.1]),
        make_cell(8, system="teacher", teacher="minilm", nDCG_at_10=[0.1]),
        make_cell(4, backbone="L12", objective="bce", collection="z", nDCG_at_10=[0.1]),
        make_cell(6, backbone="L6", objective="infonce", nDCG_at_10=[0.1]),
        make_cell(1, backbone="L12", objective="infonce", nDCG_at_10=[0.1]),
    ]
    table = build_table(cells, NDCG)
    assert [row.name for row in table.rows] == [
        "BM25 (first stage)",
        "minilm (teacher)",
        "L12 infonce (lists)",
        "L12 bce (lists)",
        "L12 adr_mse (lists)",
        "L6 bce (lists)",
        "L6 adr_mse (lists)",
        "L6 infonce (lists)",
    ]
    assert [column.place for column in table.columns] == ["news", "z"]


def test_natural_order_compares_numbers_inside_names_as_numbers():
    assert sorted(["L12", "L3", "l2", "R@100", "R@20"], key=natural_key) == [
        "l2",
        "L3",
        "L12",
        "R@20",
        "R@100",
    ]


def test_the_order_of_the_queries_changes_no_bit(make_cell):
    scores = np.random.default_rng(3).uniform(size=1000)
    ids = [f"q{i}" for i in range(1000)]
    one = build_table([make_cell(0, query_ids=ids, nDCG_at_10=scores)], NDCG)
    other = build_table([make_cell(0, query_ids=ids[::-1], nDCG_at_10=scores[::-1])], NDCG)
    means = [next(iter(table.entries.values())).mean for table in (one, other)]
    assert means[0].hex() == means[1].hex()


def test_a_sweep_without_accepted_results_is_an_error_that_counts_its_states(make_cell):
    cells = [make_cell(0, state="running"), make_cell(1, state="failed", failure="OOM_GPU")]
    with pytest.raises(ConfigError, match=re.escape("1 failed (OOM_GPU), 1 running")):
        build_table(cells, NDCG)


def test_an_unknown_measure_is_an_error_that_names_the_stored_ones(make_cell):
    with pytest.raises(
        ConfigError, match=re.escape("AP is not stored in this sweep, which has nDCG@10")
    ):
        build_table([make_cell(0, nDCG_at_10=[0.1])], ["AP"])


def test_a_result_without_the_measure_is_marked_not_dropped(make_cell):
    table = build_table(
        [make_cell(0, nDCG_at_10=[0.1], AP=[0.2]), make_cell(1, seed=2, nDCG_at_10=[0.1])], ["AP"]
    )
    assert next(iter(table.entries.values())).unfinished == (("not measured", 1),)


def test_a_cancelled_job_yields_to_another_with_the_same_labels(make_cell):
    cells = [make_cell(0, state="cancelled"), make_cell(1, nDCG_at_10=[0.4])]
    for order in (cells, cells[::-1]):
        (entry,) = build_table(order, NDCG).entries.values()
        assert entry.means == {1: 0.4}
        assert entry.unfinished == ()


def test_two_live_jobs_with_the_same_labels_are_an_error_not_averaged(make_cell):
    cells = [make_cell(0, nDCG_at_10=[0.2]), make_cell(1, nDCG_at_10=[0.4])]
    with pytest.raises(ConfigError, match="Submit the grid again with --replace"):
        build_table(cells, NDCG)


def test_results_over_different_queries_are_an_error(make_cell):
    cells = [
        make_cell(0, seed=1, query_ids=["a", "b"], nDCG_at_10=[0.2, 0.3]),
        make_cell(1, seed=2, query_ids=["a", "c"], nDCG_at_10=[0.2, 0.3]),
    ]
    with pytest.raises(DataError, match="cannot be paired"):
        build_table(cells, NDCG)
