"""Say in words how config.json quantises weights, and refuse them where plain ones are needed.

The formats themselves are in the registry, which is not imported here: an edit of one concerns no other step.
"""

from collections.abc import Iterable
from typing import Any

from replaceme.core.errors import ReplaceMeError, printable

KEY = "quantization_config"  # in config.json
GGUF = "gguf"
# by `quant_method`, but for GGUF, which is a file
READ = ("fp8", "mxfp8", "mxfp4", "gptq", "awq", "compressed-tensors", "bitsandbytes")
MOST_BITS = 16
REMEDY = "set `dequantise: true` (`prune --dequantise`), or make plain weights of it by `replaceme dequantise`"


def method_of(section: Any) -> str:
    """Return the name of the format of a quantization_config; older ones of bitsandbytes have none."""
    if not isinstance(section, dict):
        return printable(section)
    if section.get("load_in_4bit") or section.get("load_in_8bit"):
        return "bitsandbytes"
    return printable(section.get("quant_method"))


def described(section: Any) -> str:
    """Return the format and the bits of a quantization_config: "gptq, 4 bits"."""
    if not isinstance(section, dict):
        return method_of(section)
    groups = section.get("config_groups")
    of_groups = [one.get("weights") for one in mappings(groups.values() if isinstance(groups, dict) else [])]
    found = [one.get(key) for one in mappings([section, *of_groups]) for key in ("bits", "num_bits")]
    found += [number for number in (4, 8) if section.get(f"load_in_{number}bit")]
    bits = sorted({one for one in found if isinstance(one, int) and 0 < one <= MOST_BITS})
    return ", ".join([method_of(section), *([f"{' and '.join(map(str, bits))} bits"] if bits else [])])


def mappings(values: Iterable[Any]) -> list[dict[str, Any]]:
    """Return those values that are mappings, whatever else stands in a config.json."""
    return [one for one in values if isinstance(one, dict)]


def check_read(section: Any, where: str) -> None:
    """Raise ReplaceMeError for a quantization_config of a format that is not read, and where there is none."""
    if not section:
        raise ReplaceMeError(f"{where}: config.json names no quantisation; drop `dequantise`")
    if method_of(section) not in READ:
        raise ReplaceMeError(
            f"{where}: config.json says {described(section)}, which is not read (read are {', '.join((*READ, GGUF))}); "
            "give the full-precision checkpoint"
        )


def needs_dequantising(section: Any, where: str) -> ReplaceMeError:
    """Return the error for a quantised checkpoint that is given as it is, with the remedy where it can be read."""
    try:
        check_read(section, where)
    except ReplaceMeError as error:
        return error
    return ReplaceMeError(f"{where}: config.json says {described(section)}, into which nothing can be folded; {REMEDY}")
