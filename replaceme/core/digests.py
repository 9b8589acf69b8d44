"""Digests that a result carries of itself, so that reading it reveals a flipped bit or a foreign edit.

A safetensors file holds the SHA-256 of each of its tensors in its stamp, and the stamp one of itself; a JSON record has
one of all the rest as its last key. They reveal damage, not malice: whoever can change a file can change its digest.
"""

import hashlib
import json
import os
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

KEY = "content_sha256"
MISMATCH = "its content does not match its SHA-256"


def sealed(value: Any) -> str:
    """Return a value as JSON text that carries its own SHA-256."""
    text = json.dumps(value)
    return f"{_sha256(text)} {text}"


def unsealed(text: str) -> Any:
    """Return the value from text of `sealed`; raises ValueError when it is damaged."""
    digest, _, content = text.partition(" ")
    if _sha256(content) != digest:
        raise ValueError(MISMATCH)
    return json.loads(content)


def with_digest(record: Mapping[str, Any]) -> dict[str, Any]:
    """Return a record with the SHA-256 of its JSON as the last key."""
    return {**record, KEY: _of_record(record)}


def without_digest(record: dict[str, Any]) -> dict[str, Any]:
    """Return a record as it was given to `with_digest`; a record of others, without a digest, stays unchanged.

    Raises ValueError when the content is not what the digest says.
    """
    if KEY not in record:
        last = next(reversed(record), "")
        if len(last) == len(KEY) and sum(a != b for a, b in zip(last, KEY, strict=True)) == 1:
            raise ValueError(MISMATCH)  # the flipped bit is in the name
        return record
    content = {key: value for key, value in record.items() if key != KEY}
    if record[KEY] != _of_record(content):
        raise ValueError(MISMATCH)
    return content


def tensor_digests(tensors: "Mapping[str, torch.Tensor]") -> dict[str, str]:
    """Return the SHA-256 of type, shape and content of each tensor, on the CPU, several at a time."""
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as threads:
        return dict(zip(tensors, threads.map(_of_tensor, tensors.values()), strict=True))


def _of_tensor(tensor: "torch.Tensor") -> str:
    import torch

    content = hashlib.sha256(f"{tensor.dtype} {list(tensor.shape)} ".encode())
    content.update(tensor.contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return content.hexdigest()


def _of_record(record: Mapping[str, Any]) -> str:
    return _sha256(json.dumps(record, ensure_ascii=False, allow_nan=False))


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
