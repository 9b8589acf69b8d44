"""Draw docs/method/shortening.svg, the idea of the method: `python docs/method/draw.py`."""

from pathlib import Path

import matplotlib

matplotlib.use("svg")
matplotlib.rcParams["svg.hashsalt"] = "shortening"
matplotlib.rcParams["svg.fonttype"] = "none"

from matplotlib import pyplot  # noqa: E402
from matplotlib.axes import Axes  # noqa: E402
from matplotlib.patches import FancyBboxPatch  # noqa: E402

KEPT, CARRIER, REMOVED = "#d9e6f2", "#f6c88f", "#f2f2f2"
WIDTH, STEP = 1.25, 1.6


def box(axes: Axes, column: float, y: float, text: str, colour: str, dashed: bool = False) -> None:
    """Draw a block, with dashed edges where it is removed."""
    style = {"linestyle": "--", "edgecolor": "#999999"} if dashed else {"edgecolor": "#444444"}
    axes.add_patch(FancyBboxPatch((column * STEP, y), WIDTH, 0.9, boxstyle="round,pad=0.04", facecolor=colour, **style))
    shade = "#777777" if dashed else "black"
    axes.text(column * STEP + WIDTH / 2, y + 0.45, text, ha="center", va="center", fontsize=9, color=shade)


def arrow(axes: Axes, start: float, end: float, y: float) -> None:
    """Draw the residual stream from one column to another."""
    ends = {"xy": (end * STEP - 0.05, y), "xytext": (start * STEP + WIDTH + 0.05, y)}
    axes.annotate("", **ends, arrowprops={"arrowstyle": "->", "color": "#444444"})


def note(axes: Axes, column: float, y: float, text: str) -> None:
    """Write a line under a block."""
    axes.text(column * STEP + WIDTH / 2, y, text, ha="center", va="top", fontsize=8.5)


def draw(out: Path) -> None:
    """Draw the original model, the fit and the shortened model, one under the other."""
    figure, axes = pyplot.subplots(figsize=(9.2, 4.3), layout="constrained")
    names = ("block 0", "...", "carrier\nstart-1", "start", "...", "end-1", "block\nend", "...", "head")
    colours = (KEPT, KEPT, CARRIER, REMOVED, REMOVED, REMOVED, KEPT, KEPT, KEPT)
    for column, (name, colour) in enumerate(zip(names, colours, strict=True)):
        box(axes, column, 3.2, name, colour, dashed=colour == REMOVED)
        if column:
            arrow(axes, column - 1, column, 3.65)
    note(axes, 2, 3.08, "M: output of its MLP")
    note(axes, 5, 3.08, "hidden_states[end-1]")
    fit = "fit on calibration text:   M T ≈ R = hidden_states[end-1] − hidden_states[start-1] + M"
    axes.text(4 * STEP + WIDTH / 2, 2.4, fit, ha="center", va="center", fontsize=10)
    for column, name in enumerate(("block 0", "...", "carrier\nstart-1", "block\nend", "...", "head")):
        shifted = column if column < 3 else column + 3
        box(axes, shifted, 0.5, name, CARRIER if column == 2 else KEPT)
        if column:
            arrow(axes, column - 1 if column < 4 else shifted - 1, shifted, 0.95)
    note(axes, 2, 0.38, r"its down projection W becomes $T^T W$")
    axes.text(-0.1, 4.45, "original model", fontsize=10, weight="bold")
    axes.text(-0.1, 1.66, "shortened model: same architecture, fewer blocks, no new weight", fontsize=10, weight="bold")
    axes.set_xlim(-0.2, 9 * STEP)
    axes.set_ylim(0, 4.75)
    axes.axis("off")
    figure.savefig(out, metadata={"Date": None})


if __name__ == "__main__":
    draw(Path(__file__).with_name("shortening.svg"))
