"""Content of each report format."""

import csv
import io
import json
import math
import re
import shutil
import subprocess
from dataclasses import replace

import numpy as np
import pytest
from reports import make_report

from xsweep.orchestrator.report import FORMATS
from xsweep.orchestrator.report.effects import with_effects
from xsweep.orchestrator.report.figures import save_figures
from xsweep.orchestrator.report.render_data import SCHEMA, render_csv, render_json
from xsweep.orchestrator.report.render_latex import PREAMBLE, escape, render_latex
from xsweep.orchestrator.report.render_text import render_markdown, render_text
from xsweep.orchestrator.report.report import Layout

TEXT = """\
tiny: AP on news

Backbone  Objective    AP
───────────────────────────────────────────
BM25 (first stage)     0.100
───────────────────────────────────────────
L6        bce         *0.350* ± 0.071 ▲
          infonce     _0.300_           1/2
───────────────────────────────────────────
L3        hinge        0.015  ± 0.021 ▼
          adr_mse      running
───────────────────────────────────────────

Means over queries, as fractions of 1, and of runs over seeds 1, 2; ± is the sample standard
deviation (n − 1) over seeds, not over queries. Best in each column *0.5*, second best _0.5_, by
printed value; ties share the mark. ▲ and ▼: significantly better and worse than BM25 (first
stage) (two-sided paired t-test on per-query scores averaged over seeds, p < 0.05 after Holm
correction over the table's 3 comparisons).

Missing: 2 of 8 evaluations (1 failed (NAN), 1 running). n/m: n of m seeds accepted so far.
Queries: 4 in news.
Candidates: BM25 (k1 = 0.9, b = 0.4), top 20.
Teachers: lists for bce, infonce, hinge and adr_mse.
Checkpoint: best nDCG@10 on held-out.

AP on news, compared with BM25 (first stage)
  better                     L6 bce      +0.250  p = 0.026  d = 3.06
  worse                      L3 hinge    −0.085  p = 0.026  d = −2.83
  no significant difference  L6 infonce  +0.200  p = 0.182  d = 0.87
"""
NASTY = r"a_b & 50%$#{}~^\ <x> 中|*"


@pytest.fixture(scope="module")
def report(small_sweep):
    return make_report(small_sweep, sweep="small", measures=["nDCG@10", "RR@10"])


@pytest.fixture(scope="module")
def nasty(make_cell):
    cells = [
        make_cell(0, system="first_stage", nDCG_at_10=[0.1, 0.2, 0.3]),
        make_cell(1, backbone=NASTY, objective=NASTY, nDCG_at_10=[0.2, 0.4, 0.6]),
    ]
    return make_report(cells, sweep=NASTY)


@pytest.fixture(scope="module")
def tiny(make_cell):
    """Small enough to check by hand.

    Differences from BM25: bce .15 .25 .25 .35, t = 6.124, p = .0087; infonce 0 0 .4 .4, t = 1.732,
    p = .1817; hinge -.1 -.04 -.1 -.1, t = -5.667, p = .0109. Holm: 3 * .0087 = .026 for bce, hinge
    has 2 * .0109 = .022 and so takes .026 too, infonce keeps .182.
    """
    return make_report(
        [
            make_cell(0, system="first_stage", AP=[0.1, 0.1, 0.1, 0.1]),
            make_cell(1, objective="bce", seed=1, AP=[0.2, 0.3, 0.3, 0.4]),
            make_cell(2, objective="bce", seed=2, AP=[0.3, 0.4, 0.4, 0.5]),
            make_cell(3, objective="infonce", seed=1, AP=[0.1, 0.1, 0.5, 0.5]),
            make_cell(4, objective="infonce", seed=2, state="failed", failure="NAN"),
            make_cell(5, objective="hinge", backbone="L3", seed=1, AP=[0.0, 0.0, 0.0, 0.0]),
            make_cell(6, objective="hinge", backbone="L3", seed=2, AP=[0.0, 0.12, 0.0, 0.0]),
            make_cell(7, objective="adr_mse", backbone="L3", seed=1, state="running"),
        ],
        sweep="tiny",
        measures=["AP"],
    )


def test_text_shows_the_table_with_marks_that_survive_without_colour(tiny):
    assert render_text(tiny, Layout(width=96)) == TEXT


class Counted(tuple):
    """Evaluations that count the passes over all of them."""

    passes = 0

    def __iter__(self):
        type(self).passes += 1
        return super().__iter__()


