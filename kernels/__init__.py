"""Triton kernels with their torch references; each runs on CUDA and falls back to its reference elsewhere."""

from replaceme.kernels.gram import cross, cross_reference, gram, gram_reference

__all__ = ["cross", "cross_reference", "gram", "gram_reference"]
