"""How all figures look: colours, markers, words for measures, axes.

Drawn without a display; the same input gives the same bytes. Colours can be told apart by colour-blind readers, and
never carry a meaning alone.
"""

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from replaceme.errors import ReplaceMeError
from replaceme.files import replacing

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Okabe and Ito
COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
DASHES = ("-", (0, (5, 2)), (0, (1, 1.5)), (0, (5, 1.5, 1, 1.5)))
STYLE = {
    "font.size": 9,
    "axes.titlesize": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "#dddddd",
    "grid.linewidth": 0.6,
    "axes.axisbelow": True,
    "legend.frameon": True,
    "legend.edgecolor": "none",
    "legend.framealpha": 0.85,
    "figure.constrained_layout.use": True,
    "savefig.facecolor": "white",
    "svg.hashsalt": "replaceme",
}
NAMES = {
    "cosine": "cosine distance (1 − cos)",
    "angular": "angular distance (arccos(cos) / π)",
    "l2": "L2 distance",
    "bi": "sum of block influences (1 − cos)",
    "cka": "1 − linear CKA",
    "cca": "1 − mean canonical correlation",
    "residual": "residual of the fit (share of energy)",
    "residual_identity": "residual of the identity (share of energy)",
    "cosine_after_fit": "cosine distance after the fit (1 − cos)",
    "loss": "rise of the language-model loss (nats per token)",
}
PLACES = {"all": "all tokens", "last": "last token"}


@contextlib.contextmanager
def figure_in_style(out: str | Path, width: float, height: float, title: str) -> Iterator["Figure"]:
    """A figure in this module's style, saved atomically to `out` (.svg or .png) at the end of the block."""
    import matplotlib
    from matplotlib.figure import Figure

    kind = Path(out).suffix.removeprefix(".")
    if kind not in ("svg", "png"):
        raise ReplaceMeError(f"{out}: figures are written as .svg or .png")
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(width, height))
        if title:
            figure.suptitle(title)
        yield figure
        with replacing(out) as temporary:
            figure.savefig(temporary, format=kind, dpi=160, metadata={"Date": None} if kind == "svg" else None)


def legend_outside(axes: "Axes") -> None:
    """A legend to the right of the axes, where it hides no data."""
    axes.legend(fontsize=8, loc="upper left", bbox_to_anchor=(1.0, 1.0))


def log_scale(axes: "Axes") -> None:
    """A logarithmic y axis with plain numbers at 1, 2 and 5 times the powers of ten where it spans less than three."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    axes.set_yscale("log")
    low, high = axes.get_ylim()
    wide = high / low > 1000
    axes.yaxis.set_major_locator(LogLocator(subs=(1.0,) if wide else (1.0, 1.5, 2.0, 3.0, 5.0, 7.0)))
    if not wide:
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axes.yaxis.set_minor_formatter(NullFormatter())


def whole_numbers(axes: "Axes", y: bool = True) -> None:
    """Ticks at whole numbers only."""
    from matplotlib.ticker import MaxNLocator

    axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=13))
    if y:
        axes.yaxis.set_major_locator(MaxNLocator(integer=True, nbins=13))
