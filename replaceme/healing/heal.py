"""Heal a merged checkpoint: load it, train, write the trained weights back, load it again and compare."""

import gc
import logging
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from replaceme.activations.capture import model_inputs
from replaceme.activations.language_loss import sequence_losses
from replaceme.calibration.sequences import Pictured
from replaceme.calibration.tokens import Tokens
from replaceme.config.healings import DISTILLATION, LORA, TrainingConfig
from replaceme.core.cut_record import Cut
from replaceme.core.errors import ReplaceMeError
from replaceme.core.files import RECORD, write_json
from replaceme.core.memory import release
from replaceme.core.places import Place
from replaceme.core.redaction import published
from replaceme.core.uncertainty import paired_log_perplexity
from replaceme.healing.endings import with_endings
from replaceme.healing.loop import schedule_of, train
from replaceme.healing.original import Teacher, find_original
from replaceme.healing.parameters import Trainable, trainable
from replaceme.models.checkpoints import Checkpoint, check_merged, open_checkpoint, read_config, resolve
from replaceme.models.loading import Held, load_causal_model
from replaceme.models.model_config import check_length, family_of, is_encoder, pick_dtype
from replaceme.models.model_record import ModelRecord
from replaceme.provenance.environment import versions
from replaceme.surgery.edits import Changes, Content
from replaceme.surgery.model_card import healed_card, licence_of
from replaceme.surgery.write_checkpoint import check_out, merging
from replaceme.transforms.resume import State, here
from replaceme.verification.verify import require_passed, verify_against

if TYPE_CHECKING:
    from torch import nn

log = logging.getLogger(__name__)
STATE = ".{name}-healing.safetensors"
POINTS = 500  # of the loss curve
KEPT = ("cut", "fit", "placement")  # of the record of the shortening
UNSEEN = ("checkpoint_seconds",)  # options that change no number


@dataclass(frozen=True)
class Output:
    """The output of a healing: the folder of the checkpoint, the file of the report if any; `verify`: whether to
    check.
    """

    folder: str | Path
    report: str | Path | None = None
    verify: bool = True


def heal_checkpoint(
    folder: str | Path,
    tokens: Tokens,
    text: dict[str, Any],
    options: TrainingConfig,
    output: Output,
    device: str,
    gpus: int = 1,
    original: str | Path | None = None,
) -> dict[str, Any]:
    """Train the merged checkpoint in `folder` on tokens, write the result, and return the report.

    `text` says where the tokens come from; whole documents are trained on with the token for their end (`endings`). The
    report (JSON-able) has the options, the loss of each step, thinned to `POINTS` means (nats per token), the loss of
    the held-out sequences before and, with the saved weights, after, and the outcomes of the checks; of a distillation,
    from the `original` model or the one in the checkpoint's record, also `kl`, their divergence. An interrupted healing
    goes on from its checkpoint, a hidden file beside the output's folder, to the same bits. Raises
    ReplaceMeError on bad input before anything is trained, and where the result is not right.
    """
    out = output.folder
    record, shortened = _source(folder, out)
    config = read_config(folder)
    training, held_out = _split(with_endings(tokens, text, folder), options)
    check_length(config, training.input_ids.shape[1], str(folder))
    dtype = pick_dtype(options.dtype, device, config)
    held = Held(gpus)
    teacher = _teacher(options, shortened, original, folder, (dtype, device, held))
    model = load_causal_model(folder, dtype, device, held)
    checkpoint = open_checkpoint(folder)

    before = _measured(model, held_out, teacher)
    trained = trainable(model, checkpoint, options, places_of(Cut.of(shortened["cut"])))
    numbers = options.model_dump(exclude={*UNSEEN, *(() if options.train == "lora" else LORA)})
    packages = versions("peft") if options.train == "lora" else versions()
    origin = {"model_sha256": record.sha256, "tokens_sha256": tokens.digest(), "text": text}
    state = _state(out, {**numbers, **origin, "versions": packages, "gpus": gpus}, options, device)
    losses = train(model, trained, training, options, state, teacher)
    count = sum(parameter.numel() for parameter in trained.parameters.values())
    healing = {**numbers, "dtype": dtype, "trained_parameters": count}
    about = {"healing": healing, "origin": origin, "versions": packages}
    _write(checkpoint, trained, record, {**_history(record, shortened), **about}, out)
    if teacher is not None:
        teacher.rest()  # the checks need the memory
    # of a model over several GPUs as `verify` does, which in float32 would need twice as many
    checks = _checked(model, trained, record, out, device if gpus == 1 else "cpu") if output.verify else None
    del model, trained
    gc.collect()
    after = _measured(load_causal_model(out, dtype, device, held), held_out, teacher)
    loss = _loss(before[0], after[0])
    log.info("held-out loss %.4f before, %.4f after %d steps", loss["before"], loss["after"], options.steps)
    curve = curve_of(losses, options)
    kl = {} if teacher is None else {"kl": {"before": before[1], "after": after[1]}}
    report = {**healing, "loss": loss, **kl, "curve": curve, "checks": checks, **origin, "versions": packages}
    if output.report is not None:
        write_json(output.report, report)
    state.remove()
    return report


