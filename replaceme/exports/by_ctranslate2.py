"""ctranslate2: convert the folder by its own converter, compute in float32 on the CPU."""

import json
from pathlib import Path
from typing import Any


def measure(folder: str, sequences: list[list[int]], new_tokens: int, work: Path, **_: Any) -> dict[str, Any]:
    """Return the log-likelihood of each token but the first, nats, and what follows each sequence greedily."""
    import ctranslate2
    import numpy
    from ctranslate2.converters import TransformersConverter

    TransformersConverter(folder).convert(str(work / "converted"))
    model = ctranslate2.Generator(str(work / "converted"), device="cpu", compute_type="float32")
    spelt = json.loads((work / "converted" / "vocabulary.json").read_text(encoding="utf-8"))
    likelihoods, generated = [], []
    for tokens in sequences:
        rows = numpy.array(model.forward_batch([tokens], return_log_probs=True))[0]
        likelihoods.append([float(row[token]) for row, token in zip(rows, tokens[1:], strict=False)])
        # no end: what ends a text is a token like any other here
        options = {"max_length": new_tokens, "sampling_topk": 1, "include_prompt_in_result": False, "end_token": []}
        found = model.generate_batch([[spelt[token] for token in tokens]], **options)
        generated.append(list(found[0].sequences_ids[0]))
    return {"likelihoods": likelihoods, "generated": generated, "version": ctranslate2.__version__}
