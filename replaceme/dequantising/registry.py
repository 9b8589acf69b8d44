"""The formats of quantised weights that can be dequantised, by `quant_method` of the section in config.json.

A new one is a file here whose `packing(quantization_config)` returns a `Packing`, an entry of FORMATS, and its name in
READ of `described`.
"""

from collections.abc import Callable
from typing import Any

from replaceme.core.errors import ReplaceMeError
from replaceme.dequantising import awq, bnb, compressed, fp8, gptq, mxfp4
from replaceme.dequantising.described import KEY, check_read, method_of
from replaceme.dequantising.packing import Packing

FORMATS: dict[str, Callable[[dict[str, Any]], Packing]] = {
    "fp8": fp8.packing,
    "mxfp8": fp8.packing,
    "mxfp4": mxfp4.packing,
    "gptq": gptq.packing,
    "awq": awq.packing,
    "compressed-tensors": compressed.packing,
    "bitsandbytes": bnb.packing,
}


def packing_of(config: dict[str, Any], where: str) -> Packing:
    """Return how the weights of a config.json are packed; raises ReplaceMeError for a format that is not read."""
    check_read(config[KEY], where)
    method = method_of(config[KEY])
    try:
        return FORMATS[method](config[KEY])
    except ReplaceMeError as error:
        raise ReplaceMeError(f"{where}: {error}") from None
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise ReplaceMeError(
            f"{where}: {KEY} is not one of {method}; take the config.json that belongs to the weights"
        ) from error
