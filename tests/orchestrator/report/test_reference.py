import csv

import pytest
from reports import make_report

from xsweep.errors import ConfigError, DataError
from xsweep.orchestrator.report.reference import (
    FOLDER,
    find_reference,
    read_reference,
    reference_section,
)

HEAD = "system,model,objective,teacher,first_stage,place,measure,value,version\n"


@pytest.fixture
def report(make_cell):
    cells = [make_cell(0, system="first_stage", collection="trec-dl-2020", nDCG_at_10=[0.4, 0.5])]
    for seed, scores in ((1, [0.70, 0.74]), (2, [0.74, 0.78])):
        cells.append(
            make_cell(
                seed,
                seed=seed,
                backbone="ELECTRA",
                objective="adr_mse",
                collection="trec-dl-2020",
                nDCG_at_10=scores,
            )
        )
        spec = {"backbone": {"id": "google/electra-base-discriminator"}, "validation": None}
        cells[-1].parents_summary["run"].provenance["spec"] = spec
    return make_report(cells)


def write(folder, *lines):
    path = folder / "theirs.csv"
    path.write_text("# From a paper.\n" + HEAD + "\n".join(lines) + "\n")
    return str(path)


def test_the_shipped_references_have_the_published_values():
    source, figures = read_reference(find_reference("morand2026"))
    assert "arXiv 2603.03010" in source
    assert len(figures) == 60 * 6
    (value,) = [
        each.value
        for each in figures
        if (each.model, each.objective, each.place, each.version)
        == ("microsoft/deberta-v3-base", "MarginMSE", "beir-13", "v1")
    ]
    assert value == 0.481
    _, figures = read_reference(find_reference("schlatt2025"))
    assert {each.value for each in figures if each.model == "RankZephyr"} == {
        *(0.719, 0.720, 0.749, 0.798)
    }


def test_results_match_by_backbone_id_under_any_label(report):
    section = reference_section(report, "morand2026")
    # (0.72 + 0.76) / 2 = 0.74; the published 0.746 lies between the two seeds
    assert section.lines == [
        ("ELECTRA adr_mse", "nDCG@10 trec-dl-2020", "0.740 ± 0.028", "0.746 (v1)", "−0.006", "yes")
    ]
    assert "In 1 of 1 rows" in section.note
    assert "arXiv 2603.03010" in section.note


def test_a_first_stage_in_the_file_must_match(report, tmp_path):
    name = write(
        tmp_path,
        "first_stage,BM25,,,BM25,trec-dl-2020,nDCG@10,0.494,",
        "run,electra,ADR-MSE,,ColBERTv2,trec-dl-2020,nDCG@10,0.765,",
        "run,electra,ADR-MSE,,bm25,TREC DL 2020,ndcg@10,0.9,",
    )
    lines = reference_section(report, name).lines
    assert [(line[0], line[3], line[5]) for line in lines] == [
        ("BM25 (first stage)", "0.494", "one seed"),
        ("ELECTRA adr_mse", "0.900", "no"),
    ]


def test_a_reference_without_overlap_is_an_error_that_names_both_sides(report, tmp_path):
    name = write(tmp_path, "run,bert,BCE,,,robust04,nDCG@10,0.4,")
    with pytest.raises(ConfigError, match=r"It has bert on robust04; the sweep has BM25, ELECTRA"):
        reference_section(report, name)


def test_an_unknown_reference_is_an_error_with_the_nearest_name():
    with pytest.raises(ConfigError, match="did you mean 'morand2026'"):
        find_reference("morand2025")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("system,model,value\nrun,x,0.1\n", ":1: the header lacks measure, lacks place"),
        (HEAD.replace("version", "colour"), ":1: the header has the unknown column colour"),
        (HEAD + "run,x,,,,a,AP,high,\n", ":2: expected 9 fields with a number as value"),
        ("# a\n# b\n" + HEAD + "run,x\n", ":4: expected 9 fields"),
        (HEAD + "run,x,,,,a,AP,0.1,v1,more\n", ":2: expected 9 fields"),
    ],
)
def test_a_broken_reference_is_an_error_with_its_line(tmp_path, text, expected):
    path = tmp_path / "broken.csv"
    path.write_text(text)
    with pytest.raises(DataError, match=expected):
        read_reference(path)


def test_every_shipped_reference_is_a_plain_csv_file():
    for path in FOLDER.glob("*.csv"):
        lines = [line for line in path.read_text().splitlines() if not line.startswith("#")]
        assert len({len(fields) for fields in csv.reader(lines)}) == 1
