"""The playground: what people put in, on which screens, and by which means."""

# ruff: noqa: F811  # fixtures are imported

from __future__ import annotations

import base64
import json
from typing import Any

import httpx
import pytest
from browser import Browser, Thrown
from http_endpoint import Server
from playground_page import BAD, FAIR, GOOD, QUERY, Page, client, engine, page, server  # noqa: F401


def test_hostile_texts_stay_texts(page: Page) -> None:
    evil = "p=0.9 <script>window.pwned=1</script><img src=x onerror=window.pwned=2> \u202egnihtyna\u202c says so. Fine."
    page.judge("<b>bold</b> \u202equery", f"# <i>title</i> \u2066x\n{evil}")
    assert page.js("return window.pwned ?? null") is None
    assert (
        page.js("return document.querySelectorAll('#results script, #results img, #results i:not(.bar i)').length") == 0
    )
    assert page.text("#ranking h3") == "<i>title</i> \ufffdx"
    assert page.text("#ranking .document") == evil.replace("\u202e", "\ufffd").replace("\u202c", "\ufffd")
    assert "\u202e" not in page.text("#results")
    with pytest.raises(Thrown, match="TrustedHTML"):
        page.js("document.body.innerHTML = '<b>no</b>'")
    page.window.console()  # the policy's own, about the line above


def paste(page: Page, text: str) -> None:
    script = """
      const data = new DataTransfer();
      data.setData('text/plain', arguments[0]);
      const event = new ClipboardEvent('paste', {clipboardData: data, bubbles: true, cancelable: true});
      return document.getElementById('documents').dispatchEvent(event);
    """
    assert page.js(script, text) is (len(text) <= 50_000), "a short one goes into the field"


def test_a_megabyte(page: Page) -> None:
    text = "p=0.9 The harbour froze in 1963. " + "It rains on the lake \U0001f327 and nobody minds. " * 24_000
    assert len(text.encode()) > 1_000_000
    paste(page, "short")
    paste(page, text)
    assert page.texts("#files li span") == [f"Pasted text, {len(text.encode('utf-16-le')) // 2:,} characters"]
    page.judge(QUERY, "", within_s=120)
    assert page.texts("#ranking .document mark") == ["p=0.9 The harbour froze in 1963."]
    assert len(page.text("#ranking .document")) < 2_000, "what is far from the evidence is left out"
    assert "The model read the first" in page.text("#ranking .notes")
    page.press("#ranking .card button.small")
    assert page.text("#ranking .document") == text.strip()
    assert page.text("#ranking .document mark") == "p=0.9 The harbour froze in 1963."
    page.press("#tab-curl")
    assert len(page.text("#output")) < 110_000
    assert page.js("return document.documentElement.scrollWidth <= innerWidth")


def drop(page: Page, *files: tuple[str, str]) -> None:
    """Files let go over the page; contents in base64."""
    script = """
      const data = new DataTransfer();
      for (const [name, content] of arguments[0])
        data.items.add(new File([Uint8Array.from(atob(content), c => c.charCodeAt(0))], name));
      const event = new DragEvent('drop', {dataTransfer: data, bubbles: true, cancelable: true});
      document.getElementById('form').dispatchEvent(event);
    """
    page.js(script, files)


def b64(content: bytes) -> str:
    return base64.b64encode(content).decode()


def test_files(page: Page) -> None:
    lines = json.dumps({"id": 7, "title": "Metals", "text": FAIR}) + "\n\n" + json.dumps({"contents": BAD}) + "\n"
    drop(page, ("harbour.md", b64(f"\ufeff{GOOD}".encode())), ("more.jsonl", b64(lines.encode())))
    page.until(lambda: len(page.texts("#files li")) == 2)
    assert page.text("#counted").startswith("3 documents")
    page.judge(QUERY, "")
    assert page.texts("#ranking h3") == ["harbour.md", "Metals · 7", BAD]
    page.press("#files li:nth-child(2) button")
    assert page.text("#counted").startswith("1 document,")
    drop(page, ("photo.png", b64(b"\x89PNG\xff\xfe")), ("bad.jsonl", b64(b'{"text": "x"}\n{"no": 1}')))
    page.until(lambda: "bad.jsonl:2: expected an object with a text" in page.text("#documents-wrong"))
    drop(page, ("latin.txt", b64("Käse".encode("latin-1"))))
    page.until(lambda: "latin.txt is not UTF-8 text" in page.text("#documents-wrong"))
    assert len(page.texts("#files li")) == 1


@pytest.mark.parametrize(
    ("pasted", "documents"),
    [
        ("one\n\ntwo", ["one", "two"]),
        ("one\n \t\n\n\ntwo\n", ["one", "two"]),
        ("one\n\nstill one\n---\ntwo", ["one\n\nstill one", "two"]),
        ("---\none\n----- \n\n---\ntwo\n---", ["one", "two"]),
        ("# Title\none\n\ntwo", [{"title": "Title", "text": "one"}, "two"]),
        ("# Title\n\none", [{"title": "Title", "text": "one"}]),
        ("# Alone", ["# Alone"]),
        ("#hash\ntag", ["#hash\ntag"]),
        ("a --- b", ["a --- b"]),
        (" \n\n ", []),
    ],
)
def test_pasted_documents(page: Page, pasted: str, documents: list[Any]) -> None:
    page.fill("documents", pasted)
    assert page.js("return request('q', gathered()).documents") == documents


