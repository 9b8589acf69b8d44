"""Compare what other programs compute from a model folder with what transformers computes, both in float32.

Each program loads the folder in a process of its own. It gives the log-likelihoods of fixed tokens and what it
generates greedily after them:

    |log p(token), program - transformers| <= allowed nats, for each token;
    log p(generated token) >= that of the likeliest - 2 allowed, by transformers on the program's own way.
"""

import json
import logging
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from replaceme.core.errors import ReplaceMeError
from replaceme.core.memory import free_memory
from replaceme.exports import worker
from replaceme.exports.registry import PROGRAMS, Program, lines_of_missing
from replaceme.models.checkpoints import open_checkpoint, read_config
from replaceme.models.custom_code import is_separate
from replaceme.models.loading import load_causal_model
from replaceme.models.model_config import is_encoder
from replaceme.verification.outcome import FAILED, PASSED, NotChecked, outcome
from replaceme.verification.reload import NEW_TOKENS, Ended, fixed_tokens, run_alone

if TYPE_CHECKING:
    from transformers import PreTrainedModel

log = logging.getLogger(__name__)
SECONDS = 3600
COPIES = 3  # of the float32 weights that a program and its conversion may hold at once


def check_exports(folder: str | Path, programs: Sequence[str] | None = None) -> dict[str, dict[str, Any]]:
    """Return the outcome of each program by its name: passed, failed or not checked, with the largest difference.

    `programs`: names in PROGRAMS, each of which must be installed; None: all, those that are not are `not checked`.
    Raises ReplaceMeError for a name that is unknown or not installed, and for a folder that is no checkpoint.
    """
    folder = Path(folder).resolve()
    require_installed(programs or ())
    checkpoint = open_checkpoint(folder, separate=True)
    weights = 4 * checkpoint.parameters
    sequences = [ids[mask].tolist() for ids, mask in _rows(checkpoint.config)]
    answers = {}
    for name in programs or PROGRAMS:
        log.info("%s: %s", folder, name)
        answers[name] = outcome(_ask, PROGRAMS[name], folder, sequences, weights)
    if any(answer["outcome"] == PASSED for answer in answers.values()):
        model = load_causal_model(folder, "float32", "cpu")
        for name, answer in answers.items():
            if answer["outcome"] == PASSED:
                given = (model, sequences, answer, PROGRAMS[name].allowed)
                answers[name] = outcome(_compare, *given) | {"version": answer["version"]}
    return answers


def require_installed(programs: Sequence[str]) -> None:
    """Raise ReplaceMeError with a line for each program that is unknown, or that is not installed."""
    unknown = [name for name in programs if name not in PROGRAMS]
    if unknown:
        raise ReplaceMeError(f"{unknown[0]!r} is no program that a folder can be tried with: {', '.join(PROGRAMS)}")
    lines = lines_of_missing(programs)
    if lines:
        raise ReplaceMeError("\n".join(lines))


def faults(answers: dict[str, dict[str, Any]], asked: bool) -> list[str]:
    """Return a line for each program that failed; of those `asked` for by name, for each that did not pass."""
    wanted = [name for name, one in answers.items() if one["outcome"] == FAILED or (asked and one["outcome"] != PASSED)]
    return [f"{name}: {answers[name]['outcome']}, {answers[name]['reason']}" for name in wanted]


def _rows(config: dict[str, Any]) -> Iterator[tuple[Any, Any]]:
    """Return the token ids and masks of the fixed sequences, two of different lengths."""
    tokens = fixed_tokens(config)
    return zip(tokens.input_ids, tokens.mask, strict=True)


def _ask(program: Program, folder: Path, sequences: list[list[int]], weights: int) -> dict[str, Any]:
    """Return a program's answer (see `worker`); raises ReplaceMeError with its whole reason when it gives none."""
    missing = program.missing()
    if missing is not None:
        raise NotChecked(f"not installed ({missing}); {program.install}")
    config = read_config(folder)
    if is_separate(config):
        raise NotChecked("its layers are not of the original architecture, and only transformers runs its code")
    if is_encoder(config):
        raise NotChecked("an encoder predicts no tokens to compare")
    if COPIES * weights > free_memory("cpu"):
        raise NotChecked(f"it may take {COPIES * weights / 1e9:.1f} GB of memory in float32, less is free")
    with tempfile.TemporaryDirectory(prefix="replaceme-") as folder_of_work:
        work = Path(folder_of_work)
        question = {"folder": str(folder), "sequences": sequences, "new_tokens": NEW_TOKENS, "weights": weights}
        (work / "question.json").write_text(json.dumps(question), encoding="utf-8")
        # files beside the worker are no modules for it (an older Python has no option -P for that)
        environment = {"PYTHONSAFEPATH": "1"} | ({"PYTHONPATH": ""} if program.is_elsewhere else {})
        try:
            run_alone([program.interpreter, worker.__file__, program.path, str(work)], SECONDS, environment)
        except Ended as error:
            log.warning("%s", error.said)
            raise ReplaceMeError(_read(work).get("error", str(error))) from error
        return _read(work)


def _read(work: Path) -> dict[str, Any]:
    path = work / "answer.json"
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}


def _compare(
    model: "PreTrainedModel", sequences: list[list[int]], answer: dict[str, Any], allowed: float
) -> dict[str, Any]:
    """Return the largest difference of a log-likelihood, nats; raises ReplaceMeError where it or a token is wrong."""
    largest = shortfall = 0.0
    for tokens, likelihoods, generated in zip(sequences, answer["likelihoods"], answer["generated"], strict=True):
        if len(likelihoods) != len(tokens) - 1 or len(generated) != NEW_TOKENS:
            raise ReplaceMeError(
                f"{len(likelihoods)} likelihoods and {len(generated)} new tokens, "
                f"asked for {len(tokens) - 1} and {NEW_TOKENS}"
            )
        rows = _log_probabilities(model, [*tokens, *generated])
        own = rows[range(len(tokens) - 1), tokens[1:]]
        largest = _larger(largest, float((own - own.new_tensor(likelihoods)).abs().max()))
        following = rows[len(tokens) - 1 :]
        behind = following.max(-1).values - following[range(NEW_TOKENS), generated]
        shortfall = _larger(shortfall, float(behind.max()))
    if not largest <= allowed:  # NaN is not
        raise ReplaceMeError(
            f"log-likelihoods differ from those of transformers by up to {largest:.2g} nats, {allowed:.2g} are allowed"
        )
    if not shortfall <= 2 * allowed:
        raise ReplaceMeError(
            f"a greedy token is {shortfall:.2g} nats less likely by transformers than the likeliest, "
            f"{2 * allowed:.2g} are allowed"
        )
    compared = sum(map(len, answer["likelihoods"]))
    return {"largest_difference": largest, "allowed": allowed, "tokens": compared}


def _larger(one: float, other: float) -> float:
    """Return the larger of two numbers, NaN where one is."""
    return one if one >= other or one != one else other


def _log_probabilities(model: "PreTrainedModel", tokens: list[int]) -> Any:
    """Return log p of every token of the vocabulary after each place but the last [tokens - 1, vocabulary], float64."""
    import torch

    with torch.inference_mode():
        logits = model(input_ids=torch.tensor([tokens]), use_cache=False).logits[0, :-1]
    return logits.double().log_softmax(-1)
