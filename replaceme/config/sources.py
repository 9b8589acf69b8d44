"""Calibrations made of others (`mix`, `prompts`): resolve them, and check their names.

The checks work on plain data, so that they add to the errors of single sections.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from replaceme.config.calibrations import CalibrationConfig
from replaceme.core.errors import printable


def made_of(calibrations: Mapping[str, CalibrationConfig], names: Iterable[str]) -> list[str]:
    """Return the names of calibrations and of all their parts, once each, in order of need."""
    found: dict[str, None] = {}
    for name in names:
        section = calibrations[name]
        parts = section.mix or ([section.prompts] if section.prompts else [])
        found |= dict.fromkeys([*made_of(calibrations, parts), name])
    return list(found)


def unmixed(calibrations: Mapping[str, CalibrationConfig], name: str) -> list[CalibrationConfig]:
    """Return the calibrations whose samples a calibration has: its own, or of a mix those of its parts."""
    mix = calibrations[name].mix
    return [calibrations[name]] if mix is None else [one for part in mix for one in unmixed(calibrations, part)]


def shares(weights: Sequence[float], samples: int) -> list[int]:
    """Divide `samples` by weight; the rest after rounding down goes to the largest remainders."""
    exact = [samples * weight / sum(weights) for weight in weights]
    counts = [int(count) for count in exact]
    by_remainder = sorted(range(len(weights)), key=lambda k: (counts[k] - exact[k], k))
    for k in by_remainder[: samples - sum(counts)]:
        counts[k] += 1
    return counts


def source_problems(sections: Mapping[str, Any]) -> list[str]:
    """Return a line for each calibration with an impossible `mix` or `prompts`, from the plain data of
    `calibrations`.
    """
    plain = {name: section for name, section in sections.items() if isinstance(section, dict)}
    lines = []
    for name, section in plain.items():
        where = f"calibrations.{printable(name)}"
        for key, part in _named(section):
            if part not in sections:
                known = ", ".join(printable(one) for one in sections if one != name) or "none"
                lines.append(f"{where}.{key}: {part!r} is not defined under calibrations; defined: {known}")
        circle = _circle(plain, name, [])
        if circle:
            lines.append(f"{where}: made of itself ({' -> '.join(map(printable, circle))}); break the circle")
        elif isinstance(section.get("mix"), dict):
            lines += _mix_problems(plain, section, where)
        elif isinstance(section.get("prompts"), str):
            lines += _prompt_problems(plain.get(section["prompts"]), section["prompts"], where)
    return lines


def _named(section: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Return (key, name) of all calibrations that a section names."""
    mix = [("mix", part) for part in section["mix"]] if isinstance(section.get("mix"), dict) else []
    prompts = section.get("prompts")
    return [*mix, *([("prompts", prompts)] if isinstance(prompts, str) else [])]


def _circle(plain: Mapping[str, Any], name: str, path: list[str]) -> list[str] | None:
    """Return the way from a calibration back to itself, if there is one."""
    if path and name == path[0]:
        return [*path, name]
    if name in path or name not in plain:
        return None
    ways = (_circle(plain, part, [*path, name]) for _, part in _named(plain[name]))
    return next((way for way in ways if way), None)


def _mix_problems(plain: Mapping[str, Any], section: Mapping[str, Any], where: str) -> list[str]:
    kinds = {part: kind for part in section["mix"] for kind in _kinds(plain, part)}
    pictured = next((part for part in section["mix"] if plain.get(part, {}).get("pictures") is not None), None)
    if pictured is not None:
        return [f"{where}.mix: {printable(pictured)} has pictures, which cannot be mixed; drop it"]
    if len(set(kinds.values())) > 1:
        listed = ", ".join(f"{printable(part)}: {kind}" for part, kind in kinds.items())
        return [f"{where}.mix: text and images cannot be mixed ({listed}); keep one kind"]
    weights = list(section["mix"].values())
    samples = section.get("samples", CalibrationConfig.model_fields["samples"].default)
    numbers = all(isinstance(one, int | float) and 0 < one < 1e100 for one in weights)
    if not numbers or not isinstance(samples, int) or not 0 < samples < 1e9:
        return []  # errors of their own
    lines = []
    for part, count in zip(section["mix"], shares(weights, samples), strict=True):
        there = plain.get(part, {}).get("samples", CalibrationConfig.model_fields["samples"].default)
        if there == "auto":
            lines.append(f"{where}.mix: {part!r} has `samples: auto`; give the parts of a mix numbers of samples")
        elif count == 0:
            lines.append(f"{where}.mix: none of {samples} samples fall to {part!r}; raise samples or its weight")
        elif isinstance(there, int) and part in plain and there < count:
            lines.append(f"{where}.mix: takes {count} samples of {part!r}, which has {there}; raise its samples")
    return lines


def _kinds(plain: Mapping[str, Any], name: str) -> set[str]:
    """Return `text`, `images` or both, the kinds that a calibration ends in; empty where unknown."""
    section = plain.get(name, {})
    if isinstance(section.get("mix"), dict):
        # a part that is made of itself has an error of its own
        return set() if _circle(plain, name, []) else set().union(*(_kinds(plain, part) for part in section["mix"]))
    given = [key for key in ("dataset", "prompts", "images") if section.get(key) is not None]
    return {"images" if given == ["images"] else "text"} if given else set()


def _prompt_problems(source: Any, name: str, where: str) -> list[str]:
    if source is not None and source.get("pictures") is not None:
        return [f"{where}.prompts: {name!r} has pictures, which the model is not asked about; name one of text alone"]
    if source is None or source.get("dataset") is not None:
        return []
    kind = next((key for key in ("images", "mix", "prompts") if source.get(key) is not None), None)
    return [f"{where}.prompts: {name!r} has {kind}, not a dataset to take prompts from"] if kind else []
