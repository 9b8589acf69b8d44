"""Turn the result of a method into its checkpoint, with model card and provenance record."""

from typing import TYPE_CHECKING, Any

from replaceme.core.cut_record import Cut
from replaceme.core.origin import Origin
from replaceme.methods.found import Found
from replaceme.methods.registry import METHODS, content
from replaceme.models.config_defaults import accepted
from replaceme.models.custom_code import check_architecture, original_config
from replaceme.models.model_record import ModelRecord
from replaceme.surgery.model_card import licence_of, method_card
from replaceme.surgery.write_checkpoint import provenance_of

if TYPE_CHECKING:
    from replaceme.surgery.write_checkpoint import Merger


def finish_found(merger: "Merger", record: ModelRecord, cut: Cut, found: Found, origin: Origin) -> dict[str, Any]:
    """Write the checkpoint of a method with its model card; returns the content of replaceme.json."""
    made = content(merger.checkpoint, cut, found)
    accepted(original_config(made.config), f"{merger.checkpoint.folder}, as {found.method} leaves its config.json")
    if made.code:
        check_architecture(merger.checkpoint)
    provenance = {**provenance_of(record, cut, found.report, origin), "method": found.method}
    card = method_card(provenance, METHODS[found.method], licence_of(record.folder), made.code)
    merger.write(made, provenance, card)
    return provenance
