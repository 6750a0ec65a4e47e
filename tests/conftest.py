"""Fixtures of several packages' tests."""

import pytest


@pytest.fixture
def one_mamba3_configuration(monkeypatch):
    """Mamba-3's kernels in one configuration each: all 234 would be compiled anew for every set of widths and lengths.

    That the others compile and run too is seen where the operator is used as it is: ``python -m benchmarks.parity``.
    """
    from models.ops import mamba3_kernels

    mamba3_kernels.import_fused()
    for kernel in mamba3_kernels.autotuned_kernels():
        monkeypatch.setattr(kernel, "configs", [next(c for c in kernel.configs if c.num_warps == 4)])
    monkeypatch.setattr(mamba3_kernels, "why_not_compiled", lambda command, key: "")
