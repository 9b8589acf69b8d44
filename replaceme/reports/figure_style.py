"""The look of all figures: colours, markers, words for measures, axes.

Drawn without a display; the same input gives the same bytes. Colour-blind readers can distinguish the colours, which
never carry a meaning alone.
"""

import contextlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from replaceme.config.metrics import labels
from replaceme.core.errors import ReplaceMeError
from replaceme.core.files import replacing

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Okabe and Ito
COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
MARKERS = ("o", "s", "^", "D", "v", "<", ">")  # that error bars do not hide
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
NAMES = labels()
MEASURES = {
    "average * 100": "average accuracy (%)",
    "average": "average accuracy",
    "rp": "relative performance (%)",
    "perplexity": "perplexity",
    "kl": NAMES["kl"],
    "text_perplexity": "perplexity of unseen text",
    "residual": NAMES["residual"],
    "average_vs_identity * 100": "points of accuracy above dropping",
    "log_perplexity_vs_identity": "log perplexity above that of dropping",
    "parameters": "parameters",
    "file_bytes": "size on disk (bytes)",
    "cache_bytes_per_token": "cache of a token (bytes)",
    "prefill_tokens_per_s": "prefill (tokens/s)",
    "decode_tokens_per_s": "decoding (tokens/s)",
    "latency_s": "latency (s)",
    "peak_memory_bytes": "peak memory (bytes)",
    "seconds": "time (s)",
    "cpu_seconds": "CPU time (s)",
    "memory_bytes": "memory of the jobs (bytes)",
    "gpu_memory_bytes": "GPU memory of the jobs (bytes)",
    "energy_kwh": "energy (kWh)",
    "emissions_kg": "emissions (kg CO2e)",
}
PLACES = {"all": "all tokens", "last": "last token"}


@contextlib.contextmanager
def figure_in_style(out: str | Path, width: float, height: float, title: str, caption: str = "") -> Iterator["Figure"]:
    """Give a figure in this module's style, saved atomically to `out` (.svg or .png) at the end of the block.

    The caption goes into an .svg as its description, for those who cannot see it.
    """
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
        words = {name: text for name, text in (("Title", title), ("Description", caption)) if text}
        about = {"Date": None, **words} if kind == "svg" else None
        with replacing(out) as temporary:
            figure.savefig(temporary, format=kind, dpi=160, metadata=about)


def legend_outside(axes: "Axes") -> None:
    """Put a legend to the right of the axes, where it hides no data."""
    axes.legend(fontsize=8, loc="upper left", bbox_to_anchor=(1.0, 1.0))


def log_scale(axes: "Axes", which: str = "y", ticks: Sequence[float] = ()) -> None:
    """Make an axis logarithmic, with plain numbers at 1, 2 and 5 times the powers of ten where it spans less than
    three, and two if it is horizontal.

    `ticks`: at these numbers instead.
    """
    from matplotlib.ticker import FixedLocator, FuncFormatter, LogLocator, NullFormatter, NullLocator

    axes.set(**{f"{which}scale": "log"})
    axis = getattr(axes, f"{which}axis")
    low, high = axis.get_view_interval()
    wide = high / low > 1000
    sparse = wide or (which == "x" and high / low > 100)
    between = (1.0,) if sparse else (1.0, 2.0, 5.0) if high / low > 20 else (1.0, 1.5, 2.0, 3.0, 5.0, 7.0)
    axis.set_major_locator(FixedLocator(ticks) if ticks else LogLocator(subs=between))
    if ticks:
        axis.set_minor_locator(NullLocator())
    if ticks or not wide:
        axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axis.set_minor_formatter(NullFormatter())


def whole_numbers(axes: "Axes", y: bool = True) -> None:
    """Put ticks at whole numbers only."""
    from matplotlib.ticker import MaxNLocator

    axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=13))
    if y:
        axes.yaxis.set_major_locator(MaxNLocator(integer=True, nbins=13))
