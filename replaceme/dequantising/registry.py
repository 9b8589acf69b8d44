"""The formats of quantised weights that can be dequantised, by `quant_method` of the section in config.json.

A new one is a file here whose `packing(quantization_config)` returns a `Packing`, and an entry of FORMATS.
"""

from collections.abc import Callable
from typing import Any

from replaceme.core.errors import ReplaceMeError, printable
from replaceme.dequantising import awq, bnb, compressed, fp8, gptq, mxfp4
from replaceme.dequantising.packing import Packing

FORMATS: dict[str, Callable[[dict[str, Any]], Packing]] = {
    "fp8": fp8.packing,
    "mxfp8": fp8.packing,
    "mxfp4": mxfp4.packing,
    "compressed-tensors": compressed.packing,
    "gptq": gptq.packing,
    "awq": awq.packing,
    "bitsandbytes": bnb.packing,
}
GGUF = "gguf"
KEY = "quantization_config"
REMEDY = "set `dequantise: true`"


def packing_of(config: dict[str, Any], where: str) -> Packing:
    """Return how the weights of a config.json are packed; raises ReplaceMeError for a format that is not read."""
    section = config[KEY]
    method = method_of(section)
    if method not in FORMATS:
        raise ReplaceMeError(
            f"{where}: quantised as {printable(repr(method))}, which is not read (read are {', '.join(FORMATS)}, "
            f"{GGUF}); give the full-precision checkpoint"
        )
    try:
        return FORMATS[method](section)
    except ReplaceMeError as error:
        raise ReplaceMeError(f"{where}: {error}") from None
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise ReplaceMeError(
            f"{where}: {KEY} is not one of {method}; take the config.json that belongs to the weights"
        ) from error


def method_of(section: Any) -> str:
    """Return the name of the format of a quantization_config; older ones of bitsandbytes have none."""
    if not isinstance(section, dict):
        return str(section)
    if section.get("load_in_4bit") or section.get("load_in_8bit"):
        return "bitsandbytes"
    return str(section.get("quant_method"))


def needs_dequantising(config: dict[str, Any], where: str) -> ReplaceMeError:
    """Return the error for a quantised checkpoint that is given as it is, with the remedy where it can be read."""
    try:
        found = packing_of(config, where).description
    except ReplaceMeError as error:
        return error
    return ReplaceMeError(f"{where}: config.json says {found}, of which nothing can be folded; {REMEDY}")
