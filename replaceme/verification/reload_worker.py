"""Load a model folder with plain transformers, as any user does, and write down the result.

Run as a file, in a process of its own in which replaceme cannot be imported, or by a process that keeps to the same:
`reload.Fresh` sends the question, `verify` judges the answer.
"""

import atexit
import gc
import json
import sys
from collections.abc import Callable
from contextlib import suppress
from inspect import signature
from pathlib import Path
from typing import Any

POOLER = "pooler."  # on top of an encoder, which many are saved without


def main(work: Path, model_type: str) -> None:
    """Run `reply` as the only work of a process: when a line comes by the standard input, and not if that ends."""
    sys.modules["replaceme"] = None  # an installed one is not found either
    gc.set_threshold(100_000, 20, 50)  # as `cli`
    atexit.register(gc.freeze)
    prepare(model_type)
    if sys.stdin.readline():
        reply(work)


def prepare(model_type: str) -> None:
    """Import what loading a model of this type takes; `reply` says if it cannot be."""
    with suppress(Exception):
        import torch  # noqa: F401
        from transformers import MODEL_FOR_CAUSAL_LM_MAPPING, AutoConfig, PreTrainedTokenizerFast  # noqa: F401

        MODEL_FOR_CAUSAL_LM_MAPPING.get(type(AutoConfig.for_model(model_type)))


def reply(work: Path) -> None:
    """Answer `question.json` in folder `work`: `answer.json` has the fault of each part, null where it is sound.

    The logits [sequences, tokens, vocabulary], or what another class puts out first, float32, go to
    `logits.safetensors`, the tokenizer's chat template, or templates by name, to `chat_template.json`.
    """
    question = json.loads((work / "question.json").read_text(encoding="utf-8"))
    where, inputs = question["where"], question["inputs"]
    answer: dict[str, str | None] = {}
    _part(answer, "tokenizer", lambda: _save_template(where, work))
    if inputs is not None:
        import torch

        torch.set_num_threads(question["threads"])
        device = question["device"]
        model = _part(answer, "weights", lambda: _model(question["auto_class"], where, device))
        if model is not None:
            given = {name: torch.tensor(values, device=device) for name, values in inputs.items()}
            _part(answer, "logits", lambda: _save_logits(model, given, work))
            if question["new_tokens"]:
                _part(answer, "generation", lambda: _generate(model, given, question["new_tokens"]))
    (work / "answer.json").write_text(json.dumps(answer), encoding="utf-8")


def _part(answer: dict[str, str | None], name: str, run: Callable[[], Any]) -> Any:
    """Run a part of the answer and note the reason if it fails."""
    answer[name] = None
    try:
        return run()
    except Exception as error:  # transformers raises many types
        answer[name] = str(error).strip() or type(error).__name__
        return None


def _save_template(where: dict[str, Any], work: Path) -> None:
    from transformers import AutoTokenizer

    template = AutoTokenizer.from_pretrained(**where).chat_template
    (work / "chat_template.json").write_text(json.dumps(template), encoding="utf-8")


def _model(auto_class: str, where: dict[str, Any], device: str) -> Any:
    import torch
    import transformers

    options = {"dtype": torch.float32, "output_loading_info": True}
    if device != "cpu":
        options["device_map"] = {"": device}
    model, loading = getattr(transformers, auto_class).from_pretrained(**where, **options)
    # transformers fills such tensors with random numbers and only warns
    for kind in ("missing_keys", "mismatched_keys"):
        lacking = sorted(name for name in loading[kind] if not name.startswith(POOLER))
        if lacking:
            raise ValueError(f"{len(lacking)} {kind.replace('_', ' ')}, the first is {lacking[0]}")
    return model.eval()


def _save_logits(model: Any, inputs: dict[str, Any], work: Path) -> None:
    from safetensors.torch import save_file

    save_file({"logits": _logits(model, inputs).float().cpu().contiguous()}, work / "logits.safetensors")


def _logits(model: Any, inputs: dict[str, Any]) -> Any:
    import torch

    taken = signature(model.forward).parameters  # not every architecture is told positions
    given = {name: value for name, value in inputs.items() if name in taken or name != "position_ids"}
    with torch.inference_mode():
        return model(**given, use_cache=False)[0]


def _generate(model: Any, inputs: dict[str, Any], new_tokens: int) -> None:
    """Check that greedy decoding with the cache gives the tokens that are likeliest without it.

    One pass over what was generated shows all of these: as long as they agree, both decodings have come the same way.
    """
    import torch
    from transformers import GenerationConfig

    given = {name: inputs[name] for name in ("input_ids", "attention_mask")}
    # `generate` would add what the model's author prefers, with which tokens need not be the likeliest
    model.generation_config = GenerationConfig()
    options = {"max_new_tokens": new_tokens, "do_sample": False, "eos_token_id": None, "pad_token_id": 0}
    decoded = model.generate(**given, generation_config=GenerationConfig(**options, use_cache=True))
    found = decoded.shape[1] - inputs["input_ids"].shape[1]
    if found != new_tokens:
        raise ValueError(f"{found} tokens generated, {new_tokens} asked for")
    seen = decoded[:, :-1]
    mask = torch.cat([given["attention_mask"], torch.ones_like(decoded[:, 1:new_tokens])], 1)
    positions = (mask.cumsum(1) - 1).clamp(min=0)
    logits = _logits(model, {"input_ids": seen, "attention_mask": mask, "position_ids": positions})
    different = int((logits[:, -new_tokens:].argmax(-1) != decoded[:, -new_tokens:]).sum())
    if different:
        raise ValueError(f"{different} greedy tokens differ with the cache and without it")


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])
