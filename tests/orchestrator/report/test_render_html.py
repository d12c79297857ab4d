import re
from html.parser import HTMLParser

import pytest
from reports import make_report

from xsweep.orchestrator.report.render_html import render_html

VOID = {"meta", "input", "br", "hr", "img", "link"}


class Page(HTMLParser):
    """Collects a page's elements and checks that they nest."""

    def __init__(self, text):
        super().__init__()
        self.open, self.tags, self.texts = [], [], []
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] not in ("script", "style"):
            self.texts.append(data.strip())


@pytest.fixture(scope="module")
def page(small_sweep):
    report = make_report(small_sweep, sweep="small", measures=["nDCG@10", "RR@10"])
    return Page(render_html(report))


def test_the_page_needs_no_network(page):
    links = [
        attributes[name]
        for _, attributes in page.tags
        for name in ("src", "href", "style", "xlink:href")
        if name in attributes
    ]
    assert not [value for value in links if re.search(r"//|url\((?!#)", value)]
    assert {"link", "img", "iframe"}.isdisjoint(tag for tag, _ in page.tags)


def test_every_number_opens_its_seeds_and_jobs(page, small_sweep):
    targets = [
        attributes["popovertarget"] for _, attributes in page.tags if "popovertarget" in attributes
    ]
    popovers = [attributes["id"] for _, attributes in page.tags if "popover" in attributes]
    assert targets == popovers
    assert len(set(popovers)) == 8 * 2
    for cell in small_sweep:
        # once for each measure; a job that has not started says nothing
        assert page.texts.count(cell.identity[:12]) == (0 if cell.state == "waiting" else 2)


def test_few_columns_are_drawn(page):
    assert [tag for tag, _ in page.tags].count("figure") == 2


def test_states_and_failures_are_visible(page):
    assert "failed NAN" in page.texts
    assert "running" in page.texts
    assert "1/2" in page.texts


def test_names_cannot_become_markup(make_cell):
    evil = "<script>alert(1)</script>"
    cells = [
        make_cell(0, system="first_stage", AP=[0.1, 0.2]),
        make_cell(1, backbone=evil, collection=evil, AP=[0.1, 0.2]),
    ]
    page = Page(render_html(make_report(cells, sweep=evil, measures=["AP"])))
    assert [tag for tag, _ in page.tags].count("script") == 1
    assert evil in page.texts
