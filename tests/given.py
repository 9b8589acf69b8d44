"""Nouns of the package for tests, as far as they matter to them."""

from replaceme.core.cut_record import Cut

# errors of a full GPU: torch's, CUDA's and cuBLAS's
FULL = (
    "CUDA out of memory. Tried to allocate 2.00 GiB.",
    "CUDA error: out of memory",
    "CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`",
)


def cut_of(groups, num_blocks, **more):
    """Return a cut placed by hand: runs [start, end) of a model with so many blocks."""
    groups = [tuple(group) for group in groups]
    return Cut(groups, sum(end - start for start, end in groups), num_blocks, **{"metric": "given", **more})


def evaluation_of(tasks, include=None, **more):
    """Return a section of an evaluation by these tasks, out of a folder."""
    from replaceme.config.evaluations import EvaluationConfig

    return EvaluationConfig(tasks=tasks, include=include and str(include), **more)
