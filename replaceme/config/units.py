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
DECODED = (DECODE, LATENCY)  # those that new tokens count in


def lengths_of(unit: str) -> tuple[str, ...]:
    """Return the fields of section `speed` that say for which lengths a unit is measured or counted."""
    return ("prompt_tokens", *(("new_tokens",) if unit in DECODED else ()), "batch_size")


def speed_fields(unit: str) -> tuple[str, ...]:
    """Return the fields of section `speed` that a unit depends on."""
    return (*lengths_of(unit), *(("repeats", "warmup", "clock") if unit in TIMED else ()))


def in_words() -> str:
    """Return the units in words."""
    return "; ".join(f"{name}, {what}" for name, what in UNITS.items())
