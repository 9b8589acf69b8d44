"""The model card (README.md) of a pruned checkpoint, from its provenance record."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from replaceme.core.cut_record import Cut
from replaceme.core.places import amount, carrier_of, in_middle, shown
from replaceme.models.checkpoints import read_config
from replaceme.models.model_config import is_encoder
from replaceme.models.model_record import DEQUANTISED
from replaceme.placements.collapse import Collapse
from replaceme.placements.registry import PLACEMENTS

if TYPE_CHECKING:
    from replaceme.methods.registry import About

TEMPLATE = """---
{metadata}---
# {original}, {in_all} shorter

Made by [ReplaceMe](https://arxiv.org/abs/2505.02819) {version}:
blocks {span} (of 0 .. {final}, ends not included{half}) were removed without training, {fit}.
{loading}
{lineage}
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
{lineage}
| | |
|---|---|
| source | {source} ({revision}) |
| size | that without blocks {span} |
| fit | {report} |
| versions | {versions} |

`replaceme.json` holds the SHA-256 of every file here and of every file of the source.
"""

HEALED = """---
{metadata}---
# {original}, {in_all} shorter and healed

Made by [ReplaceMe](https://arxiv.org/abs/2505.02819) {version}:
blocks {span} (of 0 .. {final}, ends not included{half}) were removed, {fit}.
Then {trained}, in {steps} steps on {text}{taught}.
The architecture is unchanged: load it as you load the original.
{lineage}
| | |
|---|---|
| source | {source} ({revision}) |
| shortened | {merged} |
| training | {training} |
| versions | {versions} |

`replaceme.json` holds the SHA-256 of every file here and of every file of the shortened model.
"""

# of a source that was shortened itself
LINEAGE = """
{source} was made from {original} ({revision}) in the same way: of its blocks 0 .. {final}, {span} are gone in all.
"""
TRAINED = {
    "transform": "the linear map at each place was trained",
    "lora": "adapters were trained and merged into the weights",
    "full": "all weights were trained",
}
TAUGHT = {"text": "", "distillation": ", to predict what the source predicts"}
HALVES = ", .5: after the attention of a block and before its MLP"
USE = {"library_name": "transformers", "pipeline_tag": "feature-extraction"}
LICENCE = ("license", "license_name", "license_link")
LOADING = "The architecture is unchanged: load it as you load the original."
# a map of the residual stream has no weight to go into, and a class of transformers would leave the layers out
LOADING_SEPARATE = """Not all its layers are those of the original architecture, hence the few lines of code in
`modeling_replaceme.py`: load the model with `trust_remote_code=True`, after a look at that file."""


def model_card(provenance: dict[str, Any], licence: dict[str, str]) -> str:
    """Return markdown that says what was removed, how the gap was closed, and from what it was made, with the Hub's
    metadata.

    `licence` is the result of `licence_of` for the source, with that of `use_of`.
    """
    source, cut, fit = provenance["source"], Cut.of(provenance["cut"]), provenance["fit"]
    placed = provenance["placement"]
    separate = (placed is not None and PLACEMENTS[placed].own_code) or not cut.pairs_up
    return TEMPLATE.format(
        metadata=_metadata(_original(provenance, source), licence),
        **_named_source(source),
        **_lineage(provenance, source, cut.amount),
        span=cut.span,
        final=cut.num_blocks - 1,
        version=provenance["versions"]["replaceme"],
        half=HALVES if cut.in_middle else "",
        fit=fitted(provenance),
        loading=LOADING_SEPARATE if separate else LOADING,
        metric=cut.metric,
        report=_listed(fit),
        versions=_listed(provenance["versions"]),
    )


def method_card(provenance: dict[str, Any], about: "About", licence: dict[str, str], code: bool) -> str:
    """Return the same of a checkpoint that another method made; `code`: it brings the file of code."""
    source, cut, fit = provenance["source"], Cut.of(provenance["cut"]), provenance["fit"]
    known = {**fit, "blocks": cut.blocks, "span": cut.span, "final": cut.num_blocks - 1}
    return METHOD_TEMPLATE.format(
        metadata=_metadata(_original(provenance, source), licence),
        **_named_source(source),
        lineage=_lineage(provenance, source, cut.amount)["lineage"],
        title=about.title,
        arxiv=about.arxiv,
        sentence=about.sentence.format(**known),
        version=provenance["versions"]["replaceme"],
        loading=LOADING_SEPARATE if code else LOADING,
        span=cut.span,
        report=_listed(fit),
        versions=_listed(provenance["versions"]),
    )


def healed_card(provenance: dict[str, Any], licence: dict[str, str]) -> str:
    """Return markdown as `model_card`, of a shortened checkpoint that was trained afterwards."""
    source, cut, healing = provenance["original"], Cut.of(provenance["cut"]), provenance["healing"]
    return HEALED.format(
        metadata=_metadata(_original(provenance, source), licence),
        **_named_source(source),
        merged=provenance["source"]["source"],
        **_lineage(provenance, source, cut.amount),
        span=cut.span,
        final=cut.num_blocks - 1,
        version=provenance["versions"]["replaceme"],
        half=HALVES if cut.in_middle else "",
        fit=fitted(provenance),
        trained=TRAINED[healing["train"]],
        steps=healing["steps"],
        text=_named(provenance["origin"]["text"]),
        taught=TAUGHT[healing["objective"]],
        training=", ".join(f"{key} {_short(value)}" for key, value in healing.items()),
        versions=", ".join(f"{name} {number}" for name, number in provenance["versions"].items()),
    )


def _named_source(source: dict[str, Any]) -> dict[str, str]:
    """Return the name and version of a source; of plain weights those of the quantised ones."""
    found = source.get(DEQUANTISED, source)
    version = found["revision"] or ("local folder" if found is source else "local")
    more = "" if found is source else f"; dequantised first, from {found['format']}"
    return {"source": found["source"], "revision": version + more}


def _original(provenance: dict[str, Any], source: dict[str, Any]) -> dict[str, Any]:
    """Return the model that nothing was removed from: the source, or the one behind it."""
    return provenance.get("lineage", {}).get("original", source)


def _lineage(provenance: dict[str, Any], source: dict[str, Any], removed: str) -> dict[str, Any]:
    """Return the original's name, how much of it is gone, and a paragraph that says which, if not of the
    source.
    """
    original = _original(provenance, source)
    named = _named_source(original)
    if original is source:
        return {"original": named["source"], "in_all": removed, "lineage": ""}
    known = provenance["lineage"]
    of_original = {
        "original": named["source"],
        "revision": named["revision"],
        "final": known["num_blocks"] - 1,
        "span": shown(known["groups"]),
    }
    in_all = amount(known["groups"], known["num_blocks"])
    told = LINEAGE.format(source=_named_source(source)["source"], **of_original)
    return {"original": named["source"], "in_all": in_all, "lineage": told}


def _named(text: dict[str, Any]) -> str:
    """Return the name of a text by the record of its tokens, or of its parts."""
    return text["dataset"] if "mix" not in text else " and ".join(map(_named, text["mix"]))


def fitted(provenance: dict[str, Any]) -> str:
    """Describe what replaces the removed blocks."""
    cut, fit, placement = Cut.of(provenance["cut"]), provenance["fit"], provenance["placement"]
    if placement is None:
        return "and nothing was put in their place (UIDL)"
    many = len(cut.groups) > 1
    numbers = [str(carrier_of(start)) for start, _ in cut.groups if not in_middle(start)]
    halves = [f"the attention of block {carrier_of(start)}" for start, _ in cut.groups if in_middle(start)]
    whole = [f"block{'s' * (len(numbers) > 1)} {', '.join(numbers)}"] if numbers else []
    blocks = " and ".join([*whole, *halves])
    if placement == Collapse.name:
        return f"and their weights were merged into those of {blocks}"
    return (
        f"and {'linear maps' if many else 'a linear map'}, fitted on {fit['tokens']} calibration tokens, "
        f"{'were' if many else 'was'} {PLACEMENTS[placement].put} {blocks}"
    )


def licence_of(folder: str | Path) -> dict[str, str]:
    """Return the licence entries of a source's model card, or of its config.json; empty when neither names a
    licence.
    """
    for found in (_card_metadata(Path(folder) / "README.md"), json.loads((Path(folder) / "config.json").read_text())):
        if isinstance(found.get("license"), str):
            return {key: found[key] for key in LICENCE if isinstance(found.get(key), str)}
    return {}


def use_of(folder: str | Path) -> dict[str, str]:
    """Return what an encoder is for, and by which library, as its source's model card says; empty for other models."""
    if not is_encoder(read_config(folder)):
        return {}
    card = _card_metadata(Path(folder) / "README.md")
    return USE | {key: card[key] for key in USE if isinstance(card.get(key), str)}


def _card_metadata(path: Path) -> dict[str, Any]:
    """Read the YAML at the top of a model card; empty when there is no card, or none that can be read."""
    import yaml
    from huggingface_hub import metadata_load

    try:
        return (metadata_load(path) if path.is_file() else None) or {}
    except (ValueError, RecursionError, yaml.YAMLError):
        return {}


def _metadata(source: dict[str, Any], licence: dict[str, str]) -> str:
    """Return the YAML that the Hub reads."""
    import yaml

    entries = {"library_name": "transformers", "pipeline_tag": "text-generation", "tags": ["pruned", "replaceme"]}
    named = source.get(DEQUANTISED, source)
    if named["revision"]:  # the key means a Hub id, which a record with a commit comes from
        entries["base_model"] = named["source"]
    return yaml.safe_dump(entries | licence, sort_keys=False, allow_unicode=True)


def _listed(numbers: dict[str, Any]) -> str:
    """Return the numbers and words of a report in a line."""
    return ", ".join(f"{key} {_short(value)}" for key, value in numbers.items() if not isinstance(value, list | dict))


def _short(value: Any) -> str:
    return f"{value:.6g}" if isinstance(value, float) else str(value)