def test_a_narrow_text_has_its_conclusions_below_their_verdicts(tiny):
    narrow = render_text(tiny, Layout(width=60))
    assert narrow.endswith(
        """\
AP on news, compared with BM25 (first stage)
  better
    L6 bce      +0.250  p = 0.026  d = 3.06
  worse
    L3 hinge    −0.085  p = 0.026  d = −2.83
  no significant difference
    L6 infonce  +0.200  p = 0.182  d = 0.87
"""
    )
    assert max(map(len, narrow.splitlines())) <= 60


@pytest.mark.parametrize("format", FORMATS)
def test_a_longer_table_takes_no_more_passes_over_its_evaluations(small_sweep, format):
    passes = []
    for size in (6, 14):  # four rows, and all eight
        report = make_report(small_sweep[:size], sweep="small")
        assert len(report.table.rows) == {6: 4, 14: 8}[size]
        report, Counted.passes = replace(report, cells=Counted(report.cells)), 0
        FORMATS[format](report, Layout())
        passes.append(Counted.passes)
    assert passes[0] == passes[1] > 0


def test_text_lines_fit_the_width_and_columns_that_do_not_fit_continue_below(make_cell):
    cells = [
        make_cell(2 * i + j, system=system, collection=f"collection-{i}", AP=[0.1, 0.2 + j / 10])
        for i in range(22)
        for j, system in enumerate(["first_stage", "run"])
    ]
    text = render_text(make_report(cells, measures=["AP"]), Layout(width=100))
    assert max(map(len, text.splitlines())) <= 100
    assert text.count("\nBM25 (first stage) ") == math.ceil(22 / 5)
    for i in range(22):
        assert f"collection-{i}" in text


def test_markdown_rows_have_the_same_number_of_cells_for_any_names(nasty):
    lines = [line for line in render_markdown(nasty).splitlines() if line.startswith("|")]
    assert {len(re.findall(r"(?<!\\)\|", line)) for line in lines} == {4}


def test_markdown_marks_best_second_and_significance(report):
    text = render_markdown(report)
    assert "| L6 | infonce | <u>" in text or "| L6 | infonce | **" in text
    assert "▲" in text
    assert "- better: L6 infonce, +0." in text


def test_latex_escapes_every_name(nasty):
    text = render_latex(nasty)
    assert r"a\_b \& 50\%\$\#\{\}\textasciitilde{}\textasciicircum{}\textbackslash{}" in text
    assert "{[}U+4E2D{]}" in text
    assert escape("±−") == r"$\pm$$-$"
    assert text.isascii()


def test_latex_is_balanced_and_every_row_has_every_column(report):
    text = render_latex(report)
    assert text.count("{") == text.count("}")
    body = re.search(r"\\toprule\n(.*?)\\bottomrule", text, re.DOTALL)[1]
    for line in body.splitlines():
        if line.endswith(r"\\"):
            spans = sum(int(n) - 1 for n in re.findall(r"\\multicolumn\{(\d+)\}", line))
            assert line.count(" & ") + spans == 2 + 2 * 2 - 1, "two labels, two parts a number"


def test_latex_continues_wide_tables_in_further_tabulars(report):
    table, _, below = render_latex(report, Layout(max_columns=1)).partition(r"\end{table}")
    assert table.count(r"\begin{tabular}") == 2
    # two columns are few enough for differences, p and effect sizes of each
    assert below.count(r"\begin{tabular}") == 2
    assert r"better & L6 infonce & $" in below or r"better & L6 infonce & +" in below
    assert render_latex(report, Layout(wide=True)).startswith(r"\begin{table*}")


def test_in_a_two_column_paper_the_main_table_fits_one_and_the_rest_spans_both(report):
    main, *rest = render_latex(with_effects(report), Layout(columns=2)).split(r"\begin{table")[1:]
    assert main.startswith("}[tp]")
    assert len(rest) > 2
    assert all(table.startswith("*}[tp]") for table in rest)
    wide = render_latex(report, Layout(columns=2, wide=True))
    assert wide.count(r"\begin{table*}") == wide.count(r"\begin{table")


def compiled(text, folder, name="report"):
    """The compiler's log; there must be a PDF."""
    (folder / f"{name}.tex").write_text(text)
    subprocess.run(
        ["pdflatex", "-halt-on-error", "-interaction=batchmode", name], cwd=folder, check=True
    )
    assert (folder / f"{name}.pdf").read_bytes().startswith(b"%PDF")
    return (folder / f"{name}.log").read_text(errors="replace")


