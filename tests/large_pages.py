"""Page faults of a large tensor, which show whether it lies on pages of 2 MB."""

import resource
from pathlib import Path

import pytest

ENABLED = Path("/sys/kernel/mm/transparent_hugepage/enabled")
FEW = 3200  # a twentieth of the small pages below

needs_large_pages = pytest.mark.skipif(
    not ENABLED.exists() or "[never]" in ENABLED.read_text(), reason="this kernel offers no pages of 2 MB"
)


def faults() -> int:
    """Return the page faults of filling 256 MB, 65,536 small pages."""
    import torch

    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    torch.empty(2**26).fill_(1)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
