"""Triton kernels with their torch references; each runs on CUDA and falls back to its reference elsewhere."""
