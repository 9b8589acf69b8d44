"""Check that a merged checkpoint holds the fitted maps, and that any user of Hugging Face checkpoints can load it.

The original model, run with the transforms applied by hooks, says what the logits must be; a fresh process that loads
the folder with plain transformers says what they are. Both run in float32, on the CPU or on a GPU that has room for
one: at the same time where there is room for both, else one after the other. The step's own process is fresh: it loads
the folder first.
"""

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from replaceme.calibration.tokens import Tokens
from replaceme.core.cut_record import Cut
from replaceme.core.errors import ReplaceMeError
from replaceme.core.files import LaterChecks, read_json
from replaceme.core.memory import free_memory, is_full, release, unless_full
from replaceme.methods.found import Found
from replaceme.methods.registry import running
from replaceme.models.checkpoints import check_merged, open_checkpoint, read_config
from replaceme.models.custom_code import check_code, is_separate, original_config
from replaceme.models.loading import load_tokenizer
from replaceme.models.model_config import family_of, is_encoder, is_of_images
from replaceme.models.model_record import ModelRecord
from replaceme.models.weights import INDEX
from replaceme.provenance.environment import versions
from replaceme.surgery.shortened_model import shortened
from replaceme.verification.outcome import FAILED, PASSED, NotChecked, not_checked, outcome
from replaceme.verification.reload import Fresh, Running, fixed_tokens, hooked_logits, question

if TYPE_CHECKING:
    import torch

    from replaceme.transforms.transform import Transform

# logits that a folder's must equal: of some tokens, computed on a device, float32 on the CPU
Expected = Callable[[Tokens, str], "torch.Tensor"]
BY_LOADING = ("tokenizer", "weights", "logits", "generation")
ARITHMETIC = 1e-4
ROUNDINGS = 16
# half the distance of 1 to the next number of each stored type
ROUNDING = {"BF16": 2**-8, "F16": 2**-11, "F32": 2**-24, "F64": 2**-53}


def verify(
    record: ModelRecord,
    cut: Cut,
    transforms: "Sequence[Transform] | Found",
    folder: str | Path,
    *,
    fresh: Fresh | None = None,
    device: str = "cpu",
) -> dict[str, Any]:
    """Return the outcome of every check of the merged `folder`, made from a model record, a cut and its transforms.

    Instead of transforms it takes the result of another method. `fresh` loads the folder, None: a process that is
    started for it. `device` runs the models, the CPU where a GPU lacks the room.

    A check that fails does not raise: see `require_passed`. If the files are wrong, checks that load the model are
    skipped.
    """
    as_made, edited = _running(cut, transforms)

    def expected(tokens: Tokens, device: str) -> "torch.Tensor":
        return hooked_logits(record.folder, as_made, tokens, device)

    return verify_against(expected, record, edited, folder, fresh=fresh, device=device)


def verify_against(
    expected: Expected,
    record: ModelRecord,
    edited: bool,
    folder: str | Path,
    *,
    fresh: Fresh | None = None,
    device: str = "cpu",
) -> dict[str, Any]:
    """Return the outcome of every check of a `folder` made from the model of a record, its logits against `expected`
    ones.

    `edited`: whether weights were changed, and so rounded; `fresh` loads the folder, this process before `expected` is
    called; `device`: what to run both on, the CPU where a GPU lacks the room.
    """
    weights = LaterChecks()
    checks = {
        "files": outcome(_check_files, folder, weights),
        "tensors": outcome(_check_tensors, folder),
        "config": outcome(_check_config, folder),
    }
    by_loading = all(check["outcome"] == PASSED for check in checks.values())
    if by_loading:
        on_cpu = partial(_check_by_loading, expected, record, edited, folder, device="cpu")
        if device == "cpu" or not _has_room(record, device):
            checks |= on_cpu(fresh)
        else:
            on_gpu = partial(_check_by_loading, expected, record, edited, folder, fresh, device)
            checks |= unless_full(on_gpu, partial(on_cpu, None), str(folder), "checked on the CPU")
    if checks["files"]["outcome"] == PASSED:
        checks["files"] = outcome(weights.wait)
    if not by_loading or checks["files"]["outcome"] == FAILED:
        checks |= dict.fromkeys(BY_LOADING, not_checked("a check before it failed"))
    return {"model": str(folder), "checks": checks, "versions": versions()}


