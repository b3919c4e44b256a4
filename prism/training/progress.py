"""What a person sees of a run: lines, once however many processes train, and bars with the time left on a terminal."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from transformers import TrainerCallback

from prism.training.recipe import TERMS

if TYPE_CHECKING:
    from rich.progress import TaskID

_CONSOLE = Console(stderr=True)


def say(text: str) -> None:
    """A line of progress, once however many processes train."""
    if is_main():
        _CONSOLE.print(text, highlight=False, markup=False)


def is_main() -> bool:
    """Whether this process is the one that writes files (torchrun and accelerate number them)."""
    return os.environ.get("RANK", "0") == "0"


@contextmanager
def bar(what: str, total: int | None, console: Console = _CONSOLE) -> Iterator[Callable[[int], None]]:
    """Yields what takes "so many more are done"; nothing is shown by other processes, or where there is no terminal."""
    columns = TextColumn(what), BarColumn(), MofNCompleteColumn(), TextColumn("left"), TimeRemainingColumn()
    hidden = not (is_main() and console.is_terminal)
    with Progress(*columns, console=console, transient=True, disable=hidden) as shown:
        task = shown.add_task(what, total=total)
        yield lambda count: shown.advance(task, count)


class Reporter(TrainerCallback):  # type: ignore[misc]  # transformers' types are not followed
    """Prints figures as Trainer logs them; a context manager, so that the terminal is left in order after an error."""

    def __init__(self, console: Console) -> None:
        """`console`: where the lines go; the first process prints, the others are silent."""
        self._console = console
        self._bar = Progress(
            TextColumn("training"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            console=console,
            transient=True,
        )
        self._task: TaskID | None = None
        self._last = time.monotonic()

    def __enter__(self) -> Reporter:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._bar.stop()

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self._last = time.monotonic()
        if state.is_world_process_zero and self._console.is_terminal:
            self._task = self._bar.add_task("training", total=state.max_steps, completed=state.global_step)
            self._bar.start()

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if self._task is not None:
            self._bar.update(self._task, completed=state.global_step)

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, float] | None = None, **_: Any) -> None:
        if not state.is_world_process_zero or not logs:
            return
        now = time.monotonic()
        words = evaluated(logs) or trained(logs, now - self._last)
        if words:
            self._console.print(f"step {state.global_step}/{state.max_steps}: {words}", highlight=False, markup=False)
        if "loss" in logs:
            self._last = now


def evaluated(logs: dict[str, float]) -> str:
    """The measures of an evaluation; empty for other reports."""
    return ", ".join(f"{key.removeprefix('eval_')} {value:.4f}" for key, value in logs.items() if key[:5] == "eval_")


def trained(logs: dict[str, float], seconds: float) -> str:
    """Loss, its terms, learning rate and speed since the last report; empty for the summary at the end."""
    if "loss" not in logs:
        return ""
    shown = [f"{key} {logs[key]:.4g}" for key in ("loss", *TERMS, "grad_norm", "learning_rate") if key in logs]
    if "tokens" in logs:
        shown.append(f"{logs['tokens'] / max(seconds, 1e-9):,.0f} tokens/s")
    return ", ".join(shown)
