"""What a person sees while a model trains: a line for each report, and a bar with the time left on a terminal."""

from __future__ import annotations

import time
from types import TracebackType
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from transformers import TrainerCallback

from prism.training.recipe import TERMS

if TYPE_CHECKING:
    from rich.progress import TaskID


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
