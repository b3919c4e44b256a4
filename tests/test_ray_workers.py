from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from decimal import Decimal
from pathlib import Path
from typing import Any

import anyio
import pytest
import yaml
from chat_server import ChatServer

from prism.errors import DataError, InputError
from prism.labeling.coordinator import Coordinator
from prism.labeling.label_pairs import LabelPair, read_label_pairs
from prism.labeling.panel import Panel, load_panel
from prism.labeling.reports import JurorReport, LabelingReport
from prism.labeling.shards import Shard, cut_into_shards, read_shard
from prism.labeling.store import read_votes
from prism.labeling.voting import PairCounts
from prism.labeling.worker import ShardDone, Worker, share

ROOT = Path(__file__).parents[1]


def pairs(path: Path, count: int) -> Path:
    file = path / "pairs.jsonl"
    file.write_text("".join(json.dumps({"query": "when?", "document": f"text {i}"}) + "\n" for i in range(count)))
    return file


def panel(path: Path, server: ChatServer, **provider: Any) -> Path:
    file = path / "panel.yaml"
    options = {"base_url": server.url, "backoff_s": 0.001, "max_attempts": 2, "concurrency": 4, **provider}
    juror = {"name": "a", "kind": "api", "provider": "p", "model": "m", "price": {"input": 0.15, "output": 0.6}}
    content = {"name": "p", "rubric": "binary", "providers": {"p": options}, "jurors": [juror]}
    file.write_text(yaml.safe_dump(content), encoding="utf-8")
    return file


# --- shards -----------------------------------------------------------------------------------------------------------

MIXED = (
    b'\xef\xbb\xbf{"query": "q", "document": "one"}\n'
    b"\n"
    b"not json\n"
    b'{"query": "q", "document": "two\\r lines"}\r\n'
    b'{"query": "q", "document": "one"}\n'
    b'{"query": "q", "document": "\xe4\xb8\x89"}\n'
    b'{"query": "q", "document": "four"}'
)


