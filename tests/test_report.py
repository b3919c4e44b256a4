"""Reports: what is in them, that nothing in them can act, and that they are written whole."""

from __future__ import annotations

import json
import math
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from browser import CHROMIUM, DRIVER, MISSING, browser
from markdown_it import MarkdownIt
from matplotlib.figure import Figure

from prism.errors import InputError
from prism.reports.blocks import plain
from prism.reports.report import Report, command_line, versions

HOSTILE = '<script>alert(1)</script><img src=x onerror=alert(1)> [a](javascript:x) | `b` \x1b[31m\u202e\ud800 & "q"'
MARKUP = {"h1", "h2", "p", "blockquote", "strong", "pre", "code", "table", "thead", "tbody", "tr", "th", "td"}


class Page(HTMLParser):
    """Tags with their attributes, and the text."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text += data

    def named(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.tags if name == tag]


def bars(figure: Figure) -> None:
    figure.subplots().bar(["bm25", "cost $5 or $6"], [0.5, 0.7])


def make(text: str = "plain") -> Report:
    report = Report(
        f"Title {text}", command=f"python eval/x.py --name {text}", versions={"prism": "1.2.3", "torch": "2"}
    )
    report.lead(f"Lead {text}")
    for number in range(3):
        section = report.section(f"Part {number} {text}")
        section.text(f"Text {text}")
        section.note(f"Note {text}")
        section.warn(f"Warned {text}")
        section.code(f"Code\n{text}", caption=f"Caption {text}")
        rows = [[f"a {text}", 0.5, 3], [f"b {text}", 0.25, None], ["c", math.nan, 1]]
        section.table([f"name {text}", "score", "n"], rows, caption=f"Table {text}", best={"score": "max", "n": "min"})
    return report


def test_everything_is_in_all_three_files(tmp_path: Path) -> None:
    report = make()
    report.sections[0].figure("bars", bars, alt="Two bars.", caption="By model", command="python eval/y.py")
    path = report.write(
        tmp_path / "deep" / "out", {"datasets": {"a": np.float64(0.5), "b": math.nan, "c": np.arange(2)}}
    )
    page = Page(path.read_text())
    for words in ("Title plain", "Lead plain", "Text plain", "Warned plain", "Code\nplain", "Table plain", "By model"):
        assert words in page.text
        assert words in (path.parent / "report.md").read_text()
    body = json.loads((path.parent / "report.json").read_text())
    assert body["datasets"] == {"a": 0.5, "b": None, "c": [0, 1]}
    assert (body["title"], body["versions"]["torch"]) == ("Title plain", "2")
    assert body["command"] == "python eval/x.py --name plain"
    assert (path.parent / "figures" / "bars.svg").read_text().lstrip().startswith("<?xml")
    assert not list(path.parent.rglob("*.part"))


def test_a_page_needs_no_network_and_runs_nothing(tmp_path: Path) -> None:
    report = make(HOSTILE)
    report.sections[0].figure("bars", bars, alt=HOSTILE, caption=HOSTILE)
    text = report.write(tmp_path, {}).read_text()
    page = Page(text)
    assert not page.named("script")
    assert "<script>alert(1)</script>" in page.text  # shown, as text
    policy = page.named("meta")[1]["content"]
    assert policy is not None
    assert policy.startswith("default-src 'none'")
    sources = [value for _, attributes in page.tags for name, value in attributes.items() if name in ("src", "srcset")]
    assert len(sources) == 2  # light and dark
    assert all(str(source).startswith("data:image/svg+xml;base64,") for source in sources)
    assert all(str(link["href"]).startswith("#") for link in page.named("a"))
    assert not any(name.startswith("on") for _, attributes in page.tags for name in attributes)
    assert not set(text) & {"\x1b", "\u202e", "\ud800"}


def test_markdown_shows_markup_as_text(tmp_path: Path) -> None:
    make(HOSTILE).write(tmp_path, {})
    page = Page(MarkdownIt("commonmark").enable("table").render((tmp_path / "report.md").read_text()))
    assert {tag for tag, _ in page.tags} <= MARKUP
    assert len(page.named("table")) == 3
    assert len(page.named("tr")) == 3 * 4  # no cell broke out of its row
    assert len(page.named("td")) == 3 * 9


def test_numbers_are_aligned_and_the_best_stressed(tmp_path: Path) -> None:
    text = make().write(tmp_path, {}).read_text()
    assert '<td class="number best">0.5000</td>' in text
    assert '<td class="number">0.2500</td>' in text
    assert '<td class="number">–</td>' in text  # NaN, and a gap
    assert '<td class="number best">1</td>' in text  # the smallest n
    assert "| b plain | 0.2500 | – |" in (tmp_path / "report.md").read_text()
    assert "|---|---:|---:|" in (tmp_path / "report.md").read_text()


def test_markdown_numbers_stay_numbers(tmp_path: Path) -> None:
    report = Report("t", command="c", versions={})
    report.section("s").table(["n"], [[0.5], [-0.25]])
    report.section("1. listed").text("2) is no list, -3 no list either")
    report.write(tmp_path, {})
    page = Page(MarkdownIt("commonmark").enable("table").render((tmp_path / "report.md").read_text()))
    assert "0.5000" in page.text
    assert "-0.2500" in page.text
    assert "1. listed" in page.text
    assert "2) is no list" in page.text
    assert not page.named("ol")


def test_it_can_be_read_with_a_keyboard_and_a_screen_reader(tmp_path: Path) -> None:
    report = make()
    report.sections[0].table(["who", "what"], [["a", "long " * 100]])
    report.sections[0].figure("bars", bars, alt="Two bars.")
    page = Page(report.write(tmp_path, {}).read_text())
    assert page.named("html") == [{"lang": "en"}]
    assert [image["alt"] for image in page.named("img")] == ["Two bars."]
    assert {scope["scope"] for scope in page.named("th")} == {"col", "row"}
    regions = [tag for tag in page.named("div") if tag.get("class") in ("scroll", "long")]
    assert len(regions) > 4
    assert all(region["tabindex"] == "0" for region in regions)
    anchors = {link["href"] for link in page.named("a")}
    assert anchors == {f"#{heading['id']}" for heading in page.named("h2")} - {"#made"}


def test_figures_are_the_same_bytes_each_time_and_differ_by_page_colour(tmp_path: Path) -> None:
    pages = []
    for name in ("one", "two"):
        report = Report("t", command="c", versions={})
        report.section("s").figure("bars", bars, alt="Two bars.")
        page = Page(report.write(tmp_path / name, {}).read_text())
        pages.append((page.named("source")[0]["srcset"], page.named("img")[0]["src"]))
    assert pages[0] == pages[1]
    assert pages[0][0] != pages[0][1]


def test_a_figure_that_fails_leaves_the_old_report(tmp_path: Path) -> None:
    make().write(tmp_path, {"run": 1})
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}

    def fail(figure: Figure) -> None:
        raise ZeroDivisionError

    report = make("other")
    report.sections[0].figure("bars", fail, alt="Nothing.")
    with pytest.raises(ZeroDivisionError):
        report.write(tmp_path, {"run": 2})
    assert before == {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}


def test_what_cannot_be_shown_is_refused(tmp_path: Path) -> None:
    section = Report("t", command="c", versions={}).section("s")
    with pytest.raises(InputError, match="row 2 of table 'x' has 1 cells, expected 2"):
        section.table(["a", "b"], [[1, 2], [1]], caption="x")
    with pytest.raises(InputError, match="no column 'c': expected one of a, b"):
        section.table(["a", "b"], [[1, 2]], best={"c": "max"})
    with pytest.raises(InputError, match="no alt text"):
        section.figure("x", bars, alt=" ")
    with pytest.raises(InputError, match=r"figure name '\.\./x'"):
        section.figure("../x", bars, alt="x")
    report = make()
    for _ in range(2):
        report.sections[0].figure("same", bars, alt="x")
    with pytest.raises(InputError, match="two figures are named 'same'"):
        report.write(tmp_path, {})
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="is a file, not a folder: choose another"):
        make().write(tmp_path / "file", {})


def test_the_command_has_no_path_of_this_machine_and_no_key(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    here = tmp_path / "work" / "prism"
    here.mkdir(parents=True)
    monkeypatch.chdir(here)
    words = ["eval/x.py", "--data", str(here.parent / "shared"), "--model=/models/m", "--api-key", "k1", "--x-token=k2"]
    expected = "python eval/x.py --data ../shared --model=m --api-key '***' '--x-token=***'"
    assert command_line(words) == expected
    assert command_line(["x.py", "--max-tokens", "5", "a b"]) == "python x.py --max-tokens 5 'a b'"
    assert command_line([".venv/bin/prism", "calibrate", "mini"]) == "prism calibrate mini"


def test_versions_name_what_is_installed() -> None:
    found = versions("numpy", "no-such-distribution")
    assert found["numpy"] == np.__version__
    assert set(found) == {"python", "prism", "numpy"}


@pytest.mark.parametrize(
    ("value", "expected"),
    [(math.inf, None), ({1: (True, "x")}, {"1": [True, "x"]}), (np.bool_(True), True), (Path("a"), "a")],
)
def test_plain(value: Any, expected: Any) -> None:
    assert plain(value) == expected


CUT = """
const width = document.documentElement.clientWidth;
const scrolls = (e) => { for (e = e.parentElement; e; e = e.parentElement) {
  const fits = e.getBoundingClientRect().right <= width;
  if (fits && ["auto", "scroll"].includes(getComputedStyle(e).overflowX)) return true;
} return false; };
const cut = [...document.querySelectorAll("body *")].filter(
  (e) => e.getBoundingClientRect().right > width + 1 && (e.tagName === "IMG" || !scrolls(e)));
return [width, document.documentElement.scrollWidth, cut.map((e) => e.tagName + " " + e.textContent.slice(0, 40))];
"""
"""What reaches over the right edge and does not scroll. Plots must shrink: half a plot reads like a whole one."""


@pytest.mark.skipif(not (DRIVER and CHROMIUM), reason=MISSING)
def test_nothing_is_cut_on_a_phone(tmp_path: Path) -> None:
    from studies.audit import Disagreement, write_audit

    word = "a_word_longer_than_any_screen_is_wide_" * 5
    report = make(word)
    report.sections[0].figure("bars", bars, alt="Two bars.", caption=word, command=f"python {word}", size=(12, 5))
    columns = [f"{name} of ranking" for name in "abcdefghijkl"]
    report.section("Wide").table(columns, [[word, *[0.123456] * 11]], caption="Twelve columns")
    pages = [report.write(tmp_path, {})]
    row = Disagreement(query=word, document=word, human=0, model=3, judges=(word, "b"))
    pages.append(write_audit(tmp_path, [row], lambda *_: (word, f"{word} {word}"), "0 to 3")[0])
    with browser(400) as window:
        for page in pages:
            window.open(page)
            assert window.run(CUT) == [400, 400, []], page
