import re
from dataclasses import replace
from itertools import combinations

import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.transforms import Bbox
from reports import make_report

from xsweep.orchestrator.report.figures import (
    COLOURS,
    draw_differences,
    draw_ranking,
    inline_figures,
    save_figures,
)
from xsweep.orchestrator.report.significance import rank


@pytest.fixture(scope="module")
def report(small_sweep):
    return make_report(small_sweep, sweep="small", measures=["nDCG@10", "RR@10"])


def test_a_figure_has_a_line_per_compared_system_with_its_difference(report):
    column, (baseline,) = report.table.columns[0], report.baselines
    axes = draw_differences(report, column, baseline).axes[0]
    found = [each for each in report.comparisons if each.column == column][::-1]
    assert [label.get_text() for label in axes.get_yticklabels()] == [
        report.name(each.row) for each in found
    ]
    points = [line for line in axes.lines if line.get_marker() in "^vo"]
    assert [float(line.get_xdata()[0]) for line in points] == pytest.approx(
        [each.difference for each in found]
    )
    assert [line.get_color() for line in points] == [COLOURS[each.verdict] for each in found]


@pytest.mark.parametrize("suffix", [".pdf", ".svg"])
def test_the_same_report_gives_the_same_files(report, tmp_path, suffix):
    one, other = (save_figures(report, tmp_path / folder, suffix) for folder in "ab")
    assert [path.name for path in one] == [
        f"nDCG@10-news-against-BM25{suffix}",
        f"RR@10-news-against-BM25{suffix}",
    ]
    assert [path.read_bytes() for path in one] == [path.read_bytes() for path in other]


def test_vector_figures_keep_their_text_as_text(report, tmp_path):
    svg = save_figures(report, tmp_path, ".svg")[0].read_text()
    assert re.search(r">\s*L6 infonce\s*</text>", svg)


def test_without_a_finished_baseline_there_is_no_figure(make_cell, tmp_path):
    cells = [make_cell(0, system="first_stage", state="running"), make_cell(1, AP=[0.1, 0.2])]
    assert save_figures(make_report(cells, measures=["AP"]), tmp_path) == []


def test_names_are_drawn_literally(make_cell, tmp_path):
    name = r"a$b$c <x> & \frac_"
    cells = [
        make_cell(0, system="first_stage", AP=[0.1, 0.2, 0.3]),
        make_cell(1, backbone=name, AP=[0.2, 0.2, 0.5]),
    ]
    (picture,) = inline_figures(make_report(cells, measures=["AP"]))
    assert picture.startswith("<svg")
    assert r"a$b$c &lt;x&gt; &amp; \frac_ infonce" in picture


@pytest.fixture(scope="module")
def ranking():
    values = np.random.default_rng(0).uniform(size=(12, 5)) + np.arange(5) / 5
    return rank("AP", "objective", ["a$b", "bce", "c", "d", "e"], values, "collections", 0.05)


def test_a_ranking_shows_every_level_at_its_rank_and_a_bar_per_clique(ranking):
    axes = draw_ranking(ranking).axes[0]
    texts = [text.get_text() for text in axes.texts]
    for level, mean in zip(ranking.levels, ranking.mean_ranks, strict=True):
        assert f"{level} ({mean:.2f})" in texts
        assert any(line.get_xdata()[0] == mean for line in axes.lines)
    assert f"critical difference {ranking.critical:.2f}" in texts
    bars = [line for line in axes.lines if line.get_linewidth() == 3]
    assert len(bars) == len(ranking.cliques) > 0
    for bar, (first, last) in zip(bars, ranking.cliques, strict=True):
        low, high = bar.get_xdata()
        assert low < ranking.mean_ranks[first] <= ranking.mean_ranks[last] < high


def overlap(figure, texts) -> bool:
    """True if two of the texts do."""
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    boxes = [text.get_window_extent(canvas.get_renderer()) for text in texts]
    return any(Bbox.intersection(a, b) for a, b in combinations(boxes, 2))


@pytest.mark.parametrize("apart", [0, 1], ids=["alike", "apart"])
@pytest.mark.parametrize("count", [3, 5, 20])
def test_no_two_names_of_a_ranking_overlap(count, apart):
    values = np.random.default_rng(0).uniform(size=(12, count)) + apart * np.arange(count) / count
    figure = draw_ranking(
        rank("AP", "objective", [f"objective {i}" for i in range(count)], values, "queries", 0.05)
    )
    assert not overlap(figure, figure.axes[0].texts)


@pytest.mark.parametrize("count", [3, 20])
def test_no_two_names_of_the_differences_overlap(make_cell, count):
    values = np.random.default_rng(0).uniform(size=(count + 1, 20))
    cells = [make_cell(0, system="first_stage", AP=values[0])]
    name = "ModernBERT-base-with-a-long-name"
    cells += [
        make_cell(i, backbone=name, objective=f"distill_ranknet_{i}", AP=values[i])
        for i in range(1, count + 1)
    ]
    found = make_report(cells, measures=["AP"])
    figure = draw_differences(found, found.table.columns[0], found.baselines[0])
    (axes,) = figure.axes
    assert len(axes.get_yticklabels()) == count
    assert not overlap(figure, [*axes.get_yticklabels(), axes.xaxis.label])


def test_rankings_are_saved_beside_the_differences(report, ranking, tmp_path):
    both = replace(report, rankings=(ranking,))
    names = [path.name for path in save_figures(both, tmp_path)]
    assert names[-1] == "AP-mean-ranks-objective.pdf"
    assert len(inline_figures(both)) == len(names)


def test_over_many_columns_only_rankings_are_drawn(make_cell, ranking, tmp_path):
    cells = [
        make_cell(2 * i + j, system=system, collection=f"c{i}", AP=[0.1, 0.2, 0.4])
        for i in range(13)
        for j, system in enumerate(["first_stage", "run"])
    ]
    many = replace(make_report(cells, measures=["AP"]), rankings=(ranking,))
    assert [path.name for path in save_figures(many, tmp_path)] == ["AP-mean-ranks-objective.pdf"]
