"""A labelling run spread over Ray workers: for millions of pairs, and for models that want a GPU each.

    pairs file, cut into shards -> Ray Data -> workers (read a shard, ask its jurors)
                                                    |  what is known? may I? here is a vote
                                                 coordinator -> votes.sqlite -> labels.jsonl, report.json

The coordinator runs beside the votes file and is the only one to write it; workers may run on other machines and may
die. Pairs must lie where every worker can read them, and keys are read from the environment of the workers.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from prism.errors import DataError, PrismError
from prism.labeling.coordinator import Call, Coordinator
from prism.labeling.label_pairs import count_lines
from prism.labeling.panel import Panel, RecordedJuror
from prism.labeling.reports import LabelingReport
from prism.labeling.run import OnBadLine, Progress, conclude, open_store, refuse_bad_lines, standings
from prism.labeling.shards import Shard, cut_into_shards
from prism.labeling.voting import PairCounts, RunState
from prism.labeling.worker import ShardDone, Worker, share

_OBJECT_STORE_BYTES = 100 * 2**20
"""All that goes through Ray is where shards begin and how they went."""
_QUIET = {"RAY_USAGE_STATS_ENABLED": "0", "RAY_DATA_LOG_LEVEL": "ERROR", "RAY_BACKEND_LOG_LEVEL": "fatal"}
"""Ray reports nothing to its makers, and leaves the terminal to our own progress; set a variable to have it back."""
_MOST_LINES = 1024
"""Of a shard: what a dead worker's successor goes through again."""


def label_over_workers(
    panel: Panel,
    pairs: Path,
    out: Path,
    workers: int,
    *,
    gpus: float = 0.0,
    on_bad_line: OnBadLine = "stop",
    retry_failures: bool = False,
    limit: int | None = None,
    progress: Progress = lambda _: None,
) -> LabelingReport:
    """As `prism.labeling.run.label`, over `workers` processes on this machine or the cluster that RAY_ADDRESS names.

    `gpus`: how many each worker gets. What the report says was missed or stopped leaves out what a worker had found
    out about a shard when it died. Ctrl-C ends at once. Raises InputError, PanelError or DataError.
    """
    share(panel, workers)
    if on_bad_line == "stop":
        refuse_bad_lines(pairs)
    with open_store(panel, out) as store:
        counts = PairCounts()
        shards = cut_into_shards(pairs, _lines_a_shard(count_lines(pairs), workers), counts, limit)
        state = RunState(counts, standings(panel, store), store)
        with _cluster(workers), _coordinator(panel, store.path, retry_failures) as coordinator:
            for done in _work(_absolute(panel), pairs.absolute(), shards, coordinator, workers, gpus):
                _merge(state, done)
                progress(state)
        return conclude(panel, pairs, out, state, limit=limit, interrupted=False)


def _lines_a_shard(lines: int, workers: int) -> int:
    """Enough shards that workers finish together, few enough that starting them costs nothing."""
    return min(_MOST_LINES, max(1, lines // (8 * workers)))


def _absolute(panel: Panel) -> Panel:
    """Workers may have another working directory."""
    jurors = (
        juror.model_copy(update={"path": juror.path.absolute()}) if isinstance(juror, RecordedJuror) else juror
        for juror in panel.jurors
    )
    return panel.model_copy(update={"jurors": tuple(jurors)})


@contextlib.contextmanager
def _cluster(workers: int) -> Iterator[None]:
    """Ray: the one this process is connected to, that of RAY_ADDRESS, or one of our own for as long as it takes."""
    for name, value in _QUIET.items():
        os.environ.setdefault(name, value)
    import ray

    if ray.is_initialized():
        yield
        return
    own: dict[str, Any] = {}
    if not os.environ.get("RAY_ADDRESS"):
        own = {
            "num_cpus": max(workers, os.cpu_count() or 1),
            "object_store_memory": _OBJECT_STORE_BYTES,
            "include_dashboard": False,
        }
    ray.init(**own, log_to_driver=False, logging_level=logging.ERROR)
    try:
        yield
    finally:
        ray.shutdown()


@contextlib.contextmanager
def _coordinator(panel: Panel, votes: Path, retry_failures: bool) -> Iterator[Any]:
    """The coordinator, on this machine. At the end all it was told is written."""
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    options = {"num_cpus": 0, "max_concurrency": 10_000, "scheduling_strategy": here}
    coordinator = ray.remote(Coordinator).options(**options).remote(panel, votes.absolute(), retry_failures)
    ray.get(coordinator.open.remote())
    yield coordinator
    ray.get(coordinator.aclose.remote())


def _work(
    panel: Panel, pairs: Path, shards: Sequence[Shard], coordinator: Any, workers: int, gpus: float
) -> Iterator[ShardDone]:
    """Each shard once it is done. Raises PrismError when a worker cannot go on."""
    import ray.data

    if not shards:
        return
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    rows = [{"shard": shard.model_dump_json()} for shard in shards]
    done = ray.data.from_items(rows, override_num_blocks=len(rows)).map_batches(
        _Labels,
        fn_constructor_args=(panel, pairs, coordinator, workers),
        batch_size=1,
        compute=ray.data.ActorPoolStrategy(size=min(workers, len(shards))),
        num_cpus=1,
        num_gpus=gpus,
    )
    for row in done.iter_rows():
        found = ShardDone.model_validate_json(row["done"])
        if found.error:
            raise PrismError(found.error)
        yield found


class _Labels:
    """A worker, as Ray Data calls it."""

    def __init__(self, panel: Panel, pairs: Path, coordinator: Any, workers: int) -> None:
        self._worker = Worker(panel, pairs, _calls(coordinator), workers)
        self._runner = asyncio.Runner()

    def __call__(self, batch: dict[str, Any]) -> dict[str, list[str]]:
        shard = Shard.model_validate_json(batch["shard"][0])
        try:
            done = self._runner.run(self._worker.label(shard))
        except PrismError as error:  # Ray would wrap it into a traceback
            done = ShardDone(lines=0, error=str(error))
        return {"done": [done.model_dump_json()]}


def _calls(coordinator: Any) -> Call:
    async def call(method: str, *arguments: Any) -> Any:
        from ray.exceptions import RayActorError, RayTaskError

        try:
            return await getattr(coordinator, method).remote(*arguments)
        except RayTaskError as error:
            if isinstance(error.cause, PrismError):
                raise error.cause from None
            raise
        except RayActorError as error:
            raise DataError(f"the process that keeps the votes is gone: run the same command again ({error})") from None

    return call


def _merge(state: RunState, done: ShardDone) -> None:
    state.counts.finished += done.lines
    state.counts.not_asked += done.not_asked
    for new in done.standings:
        standing = state.standings[new.name]
        standing.asked += new.asked
        standing.failures += new.failures
        standing.missed += new.missed
        standing.last_missed = new.last_missed or standing.last_missed
        standing.spent_usd += new.spent_usd
        standing.stopped = standing.stopped or new.stopped
