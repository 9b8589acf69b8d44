"""YAML as Snakemake reads it, but every defect of the file, a key given twice among them, is one clear line."""

from collections.abc import Hashable
from pathlib import Path
from typing import Any

import yaml

from replaceme.errors import ReplaceMeError, printable


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
        with path.open(encoding="utf-8") as stream:
            return yaml.load(stream, Loader=_UniqueKeyLoader)
    except FileNotFoundError:
        raise ReplaceMeError(f"{path}: no such file") from None
    except UnicodeDecodeError as error:
        raise ReplaceMeError(f"{path}: not UTF-8 text ({error.reason} at byte {error.start})") from None
    except OSError as error:
        raise ReplaceMeError(f"{path}: cannot read ({error.strerror})") from None
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f"line {mark.line + 1}: " if mark else ""
        reason = getattr(error, "problem", None) or str(error)
        raise ReplaceMeError(f"{path}: {line}not valid YAML ({printable(reason)})") from None
    except RecursionError:
        raise ReplaceMeError(f"{path}: not valid YAML (nested too deeply)") from None
    except (
        ValueError,
        OverflowError,
        KeyError,
        AttributeError,
        TypeError,
    ) as error:  # scalars such as 2001-99-99, !!int x
        raise ReplaceMeError(f"{path}: not valid YAML ({printable(error)})") from None
