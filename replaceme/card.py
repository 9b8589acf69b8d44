"""The model card (README.md) of a pruned checkpoint, from its provenance record."""

from typing import Any

from replaceme.cuts import described, groups_of

TEMPLATE = """---
library_name: transformers
tags: [pruned, replaceme]
{base_model}---
# {source}, {removed} blocks shorter

Made by [ReplaceMe](https://arxiv.org/abs/2505.02819) {version}: blocks {span} (of 0 .. {final}, ends not included) were
removed without training, {fit}.
{loading}

| | |
|---|---|
| source | {source} ({revision}) |
| cut | {span}, chosen by {metric} |
| fit | {report} |
| versions | {versions} |

`replaceme.json` holds the SHA-256 of every file here and of every file of the source.
"""

LOADING = "The architecture is unchanged: load it as you load the original."
# a map of the residual stream has no weight to go into, and a class of transformers would leave the layers out
LOADING_SEPARATE = """What was added is not part of the original architecture, hence the few lines of code in
`modeling_replaceme.py`: load the model with `trust_remote_code=True`, after a look at that file."""


def model_card(provenance: dict[str, Any]) -> str:
    """Markdown that says what was removed, how the gap was closed, and from what it was made."""
    source, cut, fit = provenance["source"], provenance["cut"], provenance["fit"]
    carriers = [str(start - 1) for start, _ in groups_of(cut)]
    fitted = "and nothing was put in their place (UIDL)"
    separate = provenance["placement"] == "block"
    if provenance["placement"] is not None:
        put = "added after" if separate else "folded into"
        many = len(carriers) > 1
        fitted = (
            f"and {'linear maps' if many else 'a linear map'}, fitted on {fit['tokens']} calibration tokens, "
            f"{'were' if many else 'was'} {put} block{'s' * many} {', '.join(carriers)}"
        )
    return TEMPLATE.format(
        # the key means a Hub id, which a record with a commit comes from
        base_model=f"base_model: {source['source']}\n" if source["revision"] else "",
        source=source["source"],
        revision=source["revision"] or "local folder",
        removed=cut["blocks"],
        span=described(cut),
        final=cut["num_blocks"] - 1,
        version=provenance["versions"]["replaceme"],
        fit=fitted,
        loading=LOADING_SEPARATE if separate else LOADING,
        metric=cut["metric"],
        report=", ".join(f"{key} {_short(value)}" for key, value in fit.items() if not isinstance(value, list)),
        versions=", ".join(f"{name} {number}" for name, number in provenance["versions"].items()),
    )


def _short(value: Any) -> str:
    return f"{value:.6g}" if isinstance(value, float) else str(value)
