"""Open a quantised source, whatever it is: a checkpoint folder or a GGUF file."""

from pathlib import Path

from replaceme.models.gguf_file import open_gguf
from replaceme.models.other_formats import is_gguf
from replaceme.models.packed_folder import open_packed_folder
from replaceme.models.plain_view import PlainView


def open_packed(source: Path) -> PlainView:
    """Return the plain weights of a quantised folder or of a GGUF file, from headers.

    Raises ReplaceMeError for a source that is not quantised, for formats that are not read, and as `open_checkpoint`.
    """
    return open_gguf(source) if is_gguf(source) else open_packed_folder(source)
