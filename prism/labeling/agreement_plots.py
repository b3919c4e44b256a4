"""Pictures of agreement: a heat map of kappas and the confusion matrices. Needs matplotlib; draws without a display."""

from __future__ import annotations

import math
import warnings
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from prism.errors import InputError
from prism.labeling.comparison import Agreement
from prism.text import printable

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


def save(agreement: Agreement, folder: Path) -> list[Path]:
    """Write `kappa.png` and `confusion.png`; the folder is made. Raises InputError where it cannot be."""
    from matplotlib.figure import Figure

    paths = []
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing", category=UserWarning)  # shown as boxes
        for stem, draw, size in (
            ("kappa", draw_kappas, kappa_size(agreement)),
            ("confusion", draw_confusions, confusion_size(agreement)),
        ):
            figure = Figure(figsize=size, layout="constrained")
            draw(figure, agreement)
            paths.append(folder / f"{stem}.png")
            try:
                folder.mkdir(parents=True, exist_ok=True)
                figure.savefig(paths[-1], dpi=150)
            except OSError as error:
                raise InputError(f"cannot write {paths[-1]}: {error.strerror}: choose another folder") from error
    return paths


def kappa_size(agreement: Agreement) -> tuple[float, float]:
    """Inches that leave room for every number."""
    inches = 2.5 + 0.55 * len(agreement.names)
    return inches + 0.8, inches


def draw_kappas(figure: Figure, agreement: Agreement) -> None:
    """Nominal kappa of every two judges as a heat map; undefined ones are left grey."""
    size = len(agreement.names)
    axes = figure.subplots()
    matrix = np.array([[math.nan if k is None else k for k in row] for row in agreement.kappa_matrix])
    np.fill_diagonal(matrix, math.nan)
    axes.set_facecolor("0.6")
    low = min(0.0, float(np.nanmin(matrix, initial=0.0)))
    image = axes.imshow(matrix, cmap="cividis", vmin=low, vmax=max(0.01, float(np.nanmax(matrix, initial=0.01))))
    middle = sum(image.get_clim()) / 2
    for row, column in np.ndindex(matrix.shape):
        value = matrix[row, column]
        if not math.isnan(value):
            axes.text(column, row, f"{value:.2f}", ha="center", va="center", size=7, color=_ink(bool(value < middle)))
    names = [_plain(name) for name in agreement.names]
    axes.set_xticks(range(size), names, rotation=60, ha="right", rotation_mode="anchor", size=8)
    axes.set_yticks(range(size), names, size=8)
    axes.set_title(f"Cohen's kappa, {len(agreement.labels)} labels", size=10)
    figure.colorbar(image, ax=axes, shrink=0.8)


def _grid(agreement: Agreement) -> tuple[int, int]:
    """(rows, columns) of confusion matrices."""
    columns = min(4, max(1, len(agreement.compared)))
    return max(1, math.ceil(len(agreement.compared) / columns)), columns


def confusion_size(agreement: Agreement) -> tuple[float, float]:
    """Inches for a matrix a judge."""
    rows, columns = _grid(agreement)
    return 0.6 + 2.4 * columns, 0.4 + 2.6 * rows


def draw_confusions(figure: Figure, agreement: Agreement) -> None:
    """One confusion matrix a judge: rows are the reference's labels, shaded by the share of the row."""
    rows, columns = _grid(agreement)
    for index, axes in enumerate(figure.subplots(rows, columns, squeeze=False).flat):
        if index < len(agreement.compared):
            _confusion(axes, agreement, index)
        else:
            axes.set_axis_off()
    figure.supxlabel("label of the judge", size=9)
    figure.supylabel(f"label of {_plain(agreement.reference)}", size=9)


def _confusion(axes: Axes, agreement: Agreement, index: int) -> None:
    judged = agreement.compared[index]
    counts = np.array(judged.confusion, dtype=float)
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    for row, column in np.ndindex(counts.shape):
        colour = _ink(bool(shares[row, column] > 0.5))
        axes.text(column, row, f"{counts[row, column]:.0f}", ha="center", va="center", size=7, color=colour)
    ticks = [str(label) for label in agreement.labels]
    axes.set_xticks(range(len(ticks)), ticks, size=7)
    axes.set_yticks(range(len(ticks)), ticks, size=7)
    kappa = "undefined" if judged.kappa.value is None else f"{judged.kappa.value:.3f}"
    axes.set_title(f"{_plain(judged.name)}\nkappa {kappa}", size=8)


def _ink(on_dark: bool) -> str:
    return "white" if on_dark else "black"


def _plain(name: str) -> str:
    """Names are file names, which may hold anything: nothing steers, `$` starts no formula, and they fit."""
    text = " ".join(printable(name).split())
    return (text if len(text) <= 32 else text[:31] + "…").replace("$", r"\$")
