"""ONNX: export the model as transformers loads it by torch's exporter, run the file by onnxruntime on the CPU."""

from pathlib import Path
from typing import Any


def measure(folder: str, sequences: list[list[int]], new_tokens: int, work: Path, **_: Any) -> dict[str, Any]:
    """Return the log-likelihood of each token but the first, nats, and what follows each sequence greedily."""
    import numpy
    import onnxruntime

    _export(folder, sequences[0], work / "model.onnx")
    session = onnxruntime.InferenceSession(str(work / "model.onnx"), providers=["CPUExecutionProvider"])

    def log_probabilities(tokens: list[int]) -> Any:
        [logits] = session.run(None, {"input_ids": numpy.array([tokens], dtype=numpy.int64)})
        logits = logits[0] - logits[0].max(-1, keepdims=True)
        return logits - numpy.log(numpy.exp(logits).sum(-1, keepdims=True))

    likelihoods, generated = [], []
    for tokens in sequences:
        rows = log_probabilities(tokens)
        likelihoods.append([float(row[token]) for row, token in zip(rows, tokens[1:], strict=False)])
        longer = list(tokens)
        for _ in range(new_tokens):  # the file has no cache
            longer.append(int(log_probabilities(longer)[-1].argmax()))
        generated.append(longer[len(tokens) :])
    return {"likelihoods": likelihoods, "generated": generated, "version": f"onnxruntime {onnxruntime.__version__}"}


def _export(folder: str, tokens: list[int], out: Path) -> None:
    """Write the model as a graph from token ids [1, n] of any length n to logits, float32."""
    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, local_files_only=True)

    class Logits(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = model

        def forward(self, input_ids: torch.Tensor) -> torch.Tensor:
            return self.model(input_ids=input_ids, use_cache=False).logits

    torch.onnx.export(
        Logits().eval(),
        (torch.tensor([tokens]),),
        str(out),
        dynamo=True,
        dynamic_shapes={"input_ids": {1: torch.export.Dim.AUTO}},
        input_names=["input_ids"],
        output_names=["logits"],
        external_data=True,
        verbose=False,
    )
