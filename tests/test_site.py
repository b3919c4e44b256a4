"""The documentation site builds without a warning, every link leads somewhere, and it is read from files, offline."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from browser import Browser

ROOT = Path(__file__).parents[1]
sys.path.append(str(ROOT / "docs" / "tools"))
pytest.importorskip("mkdocs", reason='needs pip install "prism-reranker[docs]"')

from check_site import problems  # noqa: E402
from http_examples import EXAMPLES  # noqa: E402
from reference_pages import cli_page, recipe_page  # noqa: E402
from site_hook import relinked, resolve  # noqa: E402


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """As `make docs` builds it, every warning an error."""
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-W", "default", "-m", "mkdocs", "build", "--quiet", "--site-dir", str(folder)]
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, check=False, timeout=500)
    assert done.returncode == 0, done.stdout + done.stderr
    return folder


@pytest.mark.slow
def test_every_link_leads_somewhere_and_nothing_comes_from_elsewhere(site: Path) -> None:
    assert list(problems(site)) == []


@pytest.mark.slow
def test_every_page_of_the_navigation_is_in_the_menu(site: Path) -> None:
    nav = yaml.safe_load((ROOT / "mkdocs.yml").read_text(encoding="utf-8"))["nav"]
    pages = {
        title: uri for section in nav for items in section.values() for item in items for title, uri in item.items()
    }
    text = (site / "comparison.html").read_text(encoding="utf-8")
    menu = text[text.index('<nav class="md-nav md-nav--primary') : text.index('<div class="md-content"')]
    links = re.findall(r'href="([^"]+)"[^>]*>\s*<span class="md-ellipsis">\s*([^<]+?)\s*<', menu)
    shown = {title for _, title in links}
    assert set(pages) <= shown


@pytest.mark.slow
def test_http_examples_are_answered(site: Path) -> None:
    text = (site / "reference" / "http.html").read_text(encoding="utf-8")
    for title in EXAMPLES:
        assert f">{title}<a" in text
    plain = re.sub(r"<[^>]+>", "", text)
    assert '"evidence": "The warranty covers defects for two years from the date of purchase.' in plain
    assert '"relevance_score": 0.9' in plain
    assert "query is blank" in plain
    assert "event: done" in plain or "data: [DONE]" in plain


@pytest.mark.slow
def test_search_finds_pages_that_are_opened_as_files(site: Path, window: Browser) -> None:
    window.console()
    window.open(site / "index.html")
    window.devtools("Network.enable")
    window.run("document.querySelector('.md-search__input').focus()")
    window.type(".md-search__input", "adapter")
    found = window.run(
        """return new Promise((resolve, reject) => {
          const started = Date.now();
          const look = () => {
            const links = [...document.querySelectorAll('.md-search-result__link')].map(link => link.href);
            if (links.length) resolve(links);
            else if (Date.now() - started > 20000) reject(new Error('nothing was found'));
            else setTimeout(look, 100);
          };
          look();
        })"""
    )
    assert any("how-to/checkpoints.html" in url for url in found)
    assert all(url.startswith("file://") for url in found)
    assert window.console() == [], "nothing fails to load"
    loaded = window.run("return performance.getEntriesByType('resource').map(entry => entry.name)")
    assert [url for url in loaded if not url.startswith("file://")] == []


# --- the parts -------------------------------------------------------------------------------------------------------


def test_the_cli_page_has_every_command_and_option() -> None:
    page = cli_page()
    for command in ("rerank", "data-mine", "serve", "write-targets"):
        assert f"{{#prism-{command}}}" in page
    assert "<code>--evidence &lt;written&#124;quoted&#124;auto&#124;none&gt;</code>" in page
    assert "prism rerank [OPTIONS] QUERY FILES..." in page


def test_the_recipe_page_has_every_key() -> None:
    page = recipe_page()
    assert "## `model.lora` {#model-Lora}" in page
    assert "## `data.qa.windows` {#model-Windows}" in page
    assert "| `rank` | integer (at least 1) | <code>64</code> |" in page
    assert "| `name` | string | required |" in page


@pytest.mark.parametrize(
    ("page", "link", "becomes"),
    [
        (
            "docs/how-to/doctor.md",
            "../../eval/README.md#3-read-the-table",
            "../repository/eval/README.md#3-read-the-table",
        ),
        ("serve/FIRST_REQUEST.md", "../docs/how-to/integrations.md", "../../how-to/integrations.md"),
        ("docs/index.md", "../serve/README.md", "repository/serve/README.md"),
        ("recipes/README.md", "mini.yaml", "mini.yaml"),
        ("README.md", "eval", "eval/README.md"),
        ("docs/index.md", "https://example.com/a.md", "https://example.com/a.md"),
        ("docs/index.md", "#words", "#words"),
        ("docs/index.md", "nowhere.md", "nowhere.md"),
    ],
)
def test_links_of_the_repository_become_links_of_the_site(page: str, link: str, becomes: str) -> None:
    assert relinked(f"See [this]({link}), `[that]({link})`.", page) == f"See [this]({becomes}), `[that]({link})`."


def test_links_in_code_stay_as_they_are() -> None:
    text = "```python\nx = [f](../serve/README.md)\n```\n[a](../serve/README.md)"
    assert relinked(text, "docs/index.md") == text.replace("[a](../", "[a](repository/")


def test_what_is_no_file_of_the_repository_is_left_alone() -> None:
    assert resolve("mailto:someone@example.com", "docs/index.md") is None
    assert resolve("../prism", "docs/index.md") is None, "a folder without a page"


def test_the_check_finds_what_is_wrong(tmp_path: Path) -> None:
    (tmp_path / "b.html").write_text('<p id="here">x</p>', encoding="utf-8")
    (tmp_path / "a.html").write_text(
        """<a href="b.html#here">fine</a> <a href="#top">no anchor</a> <a href="https://example.com">fine</a>
        <a href="c.html">gone</a> <a href="b.html#there">no anchor</a> <a href="/b.html">absolute</a>
        <script src="https://cdn.example.com/x.js"></script><img src="//example.com/x.png">
        <a href="../outside.html">out</a><p>Three things:\n- one\n- two</p>""",
        encoding="utf-8",
    )
    (tmp_path.parent / "outside.html").write_text("", encoding="utf-8")
    found = [problem.removeprefix("a.html:") for problem in problems(tmp_path)]
    assert found == [
        "1: #top: no element has this id",
        "2: c.html: leads to no file",
        "2: b.html#there: no element has this id",
        "2: /b.html: begins with /, which leads nowhere from file://",
        "3: https://cdn.example.com/x.js: loaded from elsewhere: keep a copy in docs/assets",
        "3: //example.com/x.png: loaded from elsewhere: keep a copy in docs/assets",
        "4: ../outside.html: leads out of the site",
        " a list without a blank line before it",
    ]


def test_a_folder_without_pages_is_no_site(tmp_path: Path) -> None:
    assert [problem for problem in problems(tmp_path) if "no pages" in problem]
