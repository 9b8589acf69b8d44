"""vLLM: load the folder, compute in float32 on the device that it was built for, in a small part of its memory."""

import os
from pathlib import Path
from typing import Any

CACHE = 1 << 28  # bytes for keys and values: a few short sequences need no more
ROOM = 3 << 30  # bytes for everything beside weights and cache: the device's own libraries, activations


def measure(folder: str, sequences: list[list[int]], new_tokens: int, weights: int, work: Path) -> dict[str, Any]:
    """Return the log-likelihood of each token but the first, nats, and what follows each sequence greedily."""
    # one process, whose error is the reason; of two the first knows only that the other has ended
    os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
    os.environ["VLLM_NO_USAGE_STATS"] = "1"
    os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")  # GiB; by default it takes most of the memory
    os.environ.setdefault("VLLM_CACHE_ROOT", str(work / "cache"))
    import vllm

    options = {"dtype": "float32", "enforce_eager": True, "max_num_seqs": len(sequences), "seed": 0}
    options["max_model_len"] = max(map(len, sequences)) + new_tokens
    model = vllm.LLM(model=folder, **options, **_bounds(weights))
    asked = {"temperature": 0.0, "max_tokens": new_tokens, "ignore_eos": True, "detokenize": False}
    asked["prompt_logprobs"] = 0  # of the token itself alone
    found = model.generate([{"prompt_token_ids": tokens} for tokens in sequences], vllm.SamplingParams(**asked))
    likelihoods = [
        [float(by_token[token].logprob) for token, by_token in zip(tokens[1:], one.prompt_logprobs[1:], strict=True)]
        for tokens, one in zip(sequences, found, strict=True)
    ]
    generated = [list(one.outputs[0].token_ids) for one in found]
    return {"likelihoods": likelihoods, "generated": generated, "version": vllm.__version__}


def _bounds(weights: int) -> dict[str, Any]:
    """Return the options that bound its memory on a GPU, of which it otherwise claims nine tenths, free or not."""
    import torch

    if not torch.cuda.is_available():
        return {}
    share = (1.1 * weights + CACHE + ROOM) / torch.cuda.mem_get_info()[1]
    return {"gpu_memory_utilization": min(0.92, share), "kv_cache_memory_bytes": CACHE}
