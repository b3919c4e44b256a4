"""Broken texts and contributions that say the query again. Expected values are derived by hand."""

from __future__ import annotations

import pytest

from prism.evidence import check, outcome_of
from prism.evidence.soundness import broken, says_the_query_again
from prism.types import Outcome

PAGE = "Prometheus is used for monitoring. Metrics are stored on disk, and alerts are sent by mail."


@pytest.mark.parametrize(
    ("text", "stretches"),
    [
        ("F monitoreder words of the metrics.", ("F", "monitoreder")),
        ("It says <|im_start|>assistant alerts are sent.", ("<|im_start|>",)),
        ("Alerts are sent.</evidence>", ("</evidence>",)),
        ("Alerts are sent.\nDocument: metrics", ("Document:",)),
        ("It is the best of the best of the best of the best of it.", ("the best of …",)),
        ("Alerts alerts alerts alerts alerts are sent.", ("Alerts …",)),
        ("数据存储在磁盘上存储在磁盘上存储在磁盘上。", ("存储在磁盘上 …",)),
        ("Metrics are stoooored.", ("stoooored",)),
        ("Wir speichern Metriми.", ("Metriми",)),
        ("Alerts are \ufffd by mail.", ("\ufffd",)),
        ("Alerts are sent by xkrtpfgh.", ("xkrtpfgh",)),
    ],
)
def test_broken(text: str, stretches: tuple[str, ...]) -> None:
    assert broken(text, [PAGE]) == stretches
    assert broken(text, [PAGE, f"Here it stands: {text}"]) == ()  # a source that has it says it so


@pytest.mark.parametrize(
    "text",
    [
        "Prometheus stores its metrics on disk and monitors them; a monitor mails alerts.",
        "It was monitored, and monitorable by a monitoring-minded team.",
        "A very, very, very long wait: no, no, no.",
        "Vitamin-C and plan-B, i.e. U.S. rules; it's O'Brien's.",
        "1 1 1 1 1 1 and 0 0 0 0 0 0",
        "Die Überwachung speichert Metriken auf Festplatten.",
        "Оповещения отправляются по почте, а метрики и сведения хранятся на диске.",
        "数据存储在磁盘上，警报通过邮件发送。",
        "メトリクスはディスクに保存され、アラートはメールで送られる。",
        "",
    ],
)
def test_not_broken(text: str) -> None:
    assert broken(text, [PAGE]) == ()


@pytest.mark.parametrize(
    ("contribution", "query"),
    [
        ("It covers rotating access keys without downtime.", "rotate access keys without downtime"),
        ("It explains how to rotate access keys.", "How do I rotate access keys?"),
        ("The document describes access keys.", "access keys rotation"),
        ("It explains how deer mice live.", "do deer mice live in the us"),
        ("Es erklärt, wie man Schlüssel wechselt.", "Wie wechselt man Schlüssel?"),
        ("Документ описывает ключи доступа.", "как сменить ключи доступа"),
        ("介绍如何更换路由器。", "如何更换路由器？"),
    ],
)
def test_says_the_query_again(contribution: str, query: str) -> None:
    assert says_the_query_again(contribution, query)


@pytest.mark.parametrize(
    ("contribution", "query"),
    [
        ("It gives the place: Russia.", "Where did Jebe spend the winter?"),
        ("It gives the number: 2.7%.", "what percentage of Fresno was Asian in 1940"),
        ("It says that access keys cannot be rotated.", "rotate access keys"),
        ("According to it, deer mice live in the US.", "do deer mice live in the US"),  # that is the answer
        ("Es sagt, dass der Schlüssel alle 90 Tage wechselt.", "Wann wechselt der Schlüssel?"),
        ("По нему ключи меняются раз в год.", "когда меняются ключи"),
        ("给出答案：哈佛大学。", "韦尔伯·施拉姆在哪所大学取得了硕士学位？"),
        ("It helps.", "rotate access keys"),  # empty, but no repetition
    ],
)
def test_says_something(contribution: str, query: str) -> None:
    assert not says_the_query_again(contribution, query)


@pytest.mark.parametrize(
    ("contribution", "evidence", "outcome"),
    [
        ("Alerts go out by mail.", "Alerts are sent by mail.", Outcome.COMPLETE),
        ("It explains how alerts are sent.", "Alerts are sent by mail.", Outcome.UNINFORMATIVE),
        ("It explains how alerts are sent.", "Alerts are <|im_end|> sent.", Outcome.MALFORMED),
        ("F monitoreder words.", "Alerts are sent by mail.", Outcome.MALFORMED),
    ],
)
def test_outcome_of_texts_in_the_right_form(contribution: str, evidence: str, outcome: Outcome) -> None:
    query = "how are alerts sent"
    assert outcome_of(Outcome.COMPLETE, contribution, evidence, query=query, document=PAGE) is outcome
    for kept in (Outcome.CUT_OFF, Outcome.MALFORMED, Outcome.NOT_WRITTEN):
        assert outcome_of(kept, contribution, evidence, query=query, document=PAGE) is kept


def test_the_contribution_has_a_check_of_its_own() -> None:
    found = check(
        "Alerts are sent by mail.", PAGE, contribution="It names Grafana, which stores metrics in 2024.", query="alerts"
    )
    assert (found.fidelity.unsupported, found.fidelity.score, found.support) == ((), 1.0, 1.0)
    about = found.contribution
    assert about is not None
    assert [(u.kind, u.text) for u in about.fidelity.unsupported] == [("number", "2024"), ("name", "Grafana")]
    # Content words: grafana 7, stores 6, metrics 7, 2024 4; the page has "stored" and "metrics".
    assert about.support == pytest.approx(13 / 24)
    assert [u.text for u in found.written.unsupported] == ["2024", "Grafana"]


def test_spans_of_a_contribution_lie_in_the_document() -> None:
    about = check("", PAGE, contribution="Metrics are stored on disk.", query="where").contribution
    assert about is not None
    assert [PAGE[s.start : s.end] for s in about.spans] == ["Metrics are stored on disk"]
