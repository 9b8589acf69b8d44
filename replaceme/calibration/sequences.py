"""Calibration sequences: token ids with a mask, alone or with the pictures that stand among them."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from replaceme.calibration.samples import Samples
from replaceme.core.errors import ReplaceMeError

if TYPE_CHECKING:
    import torch

IDS, MASK, PLACES, ROWS = "input_ids", "attention_mask", "picture_tokens", ".rows"  # names of stored tensors


@dataclass(frozen=True)
class Tokens(Samples):
    """Calibration sequences: `input_ids` int64 and `mask` bool (true on real tokens), both [samples, tokens]."""

    input_ids: "torch.Tensor"
    mask: "torch.Tensor"

    def __getitem__(self, part: "slice | torch.Tensor") -> "Tokens":
        """Select some of the sequences."""
        return Tokens(self.input_ids[part], self.mask[part])

    def join(self, *others: "Tokens") -> "Tokens":
        """Join other sequences after these; shorter ones are padded to the longest, and the padding masked."""
        import torch
        from torch.nn.functional import pad

        width = max(part.mask.shape[1] for part in (self, *others))
        wider = [[pad(x, (0, width - x.shape[1])) for x in (part.input_ids, part.mask)] for part in (self, *others)]
        return Tokens(*(torch.cat(parts) for parts in zip(*wider, strict=True)))

    def columns(self, part: slice) -> "Tokens":
        """Select some of the columns of every sequence."""
        return Tokens(self.input_ids[:, part], self.mask[:, part])

    def begun(self, length: int) -> "Tokens":
        """Return the first `length` tokens of every sequence."""
        return self.columns(slice(length))

    def tensors(self) -> "dict[str, torch.Tensor]":
        """Return ids and mask."""
        return {IDS: self.input_ids, MASK: self.mask}

    @property
    def predicted(self) -> "torch.Tensor":
        """Mask of the tokens that a language model may be asked to predict, bool [samples, tokens]."""
        return self.mask

    @property
    def beside(self) -> "dict[str, torch.Tensor]":
        """Arguments of the model beside ids and mask, by name; none of text."""
        return {}


@dataclass(frozen=True)
class Pictured(Tokens):
    """Sequences with pictures: `picture_tokens` bool [samples, tokens] is true where a picture stands.

    `by_token` are further arguments of the model [samples, tokens], such as `token_type_ids`; of those `by_picture`,
    such as `pixel_values`, every sample has a tensor of its own, of as many rows as its pictures make.
    """

    picture_tokens: "torch.Tensor"
    by_token: "Mapping[str, torch.Tensor]"
    by_picture: "Mapping[str, tuple[torch.Tensor, ...]]"

    def __getitem__(self, part: "slice | torch.Tensor") -> "Pictured":
        """Select some of the sequences with their pictures."""
        import torch

        numbers = torch.arange(len(self))[part].tolist()
        return self._of(
            lambda one: one[part], {name: tuple(of[k] for k in numbers) for name, of in self.by_picture.items()}
        )

    def join(self, *others: Any) -> "Pictured":
        """Raise ReplaceMeError: sequences with pictures are not mixed."""
        raise ReplaceMeError("sequences with pictures cannot be mixed; calibrate on one data set that holds all rows")

    def columns(self, part: slice) -> "Pictured":
        """Select some of the columns, which have to keep every token of a picture."""
        return self._of(lambda one: one[:, part], self.by_picture)

    def begun(self, length: int) -> "Pictured":
        """Return whole sequences, however long: a picture cannot be cut."""
        return self

    def tensors(self) -> "dict[str, torch.Tensor]":
        """Return ids and mask, and the rest by name; of what is by picture all rows, and how many each sample has."""
        import torch

        rows = {f"{name}{ROWS}": torch.tensor([len(one) for one in of]) for name, of in sorted(self.by_picture.items())}
        return {**super().tensors(), PLACES: self.picture_tokens, **rows, **dict(sorted(self.beside.items()))}

    @property
    def predicted(self) -> "torch.Tensor":
        """Mask of the tokens of text, as no language model predicts a picture."""
        return self.mask & ~self.picture_tokens

    @property
    def beside(self) -> "dict[str, torch.Tensor]":
        """Arguments of the model beside ids and mask: of pictures all rows, in the order of the samples."""
        import torch

        return {**self.by_token, **{name: torch.cat(of) for name, of in self.by_picture.items()}}

    def _of(self, change: Any, by_picture: "Mapping[str, tuple[torch.Tensor, ...]]") -> "Pictured":
        by_token = {name: change(one) for name, one in self.by_token.items()}
        return Pictured(*map(change, (self.input_ids, self.mask, self.picture_tokens)), by_token, by_picture)


def stored_sequences(tensors: "Mapping[str, torch.Tensor]") -> Tokens:
    """Return the sequences that `Tokens.tensors` or `Pictured.tensors` gave."""
    tokens = Tokens(tensors[IDS], tensors[MASK])
    if PLACES not in tensors:
        return tokens
    by_picture = {
        name: tensors[name].split(tensors[f"{name}{ROWS}"].tolist())
        for name in (rows.removesuffix(ROWS) for rows in tensors if rows.endswith(ROWS))
    }
    known = {IDS, MASK, PLACES, *by_picture}
    by_token = {name: one for name, one in tensors.items() if name not in known and not name.endswith(ROWS)}
    return Pictured(tokens.input_ids, tokens.mask, tensors[PLACES], by_token, by_picture)