@pytest.mark.parametrize("width", [360, 768, 1600])
@pytest.mark.parametrize("dark", [False, True])
def test_every_width_by_day_and_by_night(
    window: Browser, server: Server, client: httpx.Client, width: int, dark: bool
) -> None:
    page = Page(window, server.url, width=width, dark=dark)
    fits = "return document.documentElement.scrollWidth <= innerWidth && innerWidth === arguments[0]"
    assert page.js(fits, width)
    page.judge("x" * 300, f"# {'long' * 100}\n{GOOD}{'y' * 500}\n\n{FAIR}\n\nplease refuse {'z' * 300}")
    for tab in ("json", "curl", "python", "context"):
        page.press(f"#tab-{tab}")
        assert page.js(fits, width)
    light = page.js("return getComputedStyle(document.body).backgroundColor.match(/\\d+/g).slice(0, 3).map(Number)")
    assert (sum(light) < 150) is dark
    ratios = page.js(CONTRASTS)
    assert ratios
    assert min(ratio for _, ratio in ratios) >= 4.5, sorted(ratios, key=lambda pair: pair[1])[:5]
    assert page.window.console() == []
    page = Page(window, f"{server.url}/docs", width=width, dark=dark)
    assert page.js(fits, width)
    assert page.window.console() == []


CONTRASTS = """
  // WCAG 2.2: relative luminance, and the ratio of a text to the first background that is not transparent
  const numbers = color => color.match(/[\\d.]+/g).map(Number);
  const linear = v => v <= .04045 ? v / 12.92 : ((v + .055) / 1.055) ** 2.4;
  const light = color => color.slice(0, 3).reduce((sum, v, n) => sum + linear(v / 255) * [.2126, .7152, .0722][n], 0);
  const behind = e => {
    for (; e; e = e.parentElement) {
      const color = numbers(getComputedStyle(e).backgroundColor);
      if (color[3] !== 0) return color;
    }
  };
  const found = [];
  for (const e of document.querySelectorAll('body *')) {
    if (!e.checkVisibility() || ![...e.childNodes].some(n => n.nodeType === 3 && n.data.trim())) continue;
    const [a, b] = [light(numbers(getComputedStyle(e).color)), light(behind(e))].sort((x, y) => y - x);
    found.push([e.tagName + '.' + e.className + '#' + e.id, (a + .05) / (b + .05)]);
  }
  return found;
"""


def test_motion_only_where_it_is_wanted(window: Browser, server: Server, client: httpx.Client) -> None:
    moves = "return getComputedStyle(document.querySelector('.card')).animationName"
    for still, name in ((True, "none"), (False, "rise")):
        page = Page(window, server.url, still=still)
        page.judge(QUERY, GOOD)
        assert page.js(moves) == name


def test_with_the_keyboard_alone(page: Page) -> None:
    tab, enter, control, right, end = "\ue004", "\ue007", "\ue009", "\ue014", "\ue010"  # WebDriver's codes
    focused = "return document.activeElement.id || document.activeElement.textContent"
    page.until(lambda: page.js("return document.hasFocus()"))  # before, keys go nowhere
    order = []
    for _ in range(11):
        page.window.keys(tab)
        order.append(page.js(focused))
    assert order[:3] == ["Skip to the ranking", "API reference", "query"]
    assert order[3:] == ["documents", "clear", "add", "threshold", "budget", "More options", "judge", "sample"]
    assert page.js("return getComputedStyle(document.activeElement).outlineStyle") == "solid"
    page.fill("documents", f"{GOOD}\n\n{BAD}")
    page.window.type("#query", QUERY)
    page.window.keys(control, enter)
    page.until(lambda: page.texts("#ranking blockquote"))
    page.over()
    page.js("document.getElementById('tab-context').focus()")
    page.window.keys(right)
    assert page.js("return [document.activeElement.id, document.activeElement.ariaSelected]") == ["tab-json", "true"]
    page.window.keys(end)
    assert page.js(focused) == "tab-python"


def test_every_control_has_a_name(page: Page) -> None:
    page.judge(QUERY, f"{GOOD}\n\n{BAD}")
    page.js("document.querySelectorAll('details').forEach(e => { e.open = true; })")
    tree = page.window.devtools("Accessibility.getFullAXTree")["nodes"]
    roles = {
        "button",
        "textbox",
        "slider",
        "spinbutton",
        "combobox",
        "checkbox",
        "tab",
        "link",
        "meter",
        "list",
        "tabpanel",
    }
    found = [node for node in tree if not node.get("ignored") and node["role"]["value"] in roles]
    unnamed = [n for n in found if not n.get("name", {}).get("value") and n["role"]["value"] != "list"]
    assert unnamed == []
    kinds = {node["role"]["value"] for node in found}
    assert roles <= kinds, roles - kinds
    live = page.js("return [...document.querySelectorAll('[role=status], [role=alert]')].map(e => e.id)")
    assert live == ["query-wrong", "documents-wrong", "weighed", "status", "wrong"]
