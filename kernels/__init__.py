"""Triton kernels with their torch references; each runs on CUDA and falls back to its reference elsewhere."""

from replaceme.kernels.gram import Sums, gram, gram_cross, gram_cross_reference, gram_reference
from replaceme.kernels.pairwise_cosine import pairwise_cosine, pairwise_cosine_reference
from replaceme.kernels.pairwise_l2 import pairwise_l2, pairwise_l2_reference
from replaceme.kernels.row_cosine import RowCosine, row_cosine, row_cosine_reference

__all__ = [
    "RowCosine",
    "Sums",
    "gram",
    "gram_cross",
    "gram_cross_reference",
    "gram_reference",
    "pairwise_cosine",
    "pairwise_cosine_reference",
    "pairwise_l2",
    "pairwise_l2_reference",
    "row_cosine",
    "row_cosine_reference",
]
