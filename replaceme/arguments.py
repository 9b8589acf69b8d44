"""Check the arguments of the public functions before any work, with a line for each fault."""

import itertools
import os
from collections.abc import Iterable, Iterator
from typing import Annotated, Any, Literal

from pydantic import Field, InstanceOf, PlainValidator

from replaceme.calibration.documents import KINDS, check_source, names_file
from replaceme.config.base import LONGEST_PART, Strict
from replaceme.config.calibrations import MICRO, CalibrationConfig
from replaceme.config.cuts import CutConfig
from replaceme.config.healings import TrainingConfig
from replaceme.config.methods import MethodConfig
from replaceme.core.errors import ReplaceMeError, in_one_line
from replaceme.core.validation import shortened, validated


def _fit(value: Any) -> MethodConfig | None:
    if value is not None and not isinstance(value, MethodConfig):
        raise ValueError(f"a FitConfig, or the section of another method, is needed (found {shortened(value)})")
    return value


class _Shared(Strict):
    """Arguments of both functions, except `texts`, which may be of many kinds."""

    calibration: InstanceOf[CalibrationConfig] | None
    out: str = Field(min_length=1)
    device: Literal["auto", "cpu", "cuda"]
    gpus: int = Field(ge=1)
    verify: bool


class _OfPrune(_Shared):
    """Arguments of `prune`."""

    source: str = Field(min_length=1)
    revision: str | None
    dequantise: bool
    images: str | None
    blocks: int | None
    ratio: float | None
    of: str
    costs: str | None
    cut: InstanceOf[CutConfig] | None
    fit: Annotated[MethodConfig | None, PlainValidator(_fit)]


class _OfHeal(_Shared):
    """Arguments of `heal`."""

    folder: str = Field(min_length=1)
    training: InstanceOf[TrainingConfig]
    original: str | None


def check_arguments(function: Literal["prune", "heal"], **given: Any) -> None:
    """Raise a ReplaceMeError with a line for each unusable argument of `prune` or `heal`."""
    schema = {"prune": _OfPrune, "heal": _OfHeal}[function]
    # a path is as good as its text
    plain = {name: str(one) if isinstance(one, os.PathLike) else one for name, one in given.items()}
    validated(schema, plain, function)


def checked_text(
    function: Literal["prune", "heal"], calibration: CalibrationConfig | None, texts: Any, images: Any
) -> str | list[str] | None:
    """Return the path of a file of texts, a list of texts from any iterable, or None without `texts`.

    Raises ReplaceMeError where there is not one source, and for texts that are none.
    """
    if sum(given is not None for given in (calibration, texts, images)) != 1:
        raise ReplaceMeError(f"{function}: give either texts or calibration (for an encoder: images or calibration)")
    if calibration is not None and calibration.dataset is None and calibration.images is None:
        raise ReplaceMeError(
            f"{function}: mix and prompts name calibrations of a config.yaml; use the workflow, or the steps `mix` and "
            "`generate`"
        )
    found = None if texts is None else _listed(texts, f"{function}: texts")
    if isinstance(found, str):
        calibration = CalibrationConfig(dataset=found)
    elif images is not None:
        calibration = CalibrationConfig(images=str(images))
    if calibration is not None:
        check_source(calibration)
    return found


def _listed(texts: Any, where: str) -> str | list[str]:
    if isinstance(texts, str | os.PathLike):
        path = str(texts)
        if path not in MICRO and not (_may_be_path(path) and names_file(path)):
            raise ReplaceMeError(
                f"{where}: no such file {shortened(path)}; give the path of a file ({', '.join(KINDS)}), or texts in a "
                "list; a data set of the Hub by `calibration`"
            )
        return path
    if isinstance(texts, dict | set | frozenset | bytes | bytearray) or not isinstance(texts, Iterable):
        raise ReplaceMeError(f"{where}: a list of strings, or a path, is needed (found {shortened(texts)})")
    return list(_strings(texts, where))


def _may_be_path(text: str) -> bool:
    return text.isprintable() and len(text) < 4096 and all(len(one.encode()) <= LONGEST_PART for one in text.split("/"))


def _strings(texts: Iterable[Any], where: str) -> Iterator[str]:
    iterator = iter(texts)
    for number in itertools.count():
        try:
            text = next(iterator)
        except StopIteration:
            return
        except Exception as error:  # whatever the caller's own iterator raises
            raise ReplaceMeError(
                f"{where}[{number}]: cannot be had ({type(error).__name__}: {in_one_line(error)})"
            ) from error
        if not isinstance(text, str):
            raise ReplaceMeError(f"{where}[{number}]: a string is needed (found {shortened(text)})")
        if not _is_whole(text):
            raise ReplaceMeError(f"{where}[{number}]: holds half a character (of UTF-16); remove it")
        yield text


def _is_whole(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
