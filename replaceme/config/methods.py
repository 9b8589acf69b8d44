"""Facts about the methods other than replaceme that a fit section needs."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from replaceme.config.fits import FitConfig

# what each can be told
OPTIONS = {
    "svd_llm": ("estimation",),
    "llm_streamline": ("network", "learning_rate", "batch_tokens", "epochs", "order_seed"),
    "slicegpt": ("estimation",),
    "llm_pruner": ("whole_first", "whole_last"),
}
OWN = ("network", "whole_first", "whole_last")  # of these methods alone
NARROWING = ("svd_llm", "slicegpt", "llm_pruner")  # all blocks stay, and get narrower


def coded(fit: "FitConfig") -> bool:
    """Return whether the models of a fit by another method bring code of their own."""
    if fit.method == "llm_streamline":
        return fit.network == "mlp"
    if fit.method == "llm_pruner":  # where all blocks get equally narrow, config.json can say so
        return fit.whole_first > 0 or fit.whole_last > 0
    return fit.is_other