def require_passed(report: dict[str, Any]) -> None:
    """Raise ReplaceMeError for the first check of `verify` that failed."""
    for name in report["checks"]:
        check = report["checks"][name]
        if check["outcome"] == FAILED:
            raise ReplaceMeError(f"{report['model']}: not a usable export, {name}: {check['reason']}")


def tolerance(stored: set[str], fitted: bool) -> float:
    """Return the allowed |difference| / |logits| of a token, for weights stored in these types of safetensors.

    Both models compute in float32 from the same weights, and differ in the order of the sums: ARITHMETIC. Where a
    transform is folded in, the carrier's new weight is rounded to the stored type, each number by at most u = ROUNDING
    of itself, and the hooks use it as it was before. That moves the carrier's output by about u / 2 of itself, and the
    blocks after it amplify the difference: ROUNDINGS leaves room for that (measured in bfloat16: up to 2.8 u).
    """
    return ARITHMETIC + (ROUNDINGS * max(ROUNDING.get(kind, 0.0) for kind in stored) if fitted else 0.0)


def _check_files(folder: str | Path, weights: LaterChecks) -> None:
    """Check that every file is the one that was written, and that its code is this package's; `weights` go on being
    checked.
    """
    check_merged(folder, weights)
    if is_separate(read_config(folder)):
        check_code(folder)


def _check_tensors(folder: str | Path) -> None:
    """Check that every shard is readable and holds the tensors of the index."""
    checkpoint = open_checkpoint(folder, separate=True)
    beside = {path.name for path in Path(folder).glob("*.safetensors")} - set(checkpoint.shards)
    if beside:
        raise ReplaceMeError(f"{Path(folder) / min(beside)}: a shard that the index does not name")
    if not (Path(folder) / INDEX).is_file():
        return
    indexed = read_json(Path(folder) / INDEX)["weight_map"]
    held = {name: shard for name, (shard, _, _) in checkpoint.tensors.items()}
    wrong = sorted(set(indexed.items()) ^ set(held.items()))
    if wrong:
        raise ReplaceMeError(f"{Path(folder) / INDEX}: tensor {wrong[0][0]} is not in the shard that the index says")


def _check_config(folder: str | Path) -> None:
    """Check that every per-block list of config.json has one entry for each block."""
    config = read_config(folder)
    family = family_of(original_config(config), str(folder))
    blocks = family.sizes(config).get(family.depth)
    for key in family.lists:
        values = family.sizes(config).get(key)
        if values is not None and len(values) != blocks:
            raise ReplaceMeError(f"{folder}/config.json: {key} has {len(values)} entries for {blocks} blocks")


def _check_by_loading(
    expected: Expected,
    record: ModelRecord,
    edited: bool,
    folder: str | Path,
    fresh: Fresh | None,
    device: str,
) -> dict[str, dict[str, Any]]:
    """Return the outcomes of checks that load the folder; raises torch.OutOfMemoryError where a GPU has no room."""
    if is_of_images(read_config(folder)):
        return dict.fromkeys(BY_LOADING, not_checked("encoders of images are not run"))
    memory = outcome(_check_memory, record, device)
    enough = memory["outcome"] == PASSED
    if not enough and device != "cpu":
        _raise_full(memory["reason"])
    tokens = fixed_tokens(read_config(record.folder)) if enough else None
    with ExitStack() as stack:
        fresh = fresh or stack.enter_context(Fresh(read_config(record.folder)["model_type"]))
        asked = question(folder, tokens, device)
        together = enough and not fresh.here and 2 * _needed(record) <= free_memory(device)
        if together:
            fresh.ask(asked)
        logits = expected(tokens, device) if enough and not fresh.here else None
        if not together:  # who is asked first gives its memory back
            fresh.ask(asked)
        try:
            answer = fresh.answer()
        except ReplaceMeError as error:
            answer = {"weights": str(error)}
        if device != "cpu" and (full := [said for said in answer.values() if said and is_full(said)]):
            _raise_full(full[0])
        checks = {name: outcome(_raise, answer[name]) for name in BY_LOADING if name in answer}
        if checks.get("tokenizer", {}).get("outcome") == PASSED:
            checks["tokenizer"] = outcome(_check_template, fresh.work / "chat_template.json", record.folder)
        if checks.get("logits", {}).get("outcome") == PASSED:
            logits = expected(tokens, device) if fresh.here else logits
            allowed = tolerance({kind for *_, kind in open_checkpoint(record.folder).tensors.values()}, edited)
            checks["logits"] = outcome(
                _check_logits, fresh.work / "logits.safetensors", logits, tokens.mask, allowed, _beside(record)
            )
    left_out = not_checked("the weights did not load") if enough else memory
    if is_encoder(read_config(folder)):
        checks["generation"] = not_checked("an encoder generates nothing")
    return {name: checks.get(name, left_out) for name in BY_LOADING}