@pytest.mark.parametrize("lines", [1, 2, 3, 7, 100])
def test_parts_hold_every_pair_once(tmp_path: Path, lines: int) -> None:
    file = tmp_path / "pairs.jsonl"
    file.write_bytes(MIXED)
    counts = PairCounts()
    shards = cut_into_shards(file, lines, counts)
    found = [pair for shard in shards for pair in read_shard(file, shard)]
    assert found == [item for item in read_label_pairs(file) if isinstance(item, LabelPair)]
    assert [pair.line for pair in found] == [1, 4, 6, 7]
    assert (counts.pairs, counts.repeated, counts.bad_lines) == (4, 1, 1)
    assert len(shards) == -(-7 // lines)
    assert sum(shard.size for shard in shards) == len(MIXED)


def test_parts_end_with_the_limit(tmp_path: Path) -> None:
    file = tmp_path / "pairs.jsonl"
    file.write_bytes(MIXED)
    counts = PairCounts()
    shards = cut_into_shards(file, 2, counts, limit=2)
    assert [pair.line for shard in shards for pair in read_shard(file, shard)] == [1, 4]
    assert (counts.pairs, counts.repeated) == (2, 1)


def test_a_file_that_changes_under_way_is_noticed(tmp_path: Path) -> None:
    file = pairs(tmp_path, 4)
    shards = cut_into_shards(file, 2, PairCounts())
    file.write_text("x" * file.stat().st_size)
    with pytest.raises(DataError, match=r"pairs\.jsonl:3: changed"):
        list(read_shard(file, shards[1]))
    with pytest.raises(DataError, match="every worker can read"):
        list(read_shard(tmp_path / "elsewhere.jsonl", shards[1]))


# --- coordinator and workers, in this process ------------------------------------------------------------------------


def together(
    panel_file: Path, out: Path, work: Callable[[Coordinator, Callable[..., Worker]], Awaitable[Any]], file: Path
) -> Any:
    """Run `work` with a coordinator, and a way to make workers that talk to it."""
    chosen = load_panel(panel_file)
    made: list[Worker] = []

    async def go() -> Any:
        coordinator = Coordinator(chosen, out / "votes.sqlite")
        await coordinator.open()

        async def call(method: str, *arguments: Any) -> Any:
            return await getattr(coordinator, method)(*arguments)

        def worker(workers: int = 1) -> Worker:
            made.append(Worker(chosen, file, call, workers))
            return made[-1]

        try:
            return await work(coordinator, worker)
        finally:
            for one in made:
                await one.aclose()
            await coordinator.aclose()

    return anyio.run(go)


def test_a_part_is_asked_once_whoever_has_it(tmp_path: Path) -> None:
    file = pairs(tmp_path, 10)
    shards = cut_into_shards(file, 5, PairCounts())

    async def work(coordinator: Coordinator, worker: Callable[..., Worker]) -> list[ShardDone]:
        one, other = worker(), worker()
        return [await one.label(shards[0]), await other.label(shards[0]), await other.label(shards[1])]

    with ChatServer(["1", "0", "what?"]) as server:
        done = together(panel(tmp_path, server, concurrency=1), tmp_path / "out", work, file)
        assert len(server.requests) == 10
    assert [one.lines for one in done] == [5, 5, 5]
    assert [one.standings[0].asked for one in done] == [5, 0, 5]
    assert [one.standings[0].failures for one in done] == [1, 0, 0]
    # By hand: 5 x (100 x 0.15 + 2 x 0.6) millionths.
    assert done[0].standings[0].spent_usd == Decimal("0.000081")
    assert ShardDone.model_validate_json(done[0].model_dump_json()) == done[0]
    labels = Counter(vote.label for vote in read_votes(tmp_path / "out"))
    assert labels == {1: 8, 0: 1, None: 1}


def test_workers_share_one_budget(tmp_path: Path) -> None:
    file = pairs(tmp_path, 80)
    shards = cut_into_shards(file, 40, PairCounts())

    async def work(coordinator: Coordinator, worker: Callable[..., Worker]) -> list[ShardDone]:
        done: list[ShardDone] = []

        async def one(shard: Shard) -> None:
            done.append(await worker(2).label(shard))

        async with anyio.create_task_group() as group:
            for shard in shards:
                group.start_soon(one, shard)
        return done

    with ChatServer(delay_s=0.005) as server:
        done = together(panel(tmp_path, server, budget_usd=0.001), tmp_path / "out", work, file)
        asked = len(server.requests)
        assert server.most_at_once <= 4
    assert 0 < asked < 80
    assert all("raise budget_usd" in (one.standings[0].stopped or "") for one in done)
    votes = list(read_votes(tmp_path / "out"))
    assert len(votes) == asked
    assert sum(vote.cost_usd for vote in votes) <= Decimal("0.001")


def test_what_a_dead_worker_had_under_way_counts_as_spent(tmp_path: Path) -> None:
    """0.4 of 1.0 was set aside for a request nobody ends: then 0.6 fit, and 0.7 do not."""
    file = pairs(tmp_path, 1)

    async def work(coordinator: Coordinator, worker: Callable[..., Worker]) -> None:
        dead, _ = await coordinator.begin(0, [])
        await coordinator.set_aside(dead, "p", Decimal("0.4"))
        alive, _ = await coordinator.begin(0, [])
        await coordinator.settle(dead, "p", Decimal("0.4"), Decimal(0))  # too late to count
        with pytest.raises(Exception, match=r"\$0\.4 of \$1"):
            await coordinator.set_aside(alive, "p", Decimal("0.7"))
        await coordinator.set_aside(alive, "p", Decimal("0.6"))
        await coordinator.settle(alive, "p", Decimal("0.6"), Decimal("0.1"))
        await coordinator.set_aside(dead, "p", Decimal("0.5"))  # nobody waits for this any more
        await coordinator.set_aside(alive, "p", Decimal("0.5"))

    with ChatServer() as server:
        together(panel(tmp_path, server, budget_usd=1), tmp_path / "out", work, file)


def test_pairs_that_kill_workers_end_the_run(tmp_path: Path) -> None:
    async def work(coordinator: Coordinator, worker: Callable[..., Worker]) -> None:
        for _ in range(5):
            await coordinator.begin(3, [])
        with pytest.raises(DataError, match="5 workers died over part 3"):
            await coordinator.begin(3, [])

    with ChatServer() as server:
        together(panel(tmp_path, server), tmp_path / "out", work, pairs(tmp_path, 1))


def test_requests_at_once_are_divided(tmp_path: Path) -> None:
    with ChatServer() as server:
        chosen: Panel = load_panel(panel(tmp_path, server, concurrency=5))
    assert share(chosen, 2).providers["p"].concurrency == 2
    with pytest.raises(InputError, match="6 workers, but provider p is allowed 5 requests at once"):
        share(chosen, 6)


# --- Ray -------------------------------------------------------------------------------------------------------------


def command(*arguments: Any) -> list[str]:
    return [sys.executable, "-m", "prism.cli", "label", *map(str, arguments)]


def workers_of(process: int) -> list[int]:
    """Ray's labelling workers among the descendants of a process."""
    listed = subprocess.run(["ps", "-eo", "pid=,ppid=,args="], capture_output=True, text=True, check=True).stdout
    rows = [line.split(None, 2) for line in listed.splitlines()]
    family = {str(process)}
    while more := {pid for pid, parent, _ in rows if parent in family} - family:
        family |= more
    return [int(pid) for pid, _, name in rows if pid in family and name.startswith("ray::MapWorker")]


def of(out: Path) -> tuple[LabelingReport, JurorReport]:
    report = LabelingReport.model_validate_json((out / "report.json").read_text(encoding="utf-8"))
    return report, report.jurors[0]


@pytest.mark.exhaustive
def test_a_worker_is_killed_and_no_vote_is_lost_or_paid_twice(tmp_path: Path) -> None:
    pytest.importorskip("ray", reason='needs pip install "prism-reranker[scale]"')
    total, at_once = 200, 4
    file, out = pairs(tmp_path, total), tmp_path / "out"
    with ChatServer(delay_s=0.1) as server:
        chosen = panel(tmp_path, server, concurrency=at_once)
        with subprocess.Popen(
            command(chosen, file, out, "--workers", 2), cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
        ) as process:
            while len(server.requests) < total // 4 and process.poll() is None:
                time.sleep(0.01)
            found = workers_of(process.pid)
            assert len(found) == 2
            os.kill(found[0], signal.SIGKILL)
            said, _ = process.communicate()
        assert process.returncode == 0, said.decode()
        assert server.most_at_once <= at_once
        asked = server.asked()
        report, juror = of(out)
        again = subprocess.run(command(chosen, file, out), cwd=ROOT, capture_output=True, text=True, check=False)
        assert again.returncode == 0, again.stderr
        assert len(server.requests) == asked.total()
    assert len(asked) == total
    votes = Counter(vote.pair_id for vote in read_votes(out))
    assert len(votes) == total
    assert report.verdicts == {"yes": total, "no": 0, "undecided": 0}
    assert 0 < juror.in_flight <= at_once // 2  # what the dead one had under way
    assert asked.total() - total <= juror.in_flight
    assert juror.paid_usd == total * Decimal("0.0000162")


@pytest.mark.exhaustive
def test_a_run_over_workers_is_killed_and_goes_on_without_them(tmp_path: Path) -> None:
    pytest.importorskip("ray", reason='needs pip install "prism-reranker[scale]"')
    total, at_once = 100, 4
    file, out = pairs(tmp_path, total), tmp_path / "out"
    with ChatServer(delay_s=0.1) as server:
        chosen = panel(tmp_path, server, concurrency=at_once)
        with subprocess.Popen(
            command(chosen, file, out, "--workers", 2), cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        ) as process:
            while len(server.requests) < total // 4 and process.poll() is None:
                time.sleep(0.01)
            os.kill(process.pid, signal.SIGKILL)
        asked = -1
        while asked != len(server.requests):  # its workers notice
            asked = len(server.requests)
            time.sleep(3)
        assert asked < total
        done = subprocess.run(command(chosen, file, out), cwd=ROOT, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        times = server.asked()
    report, juror = of(out)
    assert report.verdicts["yes"] == total
    assert len(times) == total
    assert times.total() - total <= juror.in_flight <= at_once


@pytest.mark.exhaustive
def test_bad_input_over_workers(tmp_path: Path) -> None:
    """The same words and exit codes as without workers, and no traceback."""
    pytest.importorskip("ray", reason='needs pip install "prism-reranker[scale]"')
    (tmp_path / "votes.qrels").write_text("q 0 d1 7\n", encoding="utf-8")
    (tmp_path / "pairs.qrels").write_text("q 0 d1 0\nq 0 d2 0\n", encoding="utf-8")
    content = {"name": "p", "rubric": "binary", "jurors": [{"name": "r", "kind": "recorded", "path": "votes.qrels"}]}
    (tmp_path / "panel.yaml").write_text(yaml.safe_dump(content), encoding="utf-8")
    done = subprocess.run(
        command(tmp_path / "panel.yaml", tmp_path / "pairs.qrels", tmp_path / "out", "--workers", 2),
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2
    assert "votes.qrels:1: label 7 is none of 0, 1" in done.stderr
    assert "Traceback" not in done.stderr
