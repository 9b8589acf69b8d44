"""Weighted Gram and cross products of rows in float64: `gram = sum_k w_k x_k x_k^T`, `cross = sum_k v_k x_k r_k^T`.

x [tokens, hidden] and the terms of r = a - b + c [tokens, other] are bfloat16, float16 or float32 (float64 goes through
the torch reference), of any strides; w, v [tokens] are optional row weights; rows whose mask is false are skipped, so
NaN there is harmless. With cross come, in the same launch and pass, `sum w x`, `sum w r` and `sum w |r|^2`. Everything
is float64 and within 1e-6 (relative Frobenius) of the float64 computation. Source: the normal equations of eq. 6 of
arXiv 2505.02819.

How: rows are split into 16-bit parts whose products are exact (`parts.py`), and the parts multiplied on tensor cores
in short runs (`products.py`, on Hopper `products_hopper.py`). The cost in products of one part, x 16-bit: gram one half
(the lower tiles), weighted three halves; cross three, `rounded` one; float32 x: six where 16-bit x has one.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from types import ModuleType

import torch

from replaceme.core.errors import ReplaceMeError
from replaceme.kernels import parts
from replaceme.kernels.arguments import DTYPES, describe, hopper_path
from replaceme.kernels.products import Product, add_products, triton

REFERENCE_CHUNK_BYTES = 64 * 2**20  # of the float64 copy of one operand
SLAB_BYTES = 4 * 2**30  # of the parts held at once
SLAB_ROWS = 65536


@dataclass(frozen=True)
class Sums:
    """gram [hidden, hidden], cross [hidden, other], sum_x [hidden], sum_r [other], energy [], all float64."""

    gram: torch.Tensor
    cross: torch.Tensor
    sum_x: torch.Tensor
    sum_r: torch.Tensor
    energy: torch.Tensor

    @staticmethod
    def shapes(hidden: int, other: int) -> dict[str, tuple[int, ...]]:
        """Return the shape of each sum, for x of `hidden` and r of `other` columns."""
        return {"gram": (hidden, hidden), "cross": (hidden, other), "sum_x": (hidden,), "sum_r": (other,), "energy": ()}

    @classmethod
    def zeros(cls, hidden: int, other: int, device: torch.device | str = "cpu") -> "Sums":
        """Return empty sums for x of `hidden` and r of `other` columns."""
        shapes = cls.shapes(hidden, other)
        return cls(**{name: torch.zeros(shape, dtype=torch.float64, device=device) for name, shape in shapes.items()})

    @classmethod
    def fresh(cls, hidden: int, other: int, device: torch.device) -> "Sums":
        """Return sums whose matrices are uninitialised: the first product fills them."""
        gram, cross = (torch.empty(hidden, columns, dtype=torch.float64, device=device) for columns in (hidden, other))
        sum_x, sum_r, energy = torch.zeros(hidden + other + 1, dtype=torch.float64, device=device).split(
            (hidden, other, 1)
        )
        return cls(gram, cross, sum_x, sum_r, energy[0])


@dataclass(frozen=True)
class _Rows:
    """The checked arguments of one call; terms is empty for `gram`."""

    x: torch.Tensor
    terms: tuple[torch.Tensor, ...]
    weights: torch.Tensor | None
    cross_weights: torch.Tensor | None
    mask: torch.Tensor | None
    rounded: bool

    def part(self, rows: slice) -> "_Rows":
        """Return the arguments for a range of rows; a term that is x itself stays so."""
        x = self.x[rows]
        terms = tuple(x if term is self.x else term[rows] for term in self.terms)
        weights, cross_weights, mask = (
            None if given is None else given[rows] for given in (self.weights, self.cross_weights, self.mask)
        )
        return _Rows(x, terms, weights, cross_weights, mask, self.rounded)

    @property
    def widest(self) -> int:
        """Columns of the widest of x and the terms, at least 1."""
        return max(self.x.shape[1], *(term.shape[1] for term in self.terms), 1)

    def split(self, size: int) -> Iterator["_Rows"]:
        """Yield ranges of `size` rows, one after the other."""
        return (self.part(slice(start, start + size)) for start in range(0, self.x.shape[0], size))


def gram_reference(
    x: torch.Tensor,
    weights: torch.Tensor | None = None,
    mask: torch.Tensor | None = None,
    out: torch.Tensor | None = None,
) -> torch.Tensor:
    """Compute `sum_k w_k x_k x_k^T` in plain torch float64; arguments and result as in `gram`."""
    rows = _checked(x, (), weights, None, mask)
    out = _out(out, "out", (x.shape[1], x.shape[1]), x.device)
    total = torch.zeros_like(out)
    for part in _chunks(rows):
        kept, w = _kept(part, part.x), _kept(part, part.weights)
        total.addmm_((kept if w is None else kept * w[:, None]).T, kept)
    lower = total.tril()  # a product's two triangles may differ in the last bit
    return out.add_(lower).add_(lower.tril(-1).mT)


def gram_cross_reference(
    x: torch.Tensor,
    terms: tuple[torch.Tensor, ...],
    weights: torch.Tensor | None = None,
    cross_weights: torch.Tensor | None = None,
    mask: torch.Tensor | None = None,
    out: Sums | None = None,
    rounded: bool = False,
) -> Sums:
    """Compute `gram_cross` in plain torch float64; arguments and result as there."""
    rows = _checked(x, terms, weights, cross_weights, mask, rounded)
    out = _sums(out, rows)
    gram_reference(x, weights, mask, out.gram)
    for part in _chunks(rows):
        kept, w, v = _kept(part, part.x), _kept(part, part.weights), _kept(part, part.cross_weights)
        r = sum(sign * _kept(part, term) for sign, term in zip((1, -1, 1), part.terms, strict=False))
        r = r.to(x.dtype).double() if rounded else r
        w = torch.ones(len(r), dtype=torch.float64, device=r.device) if w is None else w
        out.cross.addmm_(kept.T, r * (w if v is None else v)[:, None])
        out.sum_x.add_(w @ kept)
        out.sum_r.add_(w @ r)
        out.energy.add_(w @ r.square().sum(dim=1))
    return out


def _chunks(rows: _Rows) -> Iterator[_Rows]:
    """Yield ranges of rows whose float64 copies fit in REFERENCE_CHUNK_BYTES."""
    return rows.split(max(1, REFERENCE_CHUNK_BYTES // (8 * rows.widest)))


def _kept(rows: _Rows, given: torch.Tensor | None) -> torch.Tensor | None:
    if given is None:
        return None
    return (given if rows.mask is None else given[rows.mask]).double()


def gram(
    x: torch.Tensor,
    weights: torch.Tensor | None = None,
    mask: torch.Tensor | None = None,
    out: torch.Tensor | None = None,
) -> torch.Tensor:
    """Compute the Gram matrix of rows, `sum_k w_k x_k x_k^T` over the rows whose mask is true.

    x [tokens, hidden], any float dtype and strides; weights [tokens], any float dtype, not negative, ones when None;
    mask [tokens] bool; the result is float64 [hidden, hidden], exactly symmetric. With `out` (float64, contiguous,
    symmetric) it is added into `out` in place. CUDA rows go through Triton, CPU rows and float64 through
    `gram_reference`. Raises ReplaceMeError on inconsistent shapes, dtypes or devices, before any launch.
    """
    if _wants_triton(x):
        return gram_triton(x, weights, mask, out)
    return gram_reference(x, weights, mask, out)


def gram_cross(
    x: torch.Tensor,
    terms: tuple[torch.Tensor, ...],
    weights: torch.Tensor | None = None,
    cross_weights: torch.Tensor | None = None,
    mask: torch.Tensor | None = None,
    out: Sums | None = None,
    rounded: bool = False,
) -> Sums:
    """Compute `gram`, and with r = a - b + c of one to three terms `cross = sum_k v_k x_k r_k^T`, in one launch.

    terms [tokens, other], one to three, any float dtype and strides; cross_weights v [tokens], the weights w when
    None, of any sign; `sum_x = sum w x`, `sum_r = sum w r`, `energy = sum w |r|^2`; the rest as in `gram`. With `out`
    everything is added in place. r is exact to float32; `rounded` rounds it once to x's dtype, for all sums alike: a
    third of the work of cross, and 2^-9 (bfloat16) off in each element of r.
    """
    if _wants_triton(x, *terms):
        return gram_cross_triton(x, terms, weights, cross_weights, mask, out, rounded)
    return gram_cross_reference(x, terms, weights, cross_weights, mask, out, rounded)


def gram_triton(
    x: torch.Tensor,
    weights: torch.Tensor | None = None,
    mask: torch.Tensor | None = None,
    out: torch.Tensor | None = None,
) -> torch.Tensor:
    """Compute `gram` by the Triton kernels on any device; CPU tensors need TRITON_INTERPRET=1."""
    rows = _checked(x, (), weights, None, mask)
    shape = (x.shape[1], x.shape[1])
    fresh = out is None and len(x) > 0
    target = torch.empty(shape, dtype=torch.float64, device=x.device) if fresh else _out(out, "out", shape, x.device)
    for number, slab in enumerate(_slabs(_single(rows))):
        kept = _row_numbers(slab)
        product = _gram_product(slab, kept, _left(slab, kept), target)
        _launch([replace(product, fresh=fresh and number == 0)])
    return target


def gram_cross_triton(
    x: torch.Tensor,
    terms: tuple[torch.Tensor, ...],
    weights: torch.Tensor | None = None,
    cross_weights: torch.Tensor | None = None,
    mask: torch.Tensor | None = None,
    out: Sums | None = None,
    rounded: bool = False,
) -> Sums:
    """Compute `gram_cross` by the Triton kernels on any device; CPU tensors need TRITON_INTERPRET=1."""
    rows = _checked(x, terms, weights, cross_weights, mask, rounded)
    fresh = out is None and len(x) > 0
    target = _sums(out, rows, Sums.fresh if fresh else Sums.zeros)
    for number, slab in enumerate(_slabs(_single(rows))):
        kept = _row_numbers(slab)
        left = _left(slab, kept)
        right = _right(slab, kept, left, target)
        products = [_gram_product(slab, kept, left, target.gram), Product(left, right, target.cross)]
        _launch([replace(product, fresh=fresh and number == 0) for product in products])
    return target


def _wants_triton(*tensors: torch.Tensor) -> bool:
    return triton is not None and tensors[0].is_cuda and all(tensor.dtype != torch.float64 for tensor in tensors)


def _slabs(rows: _Rows) -> Iterator[_Rows]:
    """Yield ranges of rows whose parts, six of two bytes at most, fit in SLAB_BYTES."""
    size = min(SLAB_ROWS, SLAB_BYTES // (rows.widest * 2 * 6)) // parts.ALIGNMENT * parts.ALIGNMENT
    return rows.split(max(parts.ALIGNMENT, size))


def _single(rows: _Rows) -> _Rows:
    """Return the arguments with contiguous float32 weights, as the kernels read them."""
    weights, cross_weights = (
        None if given is None else given.float().contiguous() for given in (rows.weights, rows.cross_weights)
    )
    return replace(rows, weights=weights, cross_weights=cross_weights)


def _row_numbers(rows: _Rows) -> torch.Tensor | None:
    """Return the numbers of the rows that the mask keeps, int64; None when it keeps all."""
    if rows.mask is None:
        return None
    kept = rows.mask.nonzero().squeeze(1)
    return None if len(kept) == len(rows.mask) else kept


def _part_dtype(rows: _Rows) -> torch.dtype:
    """Return the dtype of the parts: that of 16-bit x, but float16 only where nothing has to be split."""
    exact = not rows.terms or rows.rounded
    half = rows.x.dtype == torch.float16 and exact and rows.weights is None and rows.cross_weights is None
    return torch.float16 if half else torch.bfloat16


def _left(rows: _Rows, kept: torch.Tensor | None) -> parts.Operand:
    dtype = _part_dtype(rows)
    operand = parts.as_operand(rows.x) if rows.x.dtype == dtype and kept is None else None
    if operand is None:
        number = 1 if rows.x.dtype == dtype else parts.PARTS[rows.x.dtype]
        operand = parts.form((rows.x,), parts.Rows(kept), parts.Wanted(number, dtype))
    return operand


def _gram_product(rows: _Rows, kept: torch.Tensor | None, left: parts.Operand, out: torch.Tensor) -> Product:
    right = left
    if rows.weights is not None:
        right = parts.form((rows.x,), parts.Rows(kept, scale=rows.weights), parts.Wanted(3, torch.bfloat16))
    return Product(left, right, out, symmetric=True)


def _right(rows: _Rows, kept: torch.Tensor | None, left: parts.Operand, out: Sums) -> parts.Operand:
    """Return the parts of v r, and the sums of the same pass added into `out`."""
    dtype = left.matrix.dtype
    scale = rows.weights if rows.cross_weights is None else rows.cross_weights
    term = next((n for n, given in enumerate(rows.terms) if given is rows.x), -1)  # its sum costs no second reading
    one = rows.rounded and scale is None and rows.x.dtype == dtype
    wanted = parts.Wanted(1 if one else 3, dtype, rows.x.dtype if rows.rounded else None)
    totals = parts.Totals(out.sum_r, out.energy, None if term < 0 else out.sum_x, term)
    if term < 0:
        only_sums = parts.Wanted(0, dtype), parts.Totals(sum_term=out.sum_x)
        parts.form((rows.x,), parts.Rows(kept, None, rows.weights), *only_sums)
    return parts.form(rows.terms, parts.Rows(kept, scale, rows.weights), wanted, totals)


def _hopper() -> ModuleType:
    from replaceme.kernels import products_hopper

    return products_hopper


def _launch(products: list[Product]) -> None:
    for product in products:
        if product.fresh and not product.left.rows:
            product.out.zero_()
    products = [product for product in products if product.out.numel() and product.left.rows]
    if not products:
        return
    hopper = hopper_path(_hopper) if products[0].out.is_cuda else None
    serving = hopper.add_products if hopper is not None and hopper.serves(products) else add_products
    serving(products)


def _checked(
    x: torch.Tensor,
    terms: tuple[torch.Tensor, ...],
    weights: torch.Tensor | None,
    cross_weights: torch.Tensor | None,
    mask: torch.Tensor | None,
    rounded: bool = False,
) -> _Rows:
    """Return the checked arguments; raises ReplaceMeError that says which one is wrong."""
    names = ("x", *(f"term {n}" for n in range(len(terms))))
    for name, rows in zip(names, (x, *terms), strict=True):
        if rows.ndim != 2 or rows.dtype not in DTYPES:
            raise ReplaceMeError(f"gram: {name} must be [tokens, columns] floats, got {describe(rows)}")
        if rows.shape[0] != x.shape[0]:
            raise ReplaceMeError(f"gram: x and {name} must have as many rows, got {x.shape[0]} and {rows.shape[0]}")
        if name != "x" and rows.shape != terms[0].shape:
            raise ReplaceMeError(f"gram: the terms must have one shape, got {[list(term.shape) for term in terms]}")
    if len(terms) > 3:
        raise ReplaceMeError(f"gram: r = a - b + c has one to three terms, got {len(terms)}")
    for name, given in (("weights", weights), ("cross_weights", cross_weights)):
        if given is not None and (given.shape != x.shape[:1] or not given.is_floating_point()):
            raise ReplaceMeError(f"gram: {name} must be {x.shape[0]} floats, got {describe(given)}")
    if mask is not None and (mask.shape != x.shape[:1] or mask.dtype != torch.bool):
        raise ReplaceMeError(f"gram: mask must be {x.shape[0]} bools, got {describe(mask)}")
    others = (
        *zip(names[1:], terms, strict=True),
        ("weights", weights),
        ("cross_weights", cross_weights),
        ("mask", mask),
    )
    for name, other in others:
        if other is not None and other.device != x.device:
            raise ReplaceMeError(f"gram: {name} is on {other.device}, x on {x.device}")
    if weights is not None and bool(((weights < 0) if mask is None else (weights < 0) & mask).any()):
        raise ReplaceMeError("gram: negative weights; the Gram matrix would not be positive semi-definite")
    return _Rows(x, tuple(terms), weights, cross_weights, mask, rounded)


def _out(out: torch.Tensor | None, name: str, shape: tuple[int, ...], device: torch.device) -> torch.Tensor:
    """Return `out` after a check, or zeros."""
    if out is None:
        return torch.zeros(shape, dtype=torch.float64, device=device)
    if out.shape != shape or out.dtype != torch.float64 or not out.is_contiguous() or out.device != device:
        raise ReplaceMeError(
            f"gram: {name} must be contiguous float64 {list(shape)} on {device}, got {describe(out)} on {out.device}"
        )
    return out


def _sums(out: Sums | None, rows: _Rows, make: Callable[..., Sums] = Sums.zeros) -> Sums:
    if not rows.terms:
        raise ReplaceMeError("gram: r = a - b + c has one to three terms, got 0")
    hidden, other = rows.x.shape[1], rows.terms[0].shape[1]
    if out is None:
        return make(hidden, other, rows.x.device)
    for name, shape in Sums.shapes(hidden, other).items():
        _out(getattr(out, name), f"out.{name}", shape, rows.x.device)
    return out