def _running(cut: Cut, transforms: "Sequence[Transform] | Found") -> tuple[Running, bool]:
    """Return how to run the original model like the new one, and whether that changes weights by computation."""
    if isinstance(transforms, Found):
        return (lambda model, family: running(model, family, cut, transforms)), True
    given = [None if one.is_identity else one for one in transforms]
    return (lambda model, family: shortened(model, family, cut.groups, given)), any(one is not None for one in given)


def _raise_full(reason: str) -> None:
    import torch

    raise torch.OutOfMemoryError(f"out of memory: {reason}")


def _raise(reason: str | None) -> None:
    if reason is not None:
        raise ReplaceMeError(reason)


def _needed(record: ModelRecord) -> float:
    """Return the bytes that a model takes in float32."""
    return 4.4 * record.parameters


def _has_room(record: ModelRecord, gpu: str) -> bool:
    release(gpu)
    return _needed(record) <= free_memory(gpu)


def _check_memory(record: ModelRecord, device: str) -> None:
    """Skip the check of a model that exceeds the free memory, which would end the whole job."""
    needed, free = _needed(record), free_memory(device)
    if needed > free:
        raise NotChecked(f"in float32 the model takes {needed / 1e9:.1f} GB of memory, {free / 1e9:.1f} GB are free")


def _check_template(path: Path, source: str | Path) -> None:
    """Check that every chat template equals the original's, or that neither has one."""
    found, expected = read_json(path), load_tokenizer(source).chat_template
    if found != expected:
        names = [sorted(one) if isinstance(one, dict) else one and "one" for one in (found, expected)]
        raise ReplaceMeError(f"chat templates are not those of the original ({names[0]}, not {names[1]}); merge again")


def _beside(record: ModelRecord) -> str:
    """Return what else logits may differ by: the hooks do without the epsilon of a norm after the MLP."""
    if family_of(read_config(record.folder), record.folder).post_norm is None:
        return ""
    return ", or look what its MLPs put out: the norm after them does not scale what is as small as its epsilon"


def _check_logits(
    path: Path, expected: "torch.Tensor", mask: "torch.Tensor", allowed: float, beside: str
) -> dict[str, float]:
    """Check that the largest |difference| / |logits| over the unmasked tokens is within `allowed`, and return it."""
    from safetensors.torch import load_file

    found = load_file(path)["logits"]
    if found.shape != expected.shape:
        raise ReplaceMeError(f"logits of shape {list(found.shape)}, those of the original are {list(expected.shape)}")
    by_token = found.shape[:2] == mask.shape  # a classifier of texts has one row for each
    found, expected = ((one[mask] if by_token else one).double() for one in (found, expected))
    difference = float(((found - expected).norm(dim=-1) / expected.norm(dim=-1)).max())
    if not difference <= allowed:  # NaN is not
        raise ReplaceMeError(
            f"logits differ from those of the original with the transform applied by {difference:.2g} of their size, "
            f"{allowed:.2g} is allowed; merge again{beside}"
        )
    return {"relative_difference": difference, "allowed": allowed}
