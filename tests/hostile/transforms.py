"""Bad intermediate files: transforms of other cuts and sizes, with NaN, truncated; cuts that are none."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from hostile.stage import Case, edit_json, run

from replaceme.transforms.transform import Transform

MADE = Path("made")
TRANSFORM = MADE / "transform.safetensors"
MERGE = ("merge", "made/model.json", "made/cut.json", "made/transform.safetensors", "--out", "out")
AGAIN = "delete it and run again"


def changed(change: Callable[[torch.Tensor], torch.Tensor]) -> Callable[[], None]:
    """Return the transform with another matrix."""

    def spoil() -> None:
        transform, origin = Transform.load(TRANSFORM)
        Transform(change(transform.matrix), transform.report).save(TRANSFORM, origin)

    return spoil


def with_nan(matrix: torch.Tensor) -> torch.Tensor:
    """Return the matrix with one NaN."""
    matrix = matrix.clone()
    matrix[3, 4] = float("nan")
    return matrix


def raw(change: Callable[[bytes], bytes], path: Path = TRANSFORM) -> Callable[[], None]:
    """Return other bytes."""
    return lambda: path.write_bytes(change(path.read_bytes()))


def other_cut() -> None:
    """Write a cut of another place."""
    assert run(["cut", "made/model.json", "--blocks", "1", "--start", "4", "--out", "made/cut.json"])[0] == 0


def cut(**changes: Any) -> Callable[[], None]:
    """Return other entries of cut.json."""
    return lambda: edit_json("made/cut.json", **changes)


def flipped(content: bytes) -> bytes:
    """Return the last bit flipped."""
    return content[:-1] + bytes([content[-1] ^ 1])


def case(
    spoil: Callable[[], Any], key: str, remedy: str, file: str = "made/transform.safetensors", command=MERGE
) -> Case:
    """Return a case with this change of the files."""
    return Case(spoil, file, key, remedy, command)


CASES = {
    "missing": case(TRANSFORM.unlink, "no such file", "run the step that makes it first"),
    "of another cut": case(other_cut, "fitted for another cut than made/cut.json", "fit it again"),
    "of another size": case(changed(lambda matrix: matrix[:8, :8].clone()), "transform is 8 x 8", "fit it again"),
    "NaN": case(changed(with_nan), "the transform holds NaN", "fit it again"),
    "of another type": case(changed(torch.Tensor.float), "transform is torch.float32", "fit it again"),
    "truncated": case(raw(lambda content: content[:-100]), "corrupted safetensors file", AGAIN),
    "no header": case(raw(lambda content: content[:4]), "corrupted safetensors file", AGAIN),
    "of no bytes": case(raw(lambda content: b""), "corrupted safetensors file", AGAIN),
    "of text": case(raw(lambda content: b"{}" * 50), "corrupted safetensors file", AGAIN),
    "a model's weights": case(
        lambda: TRANSFORM.write_bytes(Path("model/model.safetensors").read_bytes()),
        "not written by replaceme",
        "give a file that a step wrote, or delete it",
    ),
    "another step's": case(
        lambda: TRANSFORM.write_bytes((MADE / "tokens.safetensors").read_bytes()), "holds no transforms", "run again"
    ),
    "cut without groups": case(
        cut(groups=...), "no 'groups' in it", "is it the output of another step?", "made/cut.json"
    ),
    "cut of words": case(cut(groups=[["a", "b"]]), "groups", "choose the cut again", "made/cut.json"),
    "cut of no list": case(cut(groups=7), "groups", "choose the cut again", "made/cut.json"),
    "cut that is no JSON": case(
        lambda: Path("made/cut.json").write_text("{"), "not valid JSON", AGAIN, "made/cut.json"
    ),
    "cut of another model": case(
        cut(model_sha256="0" * 64), "made from another model", "make it again", "made/cut.json"
    ),
    "cut beyond the model, for the Gram": case(
        cut(groups=[[2, 99]]),
        "groups",
        "choose the cut again",
        "made/cut.json",
        ("gram", "made/model.json", "made/tokens.safetensors", "made/cut.json", "--out", "out"),
    ),
    "token file with a flipped bit": case(
        raw(flipped, MADE / "tokens.safetensors"),
        "its content does not match its SHA-256",
        AGAIN,
        "made/tokens.safetensors",
        ("distances", "made/model.json", "made/tokens.safetensors", "--out", "out"),
    ),
    "statistics cut off": case(
        raw(lambda content: content[:-8], MADE / "sum.safetensors"),
        "corrupted safetensors file",
        AGAIN,
        "made/sum.safetensors",
        ("fit", "made/model.json", "made/cut.json", "--statistics", "made/sum.safetensors", "--out", "out"),
    ),
}
