"""Capitals come back from what was read; nothing but capitals changes."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from prism.casing import restore


@pytest.mark.parametrize(
    ("written", "sources", "expected"),
    [
        ("it covers powershell.", ["Use PowerShell here."], "It covers PowerShell."),
        ("it covers get-winevent.", ["Run `Get-WinEvent` now."], "It covers Get-WinEvent."),
        ("the winevent log.", ["Run `Get-WinEvent` now."], "The WinEvent log."),
        ("s3 and the dns", ["in S3", "the DNS"], "S3 and the DNS"),
        # A capital at the start of a sentence says nothing about the word.
        ("of buckets", ["Buckets are kept. Buckets stay."], "Of buckets"),
        ("of buckets", ["The Buckets, Buckets of it"], "Of Buckets"),
        # As it mostly is; of sources the first that has the word.
        ("on api keys", ["an api, an API, the API"], "On API keys"),
        ("an api", ["the API", "an api of an api"], "An API"),
        ("done. see aws.", ["with AWS"], "Done. See AWS."),
        ("erklärt wird: die paketverwaltung.", ["mit der Paketverwaltung"], "Erklärt wird: die Paketverwaltung."),
        # Where words are not spaced, a word ends with its script.
        ("文中讲到dns服务器。", ["设置DNS，"], "文中讲到DNS服务器。"),
        ("文中说明：如何用gnome。", ["在 GNOME 中"], "文中说明：如何用GNOME。"),
        ("", ["a"], ""),
        ("1.5 gb", [], "1.5 gb"),
    ],
)
def test_spellings(written, sources, expected):
    assert restore(written, sources) == expected


@given(st.text(alphabet=st.characters(codec="ascii"), max_size=60), st.lists(st.text(max_size=60), max_size=3))
def test_only_capitals_change(written, sources):
    assert restore(written.lower(), sources).lower() == written.lower()


def test_a_long_hostile_document_is_read():
    hostile = "-" * 100_000 + "A.b_c-" * 30_000 + "." * 100_000  # hours, were it quadratic
    assert restore("a word of b", [hostile]) == "A word of b"