def places_of(cut: Cut) -> list[Place]:
    """Return the places where something was removed, as numbered after it."""
    return [start - sum(b - a for a, b in cut.groups[:number]) for number, (start, _) in enumerate(cut.groups)]


def curve_of(losses: list[float], options: TrainingConfig) -> list[dict[str, float]]:
    """Return means of the losses over equal runs of steps: the last step of each run, its loss, its learning rate."""
    width = -(-len(losses) // POINTS)
    runs = [range(k, min(k + width, len(losses))) for k in range(0, len(losses), width)]
    return [
        {
            "step": run[-1] + 1,
            "loss": sum(losses[k] for k in run) / len(run),
            "learning_rate": schedule_of(options).rate(run[-1]),
        }
        for run in runs
    ]


def _source(folder: str | Path, out: str | Path) -> tuple[ModelRecord, dict[str, Any]]:
    """Return the model record of a merged folder, and the record of its shortening; raises ReplaceMeError for other
    folders.
    """
    if not (Path(folder) / RECORD).is_file():
        read_config(folder)  # says first where there is no model at all
        raise ReplaceMeError(
            f"{folder}: no replaceme.json; healing takes a folder made by `replaceme merge` or `prune`"
        )
    shortened = check_merged(folder)  # before any other file of it is read
    if "cut" not in shortened:
        raise ReplaceMeError(
            f"{folder}: not shortened yet; healing takes a folder made by `replaceme merge` or `prune`"
        )
    config = read_config(folder)
    if is_encoder(config):
        raise ReplaceMeError(f"{folder}: an encoder, which has no loss to heal by; give a language model")
    family_of(config, str(folder))
    check_out(folder, out)
    return resolve(str(folder)), shortened


def _teacher(
    options: TrainingConfig,
    shortened: dict[str, Any],
    original: str | Path | None,
    folder: str | Path,
    how: tuple[str, str, Held],
) -> Teacher | None:
    """Return the original model of a distillation, None for other objectives, which take none."""
    if options.objective == DISTILLATION:
        return Teacher(find_original(shortened, original, folder), *how)
    if original is not None:
        raise ReplaceMeError(f"healing: objective {options.objective} takes no original model; drop it")
    return None


def _measured(
    model: "nn.Module", tokens: Tokens, teacher: Teacher | None
) -> tuple[tuple[torch.Tensor, torch.Tensor], float | None]:
    """Return the losses of sequences, and with a teacher the divergence from it."""
    return sequence_losses(model, tokens), None if teacher is None else teacher.divergence(model, tokens)


def _split(tokens: Tokens, options: TrainingConfig) -> tuple[Tokens, Tokens]:
    """Split the tokens into (training sequences, held-out ones)."""
    if not isinstance(tokens, Tokens):
        raise ReplaceMeError("healing: trains on text, not on images; give tokens of a `dataset`")
    if isinstance(tokens, Pictured):
        raise ReplaceMeError("healing: trains on text alone; give tokens without `pictures`")
    if len(tokens) <= options.held_out:
        raise ReplaceMeError(
            f"healing: {len(tokens)} sequences, of which {options.held_out} are held out; raise `samples` of the text, "
            "or lower `held_out`"
        )
    return tokens[: -options.held_out], tokens[-options.held_out :]


def _state(out: str | Path, what: dict[str, Any], options: TrainingConfig, device: str) -> State:
    """Return the saved state of exactly this healing; one of another model, text, option, code or machine is
    ignored.
    """
    path = Path(out).with_name(STATE.format(name=Path(out).name))
    return State(path, {**what, **here(device, "replaceme.healing.heal")}, options.checkpoint_seconds)


def _history(record: ModelRecord, shortened: dict[str, Any]) -> dict[str, Any]:
    """Describe the origin of a healed checkpoint: the shortened one, the original, and the shortening."""
    return {
        "source": record.provenance,
        "original": shortened.get("original", shortened["source"]),
        **{key: shortened[key] for key in KEPT},
        **{key: shortened[key] for key in ("lineage",) if key in shortened},
    }


def _write(
    checkpoint: Checkpoint, trained: Trainable, record: ModelRecord, provenance: dict[str, Any], out: str | Path
) -> None:
    """Write the checkpoint of a record with the trained weights to folder `out`."""
    with merging(checkpoint.folder, out, record.files) as merger:
        shown = published(provenance)
        card = healed_card(shown, licence_of(checkpoint.folder))
        merger.write(Content([], Changes(trained.edits()), checkpoint.config), shown, card)


def _checked(
    model: "nn.Module", trained: Trainable, record: ModelRecord, out: str | Path, device: str
) -> dict[str, Any]:
    """Return the outcomes of the checks of the saved folder against the trained model, in float32 on a device, or on
    the CPU where that has no room.

    The model is of no use afterwards.
    """
    found: list[torch.Tensor] = []

    def expected(tokens: Tokens, device: str) -> torch.Tensor:
        if not found:  # else the model has given its memory back
            found.append(_last_logits(model, trained, tokens, device))
        return found[0]

    report = verify_against(expected, record, True, out, device=device)
    require_passed(report)
    return report["checks"]


def _last_logits(model: "nn.Module", trained: Trainable, tokens: Tokens, device: str) -> torch.Tensor:
    """Return the logits of the trained model, float32 on the CPU, and free its weights, which are of no use then."""
    from accelerate.hooks import remove_hook_from_module

    remove_hook_from_module(model, recurse=True)  # of a model over several GPUs, which move what a block is given
    whole = model.to(device).float()
    with torch.no_grad():
        for name, follower in trained.followers.items():
            follower.data = trained.parameters[name].detach().to(device)
    with torch.inference_mode():
        logits = whole(**model_inputs(whole, tokens)).logits.cpu()
    for tensor in (*whole.parameters(), *whole.buffers()):
        tensor.data = torch.empty(0)
    release(device)  # the fresh process needs the memory
    return logits


def _loss(before: tuple[torch.Tensor, torch.Tensor], after: tuple[torch.Tensor, torch.Tensor]) -> dict[str, float]:
    """Return the mean losses of the held-out tokens, and their difference with its standard error, paired over
    sequences.
    """
    (first, counts), (second, _) = before, after
    total = counts.sum()
    difference, stderr = paired_log_perplexity(*(torch.stack([-sums, counts], 1).tolist() for sums in (second, first)))
    return {
        "before": float(first.sum() / total),
        "after": float(second.sum() / total),
        "difference": difference,
        "difference_stderr": stderr,
        "sequences": len(counts),
        "tokens": int(total),
    }
