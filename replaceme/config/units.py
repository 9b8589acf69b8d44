"""Units of the share of a model that a cut removes: the key `of` of the section `cuts`."""

PARAMETERS, FLOPS, PREFILL, DECODE, LATENCY, CACHE = "parameters", "flops", "prefill", "decode", "latency", "cache"
# by unit, what is shared
UNITS = {
    PARAMETERS: "the parameters",
    FLOPS: "the operations of matrix products in a forward pass over the prompt of section `speed`",
    PREFILL: "the measured time of such a pass",
    DECODE: "the measured time of the new tokens after it",
    LATENCY: "the measured time of both",
    CACHE: "the bytes of the key-value cache after the prompt",
}
TIMED = (PREFILL, DECODE, LATENCY)  # measured on a machine; the others follow from config.json


def in_words() -> str:
    """Return the units in words."""
    return "; ".join(f"{name}, {what}" for name, what in UNITS.items())
