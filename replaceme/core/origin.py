"""The origin that a file records of itself, so that only files of one model, text and cut are combined."""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

from replaceme.core.places import Span


@dataclass(frozen=True)
class Origin:
    """Hashes of model and tokens, what the text is, how the model ran, and the part of the work; None: not of it.

    `groups` are those of the cut, `kind` that of a regression, `shard` one of `shards` of the text.
    """

    model_sha256: str | None = None
    tokens_sha256: str | None = None
    calibration: dict[str, Any] | None = None
    dtype: str | None = None
    batch_size: int | None = None
    groups: list[Span] | None = None
    kind: str | None = None
    shard: int | None = None
    shards: int | None = None

    @property
    def content(self) -> dict[str, Any]:
        """Content for the file."""
        known = {one.name: getattr(self, one.name) for one in fields(self) if getattr(self, one.name) is not None}
        return known | ({} if self.groups is None else {"groups": [list(span) for span in self.groups]})

    @staticmethod
    def of(content: Mapping[str, Any]) -> "Origin":
        """Read the origin from a file's metadata, whatever else it holds."""
        known = {one.name: content[one.name] for one in fields(Origin) if one.name in content}
        return Origin(**known | ({"groups": [tuple(span) for span in known["groups"]]} if "groups" in known else {}))

    def is_shared_by(self, other: "Origin") -> bool:
        """Return whether all facts known here hold there too, except for the kind."""
        known = {key: value for key, value in vars(self).items() if value is not None and key != "kind"}
        return all(getattr(other, key) == value for key, value in known.items())
