"""MLX: load the folder with mlx-lm, compute in float32 on the CPU."""

from importlib.metadata import version
from pathlib import Path
from typing import Any


def measure(folder: str, sequences: list[list[int]], new_tokens: int, **_: Any) -> dict[str, Any]:
    """Return the log-likelihood of each token but the first, nats, and what follows each sequence greedily."""
    import mlx.core as mx
    from mlx_lm.generate import generate_step
    from mlx_lm.utils import load_model

    mx.set_default_device(mx.cpu)
    model, _config = load_model(Path(folder))
    model.set_dtype(mx.float32)
    likelihoods, generated = [], []
    for tokens in sequences:
        logits = model(mx.array([tokens]))[0]
        rows = logits - mx.logsumexp(logits, axis=-1, keepdims=True)
        likelihoods.append([rows[place, token].item() for place, token in enumerate(tokens[1:])])
        following = generate_step(mx.array(tokens), model, max_tokens=new_tokens)
        generated.append([int(token) for token, _ in following])
    return {"likelihoods": likelihoods, "generated": generated, "version": f"mlx-lm {version('mlx-lm')}"}
