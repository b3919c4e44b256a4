"""Which wording makes a chat model that was never taught to rerank judge best: several, on the everyday questions.

    python eval/instruct_wording.py --model qwen2.5-coder-1.5b-instruct --out eval/results/instruct_wording

Scores and verdicts only: no texts are written. A wording that was measured already is not asked again (same model, same
questions, same prompt); about five minutes each for a model of 1.5 B parameters on two cores.
"""

from __future__ import annotations

import json
import sys
import time
from hashlib import sha256
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated, Any

import typer
from typer import Option

from prism.chat_template import BUILT_IN, LABEL_ONLY, WORDING, Wording, instruct_spec
from prism.checkpoint import Checkpoint
from prism.errors import PrismError
from prism.outputs import write_text
from prism.reports.bar import progress
from prism.reports.report import command_line
from prism.reranker import Reranker
from prism.template import TemplateSpec
from studies.everyday import Measures, ask, by_slice, read_questions

QUESTIONS = Path(__file__).parent / "everyday" / "questions.jsonl"
_HELPS = "Does the document help to answer the query?"
_NOT_ABOUT_IT = (
    "how do I cancel an order",
    "Orders can be tracked under My account. You get a message as soon as a parcel is on its way.",
    "no",
)
_ABOUT_IT = (
    "how do I cancel an order",
    "An order that has not been sent yet can be withdrawn under My account, Orders, Withdraw."
    " The money is back within 5 days.",
    "yes\n<contribution>It explains where to withdraw an order that has not been sent.</contribution>\n"
    "<evidence>An order that has not been sent yet can be withdrawn under My account, Orders, Withdraw.</evidence>",
)
WORDINGS: dict[str, Wording] = {
    "two examples, yes first": WORDING,
    "two examples, no first": WORDING._replace(examples=WORDING.examples[::-1]),
    "four examples": WORDING._replace(examples=(*WORDING.examples, _NOT_ABOUT_IT, _ABOUT_IT)),
    "no examples": WORDING._replace(examples=()),
    'two examples, "helps to answer"': WORDING._replace(instruction=_HELPS),
    "no examples, yes or no only": LABEL_ONLY,
    "two examples, document before query": WORDING._replace(pair="Document: {document}\nQuery: {query}"),
}


def main(
    model: Annotated[str, Option(help="A chat model: a folder, a hub id, a name of `prism pull`.")],
    out: Annotated[Path, Option(help="Folder for report.md and report.json.")],
    questions: Annotated[Path, Option(exists=True, dir_okay=False, help="JSONL of questions.")] = QUESTIONS,
    only: Annotated[list[str] | None, Option(help="Wordings or built-in templates, by name; repeatable.")] = None,
    limit: Annotated[int | None, Option(min=1, help="A quick look: only the first N questions.")] = None,
) -> None:
    """Measure the wordings, and the built-in templates beside them; print a table."""
    try:
        tokenizer = Checkpoint.load(model, template="prism").tokenizer
        specs = {name: instruct_spec(tokenizer, wording) for name, wording in WORDINGS.items()} | dict(BUILT_IN)
        chosen = {name: spec for name, spec in specs.items() if not only or name in only}
        asked = read_questions(questions)[:limit]
        stamp = sha256(questions.read_bytes() + str(limit).encode() + model.encode()).hexdigest()[:16]
        known = _known(out / "report.json", stamp)
        for name, spec in chosen.items():
            scored = spec.model_dump_json(include={"text", "default_instruction", "yes", "no"})
            key = sha256(scored.encode()).hexdigest()[:16]
            if known.get(name, {}).get("key") != key:
                known[name] = {"key": key, **_measured(model, spec, name, asked)}
                body = {"command": command_line(), "model": model, "stamp": stamp, "wordings": known}
                write_text(out / "report.json", json.dumps(body, indent=1, ensure_ascii=False) + "\n")
        text = _table(model, known, len(asked))
        write_text(out / "report.md", f"{text}\nCommand: `{command_line()}`\n")
        print(text)
    except PrismError as error:
        print(f"error: {error}", file=sys.stderr)
        raise typer.Exit(2) from None


def _known(path: Path, stamp: str) -> dict[str, Any]:
    body = json.loads(path.read_bytes()) if path.is_file() else {}
    return dict(body["wordings"]) if body.get("stamp") == stamp else {}


def _measured(model: str, spec: TemplateSpec, name: str, asked: list[Any]) -> dict[str, Any]:
    started = time.monotonic()
    with TemporaryDirectory() as folder, progress(name, len(asked)) as advance:
        path = Path(folder) / "template.json"
        write_text(path, spec.model_dump_json())
        with Reranker.load(model, template=str(path), self_test=False) as reranker:
            found = by_slice(ask(reranker, asked, lambda _: advance(1), evidence=False))
    seconds = time.monotonic() - started
    return {"seconds": round(seconds), "measures": {part: one.model_dump(mode="json") for part, one in found.items()}}


def _table(model: str, known: dict[str, Any], count: int) -> str:
    lines = [f"# Wordings for {model}, untaught: {count} everyday questions", ""]
    parts = list(next(iter(known.values()))["measures"])
    for part in parts:
        lines += ["", f"## {part}", "", "| wording | first | verdicts right | false yes | false no | AUC |"]
        lines.append("|---|---:|---:|---:|---:|---:|")
        for name, one in known.items():
            found = Measures.model_validate(one["measures"][part])
            first = (
                ""
                if found.ranks is None
                else f"{found.ranks.first * found.ranks.questions:.0f} of {found.ranks.questions}"
            )
            auc = "" if found.auc is None else f"{found.auc:.3f}"
            lines.append(
                f"| {name} | {first} | {found.verdicts_right:.3f} | {found.false_yes} | {found.false_no} | {auc} |"
            )
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    typer.run(main)
