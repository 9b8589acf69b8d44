"""The metrics by which a cut can be chosen, each one entry: its label in figures, its words in the docs, its function.

To add one, write the function in a file of `cuts/` and enter its full name here, under what it is given and returns. It
is imported when the metric is measured (`import_named`), so config.yaml is read without torch.
"""

from dataclasses import dataclass, field


@dataclass(frozen=True)
class Metric:
    """The facts of a metric that need no measurement; the least value is the best, whatever the metric.

    `label`: on the axes of figures, with its unit. `function`: the full name of the function that measures it; metrics
    of one function come together. `about`: the text beside its name in the docs. `beside`: labels of further measures
    of the function. `adds_up`: whether values of several runs of blocks may be added. `with_head`: whether the model
    runs with its head. `tells_position`: whether tables say over which tokens it was averaged. `search`: the only one
    that it is for.
    """

    label: str
    function: str
    about: str = ""
    beside: dict[str, str] = field(default_factory=dict)
    adds_up: bool = True
    with_head: bool = False
    tells_position: bool = False
    search: str | None = None


# (states [tokens, hidden] of each block, flags [tokens]) -> {metric: mean over the flagged tokens, [blocks, blocks]}
DISTANCES = {
    "cosine": Metric("cosine distance (1 − cos)", "replaceme.cuts.distances.angles", "the paper", tells_position=True),
    "angular": Metric(
        "angular distance (arccos(cos) / π)", "replaceme.cuts.distances.angles", "the paper", tells_position=True
    ),
    "l2": Metric("L2 distance", "replaceme.cuts.distances.lengths"),
}
# {metric of DISTANCES: matrix over some tokens} -> matrix
INFLUENCES = {
    "bi": Metric(
        "sum of block influences (1 − cos)", "replaceme.cuts.distances.influences", "ShortGPT's block influences"
    ),
}
# centred states [tokens, hidden] of each block -> matrix, or None where the tokens are too few
REPRESENTATIONS = {
    "cka": Metric("1 − linear CKA", "replaceme.cuts.similarity.cka", "of representations"),
    "cca": Metric("1 − mean canonical correlation", "replaceme.cuts.similarity.cca", "of representations"),
}
# `after_fit.Fitted` -> for each candidate its value and those beside it, by name
AFTER_FIT = {
    "residual": Metric(
        "residual of the fit (share of energy)",
        "replaceme.cuts.after_fit.residuals",
        beside={"residual_identity": "residual of the identity (share of energy)"},
    ),
    "cosine_after_fit": Metric("cosine distance after the fit (1 − cos)", "replaceme.cuts.after_fit.cosine_distances"),
    "loss": Metric(
        "rise of the language-model loss (nats per token)",
        "replaceme.cuts.after_fit.predictions",
        "the rise of the language-model loss on calibration text held out",
        with_head=True,
    ),
    "kl": Metric(
        "KL divergence from the whole model (nats per token)",
        "replaceme.cuts.after_fit.predictions",
        "of next-token distributions, whole model against shortened, on the same text",
        with_head=True,
    ),
}
# (model, family, tokens, batch size) -> `without_fit.Measure`
WITHOUT_FIT = {
    "perplexity": Metric(
        "perplexity without the blocks",
        "replaceme.cuts.without_fit.perplexities",
        "of the model without the blocks: Shortened LLaMA",
        adds_up=False,
        with_head=True,
    ),
    "taylor": Metric(
        "Taylor score of the blocks (nats per token)",
        "replaceme.cuts.without_fit.taylor_sums",
        "the sum of |w dL/dw| over their weights: Shortened LLaMA",
        with_head=True,
    ),
}
# (cut, record, blocks, model, family, tokens, batch size) -> the candidates of a search of its own
OF_SEARCHES = {
    "output": Metric(
        "cosine distance of the output (1 − cos)",
        "replaceme.cuts.laco_search.merging_candidates",
        "the cosine distance of the last states of the merged model to the original's: LaCo",
        with_head=True,
        search="merging",
    ),
    "kl_without": Metric(
        "KL divergence without the sublayers (nats per token)",
        "replaceme.cuts.sublayers.sublayer_candidates",
        "of next-token distributions, whole model against that without single attentions and MLPs",
        with_head=True,
        search="sublayers",
    ),
}


def middle(name: str) -> str:
    """Return the name of the matrix `metric_position` over the states in the middle of blocks."""
    return f"middle_{name}"


def by_position() -> dict[str, Metric]:
    """Return the distances that are averaged over all tokens or over the last ones."""
    return {**DISTANCES, **INFLUENCES}


def of_pairs() -> dict[str, Metric]:
    """Return the metrics that a file of distances holds."""
    return {**by_position(), **REPRESENTATIONS}


def of_candidates() -> dict[str, Metric]:
    """Return the metrics that are measured for each candidate by itself."""
    return {**AFTER_FIT, **WITHOUT_FIT, **OF_SEARCHES}


def every_metric() -> dict[str, Metric]:
    """Return all metrics by name."""
    return {**of_pairs(), **of_candidates()}


def labels() -> dict[str, str]:
    """Return the label of every metric and of what is measured beside it."""
    return {name: text for key, one in every_metric().items() for name, text in {key: one.label, **one.beside}.items()}


def described() -> str:
    """Return the description of the option that names a metric, for the docs."""
    kinds = {
        "A distance of hidden states before and after": of_pairs(),
        "The error left after the least-squares fit of every candidate": AFTER_FIT,
        "Without any fit": {**WITHOUT_FIT, **OF_SEARCHES},
    }
    listed = [
        f"{kind}: {', '.join(_worded(name, one) for name, one in found.items())}" for kind, found in kinds.items()
    ]
    return f"The choice minimises one of these. {'. '.join(listed)}."


def _worded(name: str, metric: Metric) -> str:
    return f"{name} ({metric.about})" if metric.about else name
