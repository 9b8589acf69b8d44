"""What all sections of the config share."""

import re
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

# names become folders under results/: one plain path component, never a hidden or a parent folder
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*")
Name = Annotated[str, Field(pattern=rf"^{NAME.pattern}$")]


class Strict(BaseModel):
    """A section of the config that refuses unknown keys and cannot change after validation."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)
