"""Read .csv files of tables and of costs: names stay text, even `007`, `null` or `1e5`."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from replaceme.config.tables import KEYS, SECTIONS
from replaceme.core.errors import ReplaceMeError
from replaceme.core.files import note_read

if TYPE_CHECKING:
    import pandas

NAMES = KEYS[: len(SECTIONS)]


def read_csv(path: str | Path, names: Sequence[str] = NAMES) -> "pandas.DataFrame":
    """Read a .csv file whose columns `names` are text, missing where empty; raises ReplaceMeError when there is no
    file.
    """
    import pandas

    if not Path(path).is_file():
        raise ReplaceMeError(f"{path}: no such file; it is the .csv of a table, of costs or of published values")
    note_read(path)
    frame = pandas.read_csv(path)
    text = pandas.read_csv(path, usecols=lambda name: name in names, dtype=str, keep_default_na=False, na_values=[""])
    return frame.assign(**{name: text[name] for name in text})
