"""The model card (README.md) of a pruned checkpoint, from its provenance record."""

from typing import Any

TEMPLATE = """---
library_name: transformers
tags: [pruned, replaceme]
{base_model}---
# {source}, {removed} blocks shorter

Made by [ReplaceMe](https://arxiv.org/abs/2505.02819) {version}: blocks {first} to {last} (of 0 .. {final}) were removed
without training, {fit}. The architecture is unchanged: load it as you load the original.

| | |
|---|---|
| source | {source} ({revision}) |
| cut | [{start}, {end}), carrier block {carrier}, chosen by {metric} |
| fit | {report} |
| versions | {versions} |

`replaceme.json` holds the SHA-256 of every file here and of every file of the source.
"""


def model_card(provenance: dict[str, Any]) -> str:
    """Markdown that says what was removed, how the gap was closed, and from what it was made."""
    source, cut, fit = provenance["source"], provenance["cut"], provenance["fit"]
    fitted = "and nothing was put in their place (UIDL)"
    if fit["solver"] != "identity":
        fitted = (
            f"and a linear map, fitted on {fit['tokens']} calibration tokens, was folded into block {cut['carrier']}"
        )
    return TEMPLATE.format(
        # the key means a Hub id, which a record with a commit comes from
        base_model=f"base_model: {source['source']}\n" if source["revision"] else "",
        source=source["source"],
        revision=source["revision"] or "local folder",
        removed=cut["blocks"],
        first=cut["start"],
        last=cut["end"] - 1,
        final=cut["num_blocks"] - 1,
        version=provenance["versions"]["replaceme"],
        fit=fitted,
        start=cut["start"],
        end=cut["end"],
        carrier=cut["carrier"],
        metric=cut["metric"],
        report=", ".join(f"{key} {_short(value)}" for key, value in fit.items()),
        versions=", ".join(f"{name} {number}" for name, number in provenance["versions"].items()),
    )


def _short(value: Any) -> str:
    return f"{value:.6g}" if isinstance(value, float) else str(value)
