"""Base of all sections of the config."""

import re
from contextlib import suppress
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationInfo, field_validator

from replaceme.core.errors import printable
from replaceme.core.validation import LONGEST_NAME

# names become folders under results/: one plain path component, never a hidden or a parent folder
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*")
Name = Annotated[str, Field(pattern=rf"^{NAME.pattern}$", max_length=LONGEST_NAME)]
LARGEST = 2**31 - 1
LONGEST_PART = 255  # bytes of a file's name
PATHS = {"source", "dataset", "images", "include", "file"}  # keys of files and folders, or of ids of the Hub
PROSE = {"caption", "title", "template"}  # keys whose text may have several lines, and letters that join others
# marks that change the direction of what follows: text that reads otherwise than it is
DIRECTIONS = re.compile(r"[\u202a-\u202e\u2066-\u2069]")


class Strict(BaseModel):
    """A section of the config that refuses unknown keys and cannot change after validation."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)

    @field_validator("*")
    @classmethod
    def _within_reason(cls, value: Any, info: ValidationInfo) -> Any:
        """Refuse text with invisible characters, paths that no disk takes, and numbers that no machine counts with."""
        for one in _scalars(value):
            if isinstance(one, int) and one > LARGEST:
                raise ValueError(f"too large a number; use at most {LARGEST}")
            if isinstance(one, str):
                _check_text(one, prose=info.field_name in PROSE)
        return expanded(value) if info.field_name in PATHS and isinstance(value, str) else value


def expanded(path: str) -> str:
    """Return a path with the home for `~` and `~name`, as in a shell; unchanged where there is no such home."""
    with suppress(RuntimeError):
        return str(Path(path).expanduser()) if path.startswith("~") else path
    return path


def strings(value: Any) -> list[str]:
    """Return the strings of a list in plain data, where a value may be anything."""
    return [one for one in value if isinstance(one, str)] if isinstance(value, list) else []


def mapping(value: Any, key: str) -> dict:
    """Return the mapping under a key of plain data, where a value may be anything."""
    found = value.get(key) if isinstance(value, dict) else None
    return found if isinstance(found, dict) else {}


def _scalars(value: Any) -> list[Any]:
    """Return the values in lists and mappings, and the keys of mappings."""
    if isinstance(value, dict):
        return [inner for pair in value.items() for part in pair for inner in _scalars(part)]
    return [inner for part in value for inner in _scalars(part)] if isinstance(value, list) else [value]


def _check_text(text: str, prose: bool) -> None:
    if prose:
        hidden = DIRECTIONS.search(text) or re.search(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff]", text)
        found = hidden[0] if hidden else ""
    else:
        found = next((character for character in text if not character.isprintable()), "")
    if found:
        raise ValueError(f"holds {printable(found)}, which cannot be seen; write it without")
    if not prose and any(len(part.encode()) > LONGEST_PART for part in text.split("/")):
        raise ValueError(
            f"too long for a file (found {text[:20]}...); use at most {LONGEST_PART} bytes between two '/'"
        )
