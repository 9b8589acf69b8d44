"""The model card (README.md) of a pruned checkpoint, from its provenance record."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from replaceme.cuts import described, groups_of

if TYPE_CHECKING:
    from replaceme.methods import About

TEMPLATE = """---
{metadata}---
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

METHOD_TEMPLATE = """---
{metadata}---
# {source}, by {title}

Made by [ReplaceMe](https://arxiv.org/abs/2505.02819) {version} with another method, {title}
([arXiv {arxiv}](https://arxiv.org/abs/{arxiv})), for comparison: {sentence}.
{loading}

| | |
|---|---|
| source | {source} ({revision}) |
| size | that without blocks {span} |
| fit | {report} |
| versions | {versions} |

`replaceme.json` holds the SHA-256 of every file here and of every file of the source.
"""

LICENCE = ("license", "license_name", "license_link")
LOADING = "The architecture is unchanged: load it as you load the original."
# a map of the residual stream has no weight to go into, and a class of transformers would leave the layers out
LOADING_SEPARATE = """What was added is not part of the original architecture, hence the few lines of code in
`modeling_replaceme.py`: load the model with `trust_remote_code=True`, after a look at that file."""


def model_card(provenance: dict[str, Any], licence: dict[str, str]) -> str:
    """Markdown that says what was removed, how the gap was closed, and from what it was made, with the Hub's metadata.

    `licence` is what `licence_of` found of the source.
    """
    source, cut, fit = provenance["source"], provenance["cut"], provenance["fit"]
    carriers = [str(start - 1) for start, _ in groups_of(cut)]
    fitted = "and nothing was put in their place (UIDL)"
    separate, upstream = (provenance["placement"] == placement for placement in ("block", "upstream"))
    if provenance["placement"] == "collapse":
        fitted = f"and their weights were merged into those of block{'s' * (len(carriers) > 1)} {', '.join(carriers)}"
    elif provenance["placement"] is not None:
        put = "added after" if separate else "folded into all before the end of" if upstream else "folded into"
        many = len(carriers) > 1
        fitted = (
            f"and {'linear maps' if many else 'a linear map'}, fitted on {fit['tokens']} calibration tokens, "
            f"{'were' if many else 'was'} {put} block{'s' * many} {', '.join(carriers)}"
        )
    return TEMPLATE.format(
        metadata=_metadata(source, licence),
        source=source["source"],
        revision=source["revision"] or "local folder",
        removed=cut["blocks"],
        span=described(cut),
        final=cut["num_blocks"] - 1,
        version=provenance["versions"]["replaceme"],
        fit=fitted,
        loading=LOADING_SEPARATE if separate else LOADING,
        metric=cut["metric"],
        report=_listed(fit),
        versions=_listed(provenance["versions"]),
    )


def method_card(provenance: dict[str, Any], about: "About", licence: dict[str, str], code: bool) -> str:
    """The same of a checkpoint that another method made; `code`: it brings the file of code."""
    source, cut, fit = provenance["source"], provenance["cut"], provenance["fit"]
    known = {**fit, "blocks": cut["blocks"], "span": described(cut), "final": cut["num_blocks"] - 1}
    return METHOD_TEMPLATE.format(
        metadata=_metadata(source, licence),
        source=source["source"],
        revision=source["revision"] or "local folder",
        title=about.title,
        arxiv=about.arxiv,
        sentence=about.sentence.format(**known),
        version=provenance["versions"]["replaceme"],
        loading=LOADING_SEPARATE if code else LOADING,
        span=described(cut),
        report=_listed(fit),
        versions=_listed(provenance["versions"]),
    )


def licence_of(folder: str | Path) -> dict[str, str]:
    """The licence entries of a source's model card, or of its config.json; empty when neither names a licence."""
    for found in (_card_metadata(Path(folder) / "README.md"), json.loads((Path(folder) / "config.json").read_text())):
        if isinstance(found.get("license"), str):
            return {key: found[key] for key in LICENCE if isinstance(found.get(key), str)}
    return {}


def _card_metadata(path: Path) -> dict[str, Any]:
    """What stands in YAML at the top of a model card; empty when there is no card, or none that can be read."""
    import yaml
    from huggingface_hub import metadata_load

    try:
        return (metadata_load(path) if path.is_file() else None) or {}
    except (ValueError, yaml.YAMLError):
        return {}


def _metadata(source: dict[str, Any], licence: dict[str, str]) -> str:
    """The YAML that the Hub reads."""
    import yaml

    entries = {"library_name": "transformers", "pipeline_tag": "text-generation", "tags": ["pruned", "replaceme"]}
    if source["revision"]:  # the key means a Hub id, which a record with a commit comes from
        entries["base_model"] = source["source"]
    return yaml.safe_dump(entries | licence, sort_keys=False, allow_unicode=True)


def _listed(numbers: dict[str, Any]) -> str:
    """The numbers and words of a report in a line."""
    return ", ".join(f"{key} {_short(value)}" for key, value in numbers.items() if not isinstance(value, list | dict))


def _short(value: Any) -> str:
    return f"{value:.6g}" if isinstance(value, float) else str(value)
