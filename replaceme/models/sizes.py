"""Bytes of a weight in each type, and the room that a model takes beside its weights."""

MARGIN = 1.25  # of a model's weights, for activations and what else a forward pass takes
FOUR_BITS = "4 bits"
# of a weight; in 4 bits with its scale, and with what is not rounded
ITEM_BYTES = {"float64": 8, "float32": 4, "bfloat16": 2, "float16": 2, FOUR_BITS: 0.6}
