"""Ask the Hub about a model or a data set before it is downloaded: existence, access, revision, size."""

from dataclasses import dataclass
from functools import cache
from itertools import islice
from pathlib import Path
from typing import Any

from replaceme.core.errors import ReplaceMeError, in_one_line
from replaceme.core.text_files import read_lines
from replaceme.dequantising.described import KEY, check_read
from replaceme.models.checkpoints import read_config
from replaceme.models.language_model import check_beside
from replaceme.models.model_config import is_encoder
from replaceme.models.packed_folder import without_packing
from replaceme.models.text_encoder import with_beside
from replaceme.models.weights import INDEX, SINGLE, shard_names
from replaceme.planning.outline import Outline, estimated_outline

# of httpx, requests and huggingface_hub, whichever of them is below: no connection, rather than an answer
NO_CONNECTION = {"TransportError", "TimeoutException", "ConnectionError", "Timeout", "OfflineModeIsEnabled", "gaierror"}
PLACES = {"model": "", "dataset": "datasets/"}
RECORDS = 8  # of a data set that are looked at: one may be unusable, and is passed over
WORDS = {"model": "model", "dataset": "data set"}


class Unreachable(Exception):
    """The Hub gives no answer; the message says why."""


@dataclass(frozen=True)
class Repository:
    """A model or a data set of the Hub that may be read."""

    kind: str
    name: str
    revision: str | None
    files: dict[str, int]
    parameters: int | None


def host() -> str:
    """Return the name of the Hub's host."""
    from huggingface_hub import constants

    # the endpoint may hold a user and a password
    return constants.ENDPOINT.partition("://")[2].rpartition("@")[2].strip("/")


@cache
def repository(kind: str, name: str, revision: str | None) -> Repository:
    """Look up a `model` or a `dataset`; the answer to the same question is cached.

    Raises ReplaceMeError, in one line with what to do, where it is missing, gated or has no such revision, and
    Unreachable where nobody answers.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError, RevisionNotFoundError

    what, page = WORDS[kind], f"https://{host()}/{PLACES[kind]}{name}"
    try:
        HfApi().auth_check(name, repo_type=kind)
        info = HfApi().repo_info(name, revision=revision, repo_type=kind, files_metadata=kind == "model")
    except GatedRepoError as error:
        raise ReplaceMeError(
            f"{name}: this {what} is gated; accept its licence at {page} and log in (`hf auth login`)"
        ) from error
    except RevisionNotFoundError as error:
        raise ReplaceMeError(f"{name}: no revision {revision!r}; see {page}/commits") from error
    except RepositoryNotFoundError as error:
        raise ReplaceMeError(
            f"{name}: no such {what}, or a private one; check the id, or log in (`hf auth login`)"
        ) from error
    except Exception as error:
        raise as_reported(error, name) from error
    sizes = {file.rfilename: file.size or 0 for file in info.siblings or []}
    total = getattr(getattr(info, "safetensors", None), "total", None)
    return Repository(kind, name, revision, sizes, total)


def as_reported(error: Exception, name: str) -> Exception:
    """Return Unreachable for an error of the connection or of the server, else a ReplaceMeError with its message."""
    reason = in_one_line(error)
    chain: list[BaseException] = [error]
    while chain[-1].__cause__ or chain[-1].__context__:
        chain.append(chain[-1].__cause__ or chain[-1].__context__)
    names = {cls.__name__ for one in chain for cls in type(one).__mro__}
    status = getattr(getattr(error, "response", None), "status_code", 0)
    if names & NO_CONNECTION or status >= 500:
        return Unreachable(reason)
    return ReplaceMeError(f"{name}: the Hub refuses ({reason})")


def lines_of(repository: Repository, file: str) -> list[str]:
    """Return the lines of a small text file of a repository that are not empty; none where it has no such file."""
    from huggingface_hub import hf_hub_download

    if file not in repository.files:
        return []
    kind, revision = repository.kind, repository.revision
    try:
        path = hf_hub_download(repository.name, file, repo_type=kind, revision=revision)
    except Exception as error:
        raise as_reported(error, repository.name) from error
    return read_lines(path)


def model_outline(name: str, revision: str | None, dequantise: bool = False) -> Outline:
    """Return the outline of a model of the Hub, downloading only config.json and the index of its weights.

    `dequantise`: of a quantised one that of its plain weights, whose number is estimated.

    Raises what `repository` does, and ReplaceMeError for a model without safetensors or of no known family.
    """
    found = repository("model", name, revision)
    if not any(map(is_weights, found.files)):
        raise ReplaceMeError(f"{name}: no model*.safetensors in it; pickles are not read, take a converted revision")
    if "config.json" not in found.files:
        raise ReplaceMeError(f"{name}: no config.json in it; this is not a checkpoint of transformers")
    config = with_beside(read_config(_folder_with("config.json", name, revision)), found.files)
    if not is_encoder(config):
        check_beside(found.files, name)
    if dequantise:
        check_read(config.get(KEY), name)
        return estimated_outline(name, without_packing(config))
    weights = sum(found.files.get(file, 0) for file in _weights(found))
    return estimated_outline(name, config, weights, found.parameters)


def _weights(found: Repository) -> list[str]:
    """Return the files that would be downloaded as a model's weights."""
    if SINGLE not in found.files and INDEX in found.files:
        return shard_names(_folder_with(INDEX, found.name, found.revision))
    return [SINGLE] if SINGLE in found.files else list(filter(is_weights, found.files))


def _folder_with(file: str, name: str, revision: str | None) -> Path:
    """Return the folder in the cache to which a file of a model was downloaded."""
    from huggingface_hub import hf_hub_download

    try:
        return Path(hf_hub_download(name, file, revision=revision)).parent
    except Exception as error:
        raise as_reported(error, name) from error


def is_weights(file: str) -> bool:
    """Return whether a file of a repository is named like one of a model's weights."""
    return file.startswith("model") and file.endswith(".safetensors") and "/" not in file


def cached_folder(name: str, revision: str | None) -> str | None:
    """Return the cached folder of a model with its weights; None where there is none."""
    from huggingface_hub import snapshot_download

    try:
        return snapshot_download(
            name, revision=revision, local_files_only=True, allow_patterns=["*.json", "*.safetensors"]
        )
    except Exception:  # of several types, and none of them matters: then it has to be downloaded
        return None


def first_records(source: str, name: str | None, revision: str | None, split: str) -> list[dict[str, Any]]:
    """Return some records of a data set, by streaming; raises as `repository` does, and for an unknown name or
    split.
    """
    from datasets import load_dataset

    try:
        stream = load_dataset(source, name, revision=revision, split=split, streaming=True)
        records = list(islice(stream, RECORDS))
    except Exception as error:
        reported = as_reported(error, source)
        if isinstance(reported, Unreachable):
            raise reported from error
        raise ReplaceMeError(
            f"{source}: cannot read split {split!r} ({in_one_line(error)}); check name and split"
        ) from error
    if not records:
        raise ReplaceMeError(f"{source}: split {split!r} is empty; take another")
    return records
