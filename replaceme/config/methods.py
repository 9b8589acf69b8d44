"""What a fit section needs to know of the methods other than replaceme."""

# what each can be told
OPTIONS = {
    "svd_llm": ("estimation",),
    "llm_streamline": ("learning_rate", "batch_tokens", "epochs", "order_seed"),
    "slicegpt": ("estimation",),
}
CODED = ("svd_llm", "slicegpt")  # their models bring code of their own
NARROWING = ("svd_llm", "slicegpt")  # all blocks stay, and get narrower