def assert_words_are_inside_their_pages(pdf):
    """A rotated table that is too high is cut without a message in the log."""
    boxes = subprocess.run(
        ["pdftotext", "-bbox", pdf, "-"], capture_output=True, text=True, check=True
    ).stdout
    width, height = map(float, re.search(r'<page width="(.*?)" height="(.*?)"', boxes).groups())
    words = re.findall(r'xMin="(.*?)" yMin="(.*?)" xMax="(.*?)" yMax="(.*?)">Backbone<', boxes)
    # a word beyond the edge is left out
    assert len(words) == pdf.with_suffix(".tex").read_text().count("\nBackbone & ")
    for x_min, y_min, x_max, y_max in (map(float, word) for word in words):
        assert 0 < x_min < x_max < width
        assert 0 < y_min < y_max < height


needs_pdflatex = pytest.mark.skipif(
    shutil.which("pdflatex") is None, reason="no pdflatex on this machine"
)


@needs_pdflatex
def test_latex_compiles_with_sections_and_figures(report, nasty, tmp_path):
    figures = save_figures(report, tmp_path / "figures")
    layout = Layout(standalone=True, figures=tuple(f"figures/{path.name}" for path in figures))
    log = compiled(render_latex(with_effects(report), layout), tmp_path)
    for path in figures:
        assert path.name in log
    compiled(render_latex(nasty, Layout(standalone=True)), tmp_path, "nasty")


@needs_pdflatex
@pytest.mark.skipif(shutil.which("pdftotext") is None, reason="no pdftotext on this machine")
@pytest.mark.parametrize(
    ("layout", "options"),
    [
        (Layout(), {}),
        (Layout(wide=True), {"percent": True}),
        (Layout(columns=2), {"percent": True}),
        (Layout(landscape=True), {"pairs": True}),
        (Layout(max_columns=30), {"digits": 4}),
    ],
    ids=["upright", "two-column", "narrow", "landscape", "all columns at once"],
)
def test_latex_fits_its_page_with_any_number_of_columns(make_cell, tmp_path, layout, options):
    generator = np.random.default_rng(0)
    cells = [
        make_cell(
            (place * 70 + i) * 3 + seed,
            backbone=f"Backbone-{i // 6}",
            objective=f"objective_{i % 6}",
            seed=seed,
            collection=f"collection-{place}",
            AP=generator.uniform(size=9),
        )
        for place in range(22)
        for i in range(66)
        for seed in (1, 2)
    ]
    report = make_report(cells, measures=["AP"], baselines=[], **options)
    log = compiled(render_latex(report, replace(layout, standalone=True)), tmp_path)
    assert "Overfull" not in log
    assert "too large" not in log
    assert_words_are_inside_their_pages(tmp_path / "report.pdf")


@needs_pdflatex
def test_latex_fits_into_one_column_of_a_two_column_paper(report, tmp_path):
    table = render_latex(report, Layout(max_columns=2))
    paper = PREAMBLE % {"options": "[twocolumn]"} + table + r"\end{document}"
    log = compiled(paper, tmp_path)
    assert "Overfull" not in log


def test_json_has_every_place_with_its_seeds_and_comparisons(report, small_sweep):
    document = json.loads(render_json(report), parse_constant=pytest.fail)
    assert document["schema"] == SCHEMA
    assert document["comparisons"] == len(report.comparisons)
    places = {(p["name"], p["measure"]): p for p in document["places"]}
    assert len(places) == 8 * 2
    place = places["L6 infonce (lists)", "nDCG@10"]
    means = [
        cell.means["nDCG@10"]
        for cell in small_sweep
        if cell.labels.get("backbone") == "L6" and cell.labels.get("objective") == "infonce"
    ]
    assert [seed["mean"] for seed in place["seeds"]] == pytest.approx(means)
    assert place["mean"] == pytest.approx(sum(means) / 2)
    assert place["comparisons"][0]["baseline"] == "BM25 (first stage)"
    assert place["comparisons"][0]["verdict"] == "better"
    assert place["queries"] == 60
    missing = places["L3 adr_mse (rankings)", "RR@10"]
    assert (missing["mean"], missing["unfinished"]) == (None, {"running": 1, "waiting": 1})


def test_csv_has_a_line_for_every_place_and_agrees_with_json(report):
    lines = list(csv.DictReader(io.StringIO(render_csv(report))))
    places = json.loads(render_json(report))["places"]
    assert len(lines) == len(places)
    for line, place in zip(lines, places, strict=True):
        assert line["name"] == place["name"]
        seeds = [each for each in place["seeds"] if each["seed"] is not None]
        assert line["seeds"] == " ".join(f"{each['seed']}:{each['mean']!r}" for each in seeds)
        assert line["mean"] == ("" if place["mean"] is None else repr(place["mean"]))
        p = place["comparisons"][0]["p_corrected"] if place["comparisons"] else ""
        assert line["p_corrected"] == str(p)
