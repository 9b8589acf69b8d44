"""KL divergence of two next-token distributions per token, and its gradient, from their logits in one launch.

    KL_t = sum_v p(v) (log p(v) - log q(v)),   d KL_t / d (logits of q) = q - p,   p, q = softmax of logits [tokens, V]

Log-probabilities lie at LEAST or above, so that a logit of -infinity stands for "never" and gives no NaN. Sums are in
float32: within 1e-5 of the divergence, or 1e-6 where that is below 0.1. A program owns a token and reads its two rows
twice: once for the largest logit and the sum of exponentials, then for the terms. No other row, and none in float32, is
stored but the gradient.
"""

import torch

try:
    import triton
    import triton.language as tl
except ImportError:  # no Triton on this platform: the reference serves
    triton = None

from replaceme.core.errors import ReplaceMeError
from replaceme.kernels.arguments import describe

LEAST = -1e4
BLOCK, WARPS = 4096, 8
Found = tuple[torch.Tensor, torch.Tensor | None]


def divergence_reference(p: torch.Tensor, q: torch.Tensor, weight: float | None = None) -> Found:
    """Compute `divergence` in plain torch, in float32 or the logits' wider type."""
    _check(p, q)
    log_p, log_q = (_wide(one).log_softmax(-1).clamp_(min=LEAST) for one in (p, q))
    likely = log_p.exp()
    values = log_p.sub_(log_q).mul_(likely).sum(-1)
    return values, None if weight is None else log_q.exp_().sub_(likely).mul_(weight).to(q.dtype)


if triton is not None:

    @triton.jit
    def _divergence_kernel(
        p_ptr,
        q_ptr,
        values_ptr,
        gradient_ptr,
        p_row,
        q_row,
        columns,
        weight,
        LOWEST: tl.constexpr,
        HAS_GRADIENT: tl.constexpr,
        BLOCK: tl.constexpr,
    ):
        token = tl.program_id(0).to(tl.int64)
        p_ptr += token * p_row
        q_ptr += token * q_row
        top_p, top_q = -3.0e38, -3.0e38
        sum_p, sum_q = 0.0, 0.0
        for start in range(0, columns, BLOCK):
            k = start + tl.arange(0, BLOCK)
            x = tl.load(p_ptr + k, mask=k < columns, other=float("-inf")).to(tl.float32)
            y = tl.load(q_ptr + k, mask=k < columns, other=float("-inf")).to(tl.float32)
            higher_p = tl.maximum(top_p, tl.max(x, 0))
            higher_q = tl.maximum(top_q, tl.max(y, 0))
            sum_p = sum_p * tl.exp(top_p - higher_p) + tl.sum(tl.exp(x - higher_p), 0)
            sum_q = sum_q * tl.exp(top_q - higher_q) + tl.sum(tl.exp(y - higher_q), 0)
            top_p, top_q = higher_p, higher_q
        log_sum_p = tl.log(sum_p)
        log_sum_q = tl.log(sum_q)
        terms = tl.zeros((BLOCK,), dtype=tl.float32)
        for start in range(0, columns, BLOCK):
            k = start + tl.arange(0, BLOCK)
            x = tl.load(p_ptr + k, mask=k < columns, other=float("-inf")).to(tl.float32)
            y = tl.load(q_ptr + k, mask=k < columns, other=float("-inf")).to(tl.float32)
            log_p = x - top_p - log_sum_p
            log_q = y - top_q - log_sum_q
            log_p = tl.where(log_p < LOWEST, LOWEST, log_p)  # a NaN stays one
            log_q = tl.where(log_q < LOWEST, LOWEST, log_q)
            likely = tl.exp(log_p)
            terms += likely * (log_p - log_q)
            if HAS_GRADIENT:
                slope = (tl.exp(log_q) - likely) * weight
                tl.store(gradient_ptr + token * columns + k, slope.to(gradient_ptr.dtype.element_ty), mask=k < columns)
        tl.store(values_ptr + token, tl.sum(terms, 0))


def divergence(p: torch.Tensor, q: torch.Tensor, weight: float | None = None) -> Found:
    """Return KL(p || q) of each token in nats, [tokens] float32, and with a `weight` its gradient with respect to the
    logits of q times that, [tokens, vocabulary] in their type.

    CUDA logits of at most 32 bits go through Triton, all others through `divergence_reference`, float64 in float64.
    Raises ReplaceMeError for logits of unequal shapes.
    """
    _check(p, q)
    if triton is not None and q.is_cuda and torch.float64 not in (p.dtype, q.dtype):
        return _launch(p, q, weight)
    return divergence_reference(p, q, weight)


def divergence_triton(p: torch.Tensor, q: torch.Tensor, weight: float | None = None) -> Found:
    """Compute `divergence` by the Triton kernel on any device; CPU tensors need TRITON_INTERPRET=1."""
    _check(p, q)
    if torch.float64 in (p.dtype, q.dtype):
        raise ReplaceMeError(f"divergence: the kernel takes logits of at most 32 bits, got {describe(p)}")
    return _launch(p, q, weight)


def _launch(p: torch.Tensor, q: torch.Tensor, weight: float | None) -> Found:
    kind = q.dtype
    if not q.is_cuda:
        p, q = p.float(), q.float()  # the interpreter stores bfloat16 as raw uint16
    p, q = (one if one.stride(-1) == 1 else one.contiguous() for one in (p, q))
    tokens, columns = q.shape
    values = torch.zeros(tokens, dtype=torch.float32, device=q.device)
    gradient = None if weight is None else torch.empty(tokens, columns, dtype=q.dtype, device=q.device)
    if tokens:
        with torch.cuda.device(q.device if q.is_cuda else -1):
            _divergence_kernel[(tokens,)](
                p,
                q,
                values,
                values if gradient is None else gradient,
                p.stride(0),
                q.stride(0),
                columns,
                1.0 if weight is None else weight,
                LOWEST=LEAST,
                HAS_GRADIENT=gradient is not None,
                BLOCK=min(BLOCK, triton.next_power_of_2(columns)),
                num_warps=WARPS,
            )
    return values, None if gradient is None else gradient.to(kind)


def _check(p: torch.Tensor, q: torch.Tensor) -> None:
    if p.ndim != 2 or p.shape != q.shape or not q.shape[1]:
        raise ReplaceMeError(
            f"divergence: two tensors of logits [tokens, vocabulary], got {describe(p)} and {describe(q)}"
        )


def _wide(logits: torch.Tensor) -> torch.Tensor:
    return logits if logits.dtype == torch.float64 else logits.float()
