"""Read a checkpoint's generation_config.json: only its special tokens count, other settings are for its users.

`generate` of transformers adds a model's own settings to those that it is called with, so that penalties, beams or
forced tokens would be in answers that should be the likeliest tokens, or drawn from the model itself.
"""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from replaceme.core.errors import ReplaceMeError, in_one_line
from replaceme.core.files import read_json
from replaceme.models.checkpoints import read_config

if TYPE_CHECKING:
    from transformers import GenerationConfig

FILE = "generation_config.json"
TOKENS = ("bos_token_id", "eos_token_id", "pad_token_id")


def special_tokens(folder: str | Path) -> "GenerationConfig":
    """Return the generation settings of a language model: transformers' defaults with the special tokens of the folder.

    Raises ReplaceMeError where transformers would not load the model with the file as it is.
    """
    from transformers import GenerationConfig

    path = Path(folder) / FILE
    if not path.is_file():
        given = read_config(folder)
    else:
        given = read_json(path, "download or copy it again")
        try:
            GenerationConfig.from_pretrained(folder, local_files_only=True)
        except Exception as error:  # of several types, for whatever stands in the file
            raise ReplaceMeError(
                f"{path}: transformers does not load a model with it ({in_one_line(error)}); correct or remove the "
                "entry"
            ) from error
    return GenerationConfig(**{key: _token(given.get(key), f"{path.parent}: `{key}`") for key in TOKENS})


def _token(value: Any, where: str) -> int | list[int] | None:
    listed = value if isinstance(value, list) else [value]
    if value is not None and not all(isinstance(one, int) and not isinstance(one, bool) for one in listed):
        raise ReplaceMeError(f"{where} is no number of a token; take the files that belong to the weights")
    return value
