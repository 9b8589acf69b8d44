"""A format of quantised weights: which stored tensors hold one weight, and which numbers they stand for.

A weight such as `layers.0.mlp.down_proj.weight` is stored as several tensors, its parts, whose names share a beginning
and differ in their endings: `.qweight`, `.qzeros`, `.scales`. A `Packing` says for one checkpoint which endings those
are and how its parts become the plain weight.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from replaceme.core.errors import ReplaceMeError, in_one_line, printable

if TYPE_CHECKING:
    import torch

AGAIN = "download or copy the checkpoint again"


class Parts:
    """The stored parts of one weight by the endings of their names; each is read when it is asked for.

    `shapes` are known from the headers, and `read` returns the tensor of an ending.
    """

    def __init__(self, name: str, shapes: Mapping[str, tuple[int, ...]], read: "Callable[[str], torch.Tensor]") -> None:
        self.name, self.shapes, self._read = printable(name), shapes, read

    @classmethod
    def of(cls, name: str, tensors: "Mapping[str, torch.Tensor]") -> "Parts":
        """Return the parts of a weight that are in memory."""
        return cls(name, {end: tuple(one.shape) for end, one in tensors.items()}, lambda end: tensors[end])

    def __contains__(self, ending: str) -> bool:
        return ending in self.shapes

    def __getitem__(self, ending: str) -> "torch.Tensor":
        self.shape(ending)
        return self._read(ending)

    def shape(self, ending: str) -> tuple[int, ...]:
        """Return the shape of a part; raises ReplaceMeError where it is not stored."""
        if ending not in self.shapes:
            found = ", ".join(sorted(self.shapes))
            raise ReplaceMeError(f"{self.name}: no part {ending!r} is stored beside {found!r}; {AGAIN}")
        return self.shapes[ending]

    def mismatch(self, what: str) -> ReplaceMeError:
        """Return the error for parts that do not belong together."""
        shown = ", ".join(f"{end or 'weight'} {list(shape)}" for end, shape in sorted(self.shapes.items()))
        return ReplaceMeError(f"{self.name}: {what} ({shown}); {AGAIN}")


@dataclass(frozen=True)
class Packing:
    """The way in which one checkpoint packs its weights.

    endings: for each ending of a stored part that of the plain
    weight; "" stands for the plain name itself, whose tensor alone is a weight that is not packed. packed: endings of
    which a packed weight has one. unused: endings of tensors that only kernels for quantised activations or caches
    read. shape: of the plain weight. plain: the weight in a floating type, each number rounded once.
    """

    endings: Mapping[str, str]
    packed: tuple[str, ...]
    shape: Callable[[Parts], tuple[int, ...]]
    plain: "Callable[[Parts, torch.dtype], torch.Tensor]"
    unused: tuple[str, ...] = ()

    def plain_shape(self, parts: Parts) -> tuple[int, ...]:
        """Return the shape of the plain weight; raises ReplaceMeError where the parts do not belong together."""
        with _one_line(parts):
            return tuple(self.shape(parts))

    def unpacked(self, parts: Parts, dtype: "torch.dtype") -> "torch.Tensor":
        """Return the plain weight; raises ReplaceMeError where the parts do not belong together."""
        shape = self.plain_shape(parts)
        with _one_line(parts):
            found = self.plain(parts, dtype)
        if tuple(found.shape) != shape:
            raise parts.mismatch(f"unpacked to {list(found.shape)}, not {list(shape)}")
        return found

    def weights(self, names: Iterable[str], where: str) -> dict[str, dict[str, str]]:
        """Return for each plain tensor its stored names by ending; those of packed weights have more than "".

        Raises ReplaceMeError where only scales are stored.
        """
        found: dict[str, dict[str, str]] = {}
        longest_first = sorted(self.endings, key=len, reverse=True)
        for name in names:
            if name.endswith(self.unused) and self.unused:
                continue
            ending = next((one for one in longest_first if name.endswith(one)), None)
            if ending is None:
                found.setdefault(name, {})[""] = name
            else:
                plain = name[: len(name) - len(ending)] + self.endings[ending]
                found.setdefault(plain, {})[ending] = name
        for plain, parts in found.items():
            if set(parts) != {""} and not set(parts) & set(self.packed):
                rest = printable(", ".join(sorted(parts.values())))
                raise ReplaceMeError(f"{where}: {printable(plain)}: only {rest} stored; {AGAIN}")
        return found


@contextmanager
def _one_line(parts: Parts) -> Iterator[None]:
    """Raise ReplaceMeError for what broken parts make torch or Python raise."""
    try:
        yield
    except (RuntimeError, IndexError, ValueError, TypeError) as error:
        raise parts.mismatch(f"cannot be unpacked: {in_one_line(error)}") from error


def refused(what: str, known: str) -> ReplaceMeError:
    """Return the error for a variant of a format that is not read."""
    return ReplaceMeError(f"quantised as {printable(what)}, which is not read ({known}); give full-precision weights")


def chosen(config: Mapping[str, Any], key: str, default: Any, known: Iterable[Any], form: str) -> Any:
    """Return an entry of a quantization_config; raises ReplaceMeError for a value that is not read."""
    value = config.get(key, default)
    value = default if value is None else value
    if value not in tuple(known):
        raise refused(f"{form} with {key} {value!r}", f"read are {', '.join(map(str, known))}")
    return value
