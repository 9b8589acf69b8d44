"""Download a model of the Hub to a folder: its config, tokenizer and licence, and the weights that it loads."""

from pathlib import Path

from replaceme.core.errors import ReplaceMeError, in_one_line
from replaceme.models.trust import COMPANIONS
from replaceme.models.weights import INDEX, SINGLE, shard_names


def download(source: str, revision: str | None) -> Path:
    """Return the folder of a Hub id in the cache, named by its commit; without network, the cached one.

    Raises ReplaceMeError when it cannot be had.
    """
    # the model card is neither copied nor part of the record, but names the licence
    folder = _fetched(source, revision, ["config.json", INDEX, "README.md", *COMPANIONS])
    _fetched(source, folder.name, [SINGLE])
    if not (folder / SINGLE).is_file() and (folder / INDEX).is_file():
        _fetched(source, folder.name, shard_names(folder))
    return folder


def _fetched(source: str, revision: str | None, patterns: list[str]) -> Path:
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(source, revision=revision, allow_patterns=patterns))
    except Exception as error:  # the hub raises many types: offline, missing, gated, time-out
        raise ReplaceMeError(
            f"{source}: neither a local folder nor reachable on the Hub ({in_one_line(error)}); check the id, the "
            "revision and the network, or give a folder"
        ) from error
