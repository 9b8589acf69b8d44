"""The first half of a block whose attention and MLP add to the residual stream one after the other."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Attention:
    """The names of an attention's parts in its block.

    `names` begin those of its tensors, of its norms too; all other tensors of the block are the MLP's. `fold` is the
    linear weight [hidden, heads' outputs] that puts out what it adds to the stream; `post_norm` the weight of an RMS
    norm after that, if there is one. (One after the attention goes with one after the MLP.) `middle` is the module
    whose input is the stream between attention and MLP. `beside`: the config entry of a variant with both at once.
    """

    names: tuple[str, ...] = ("input_layernorm", "self_attn")
    fold: str = "self_attn.o_proj.weight"
    post_norm: str | None = None
    middle: str = "post_attention_layernorm"
    beside: str | None = None

    @property
    def output(self) -> str:
        """The module whose output it adds to the stream."""
        return (self.post_norm or self.fold).rpartition(".")[0]

    def holds(self, name: str) -> bool:
        """Return whether a tensor is its, by the name in the block."""
        return name.partition(".")[0] in self.names
