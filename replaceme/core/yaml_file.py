"""Read YAML as Snakemake does, but report every defect, duplicate keys included, in one clear line.

Nothing that a file holds can run, and none can make the reader work for long: the size of files, and of the values that
their anchors expand to, is limited.
"""

from collections.abc import Hashable
from pathlib import Path
from typing import Any

import yaml

from replaceme.core.errors import ReplaceMeError, printable
from replaceme.core.text_files import decoded

LARGEST_FILE = 1 << 20  # bytes
LARGEST = 100_000  # values, with those that an anchor stands for counted wherever it stands


class _UniqueKeyLoader(yaml.SafeLoader):
    """YAML as Snakemake reads it, but a key given twice is an error instead of the last one winning."""


def _mapping(loader: _UniqueKeyLoader, node: yaml.MappingNode) -> dict:
    seen: dict[Any, int] = {}
    for key_node, _ in node.value:
        if key_node.tag == "tag:yaml.org,2002:merge":  # `<<: *defaults` may be overridden
            continue
        key = loader.construct_object(key_node, deep=True)
        line = key_node.start_mark.line + 1
        if not isinstance(key, Hashable):
            raise yaml.constructor.ConstructorError(None, None, "a list or mapping as a key", key_node.start_mark)
        if key in seen:
            origin = key_node.start_mark.name
            raise ReplaceMeError(
                f"{origin}: line {line}: key {key!r} again, first on line {seen[key]}; keep one of them"
            )
        seen[key] = line
    loader.flatten_mapping(node)
    return loader.construct_mapping(node, deep=True)


_UniqueKeyLoader.add_constructor(yaml.resolver.BaseResolver.DEFAULT_MAPPING_TAG, _mapping)


def read_yaml(path: str | Path) -> Any:
    """Read YAML without duplicate keys; raises ReplaceMeError naming the file and line."""
    path = Path(path)
    try:
        loader = _UniqueKeyLoader(_text(path))
        loader.name = printable(path)
        node = loader.get_single_node()
        if node is None:
            return None
        _check_size(node, str(path), {})
        return loader.construct_document(node)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f"line {mark.line + 1}: " if mark else ""
        reason = getattr(error, "problem", None) or str(error)
        raise _not_yaml(path, reason, line) from None
    except RecursionError:
        raise _not_yaml(path, "nested too deeply") from None
    except (
        ValueError,
        OverflowError,
        KeyError,
        AttributeError,
        TypeError,
    ) as error:  # scalars such as 2001-99-99, !!int x
        raise _not_yaml(path, error) from None


def _not_yaml(path: Path, reason: Any, line: str = "") -> ReplaceMeError:
    return ReplaceMeError(f"{path}: {line}not valid YAML ({printable(reason)}); write it as plain YAML")


def _text(path: Path) -> str:
    try:
        with path.open("rb") as stream:
            raw = stream.read(LARGEST_FILE + 1)
    except FileNotFoundError:
        raise ReplaceMeError(f"{path}: no such file; give the path of a config") from None
    except OSError as error:
        raise ReplaceMeError(f"{path}: cannot read ({error.strerror}); a file is needed") from None
    if len(raw) > LARGEST_FILE:
        raise ReplaceMeError(f"{path}: larger than {LARGEST_FILE >> 20} MB; is it a config?")
    try:
        return decoded(raw)
    except ValueError as error:
        raise ReplaceMeError(f"{path}: {error}; save it as UTF-8") from None


def _check_size(node: yaml.Node, path: str, sizes: dict[int, int | None]) -> int:
    """Return the number of values a node expands to; `sizes` has the numbers of seen nodes, None while being
    counted.
    """
    known = sizes.get(id(node), 0)
    line = node.start_mark.line + 1
    if known is None:
        raise ReplaceMeError(f"{path}: line {line}: an anchor that holds itself; write it out")
    if known:
        return known
    sizes[id(node)] = None
    inner = node.value if isinstance(node, yaml.CollectionNode) else []
    parts = [part for pair in inner for part in pair] if isinstance(node, yaml.MappingNode) else inner
    size = 1 + sum(_check_size(part, path, sizes) for part in parts)
    if size > LARGEST:
        raise ReplaceMeError(f"{path}: line {line}: unfolds to more than {LARGEST} values by its anchors; write it out")
    sizes[id(node)] = size
    return size
