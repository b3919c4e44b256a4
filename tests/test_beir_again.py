"""A BEIR evaluation run again: finished, refused in part, with ids that hold spaces."""

from __future__ import annotations

import json
from pathlib import Path

from http_server import HttpServer, Reply, Request
from test_beir_qa import Go, beir_qa, data, run

__all__ = ["data", "run"]  # fixtures


def test_a_finished_run_changes_nothing_and_says_so(run: Go, tmp_path: Path) -> None:
    run()
    files = [path for path in (tmp_path / "out").rglob("*") if path.is_file()]
    before = {path: path.read_bytes() for path in files}
    _, reranker, said = run()
    assert reranker.calls == []
    assert "tiny: finished before, nothing changed" in said
    assert {path: path.read_bytes() for path in files} == before
    _, reranker, said = run(resume=False)
    assert reranker.calls
    assert "tiny: finished before, nothing changed" not in said


def test_ids_with_spaces_are_measured(run: Go, data: Path) -> None:
    folder = data / "tiny"
    for path in (folder / "corpus.jsonl", folder / "queries.jsonl", folder / "qrels" / "test.tsv"):
        content = path.read_text(encoding="utf-8")
        ids = sorted(
            {row["_id"] for line in content.splitlines() if line.startswith("{") for row in [json.loads(line)]}
        )
        for id_ in ids:
            content = content.replace(json.dumps(id_), json.dumps(f"file {id_}"))
        if path.suffix == ".tsv":
            head, *lines = content.splitlines()
            cells = [line.split("\t") for line in lines]
            content = "\n".join(
                [head, *(f"file {query}\tfile {document}\t{label}" for query, document, label in cells)]
            )
        path.write_text(content, encoding="utf-8")
    report, _, _ = run(models=())
    assert report["datasets"]["tiny"]["bm25"]["nDCG@10"] == 0.5  # as without spaces


def test_what_a_service_refused_is_asked_again_by_the_next_run(tmp_path: Path, data: Path) -> None:
    refuse = ["word1x"]

    def answer(request: Request) -> Reply:
        assert "" not in request.body["documents"]
        if any(refuse[0] in text for text in request.body["documents"]):
            return Reply({"detail": "Forbidden"}, 403)
        scores = [
            {"index": index, "relevance_score": 1 / (index + 2)} for index, _ in enumerate(request.body["documents"])
        ]
        return Reply({"data": scores})

    with HttpServer(answer) as server:
        model = f"voyage:m@{server.url}"
        options = beir_qa.Options(models=(model,), data=data, out=tmp_path / "out")
        said: list[str] = []
        beir_qa.evaluate(options, said.append)
        assert any("documents could not be judged, most often: refused: " in line for line in said)
        before, refuse[0] = len(server.requests), "nothing at all"
        report = json.loads(beir_qa.evaluate(options, said.append).read_text())
        assert len(server.requests) > before
        assert report["meta"]["tiny"]["m"]["failures"] == {}
        before = len(server.requests)
        beir_qa.evaluate(options, said.append)
        assert len(server.requests) == before
