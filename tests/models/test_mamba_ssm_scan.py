"""How mamba-ssm's scan is called, on a stand-in that follows its documentation, and the kernel where there is CUDA.

The last test wants CUDA and mamba-ssm: ``python -m pytest tests/models/test_mamba_ssm_scan.py``.
"""

import sys
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor

from models.ops import selective_scan as module
from models.ops.context import observing, relative_error, why_missing
from models.ops.selective_scan import selective_scan
from models.s6 import S6

CASES = [(is_complex, select) for is_complex in (False, True) for select in ("dt B C", "dt", "dt B", "B")]


def documented(u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, *, return_last_state: bool):
    """``selective_scan_fn`` as its docstring says: u and delta (B, D, L), B and C (D, N), (B, N, L) or (B, N, 2 L)."""
    assert return_last_state and u.dtype == delta.dtype and not u.is_complex()
    length = u.shape[-1]

    def at_positions(t: Tensor) -> Tensor:
        """(B, 1 or D, N, L)"""
        if t.ndim == 2:
            assert t.dtype == A.dtype
            return t[None, :, :, None].expand(1, -1, -1, length)
        assert t.dtype == u.dtype and t.shape[-1] == (2 if A.is_complex() else 1) * length
        if A.is_complex():
            t = torch.view_as_complex(t.unflatten(-1, (length, 2)).contiguous())
        return t[:, None]

    B, C = at_positions(B), at_positions(C)
    h, ys = A.new_zeros(u.shape[0], *A.shape), []
    for t in range(length):
        h = torch.exp(delta[..., t, None] * A) * h + (delta * u)[..., t, None] * B[..., t]
        y = (h * C[..., t]).sum(-1)
        ys.append(2 * y.real if y.is_complex() else y)
    return torch.stack(ys, dim=-1), h


def operands(is_complex: bool, select: str, dtype: torch.dtype = torch.float32) -> tuple[Tensor, ...]:
    """x, dt, A, B, C and W as an S6 mixer makes them."""
    mixer = S6(12, d_state=8, dt_rank=3, select=select.split(), is_complex=is_complex)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        mixer.init_weights(generator)
        for parameter in mixer.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator), alpha=0.1)
    x = torch.randn(2, 37, 12, generator=generator).to(dtype)
    return x, *mixer.to(dtype)._selected(x)[:1], mixer.A(), *mixer._selected(x)[1:], mixer._read_weights()


def results(x, dt, A, B, C, W, *, backend: str) -> dict[str, Tensor]:
    """The real part of y, the last state, and gradients of all that is given."""
    given = {"x": x, "dt": dt, "A": A, "B": B, "C": C, "W": W}
    leaves = {n: t.detach().clone().requires_grad_() for n, t in given.items() if t is not None}
    call = {**dict.fromkeys(given), **leaves}
    y, h = selective_scan(call["x"], call["dt"], call["A"], call["B"], call["C"], W_DN=call["W"], backend=backend)
    weights = torch.arange(y.numel(), device=y.device).reshape(y.shape).cos()
    (y.real * weights).sum().backward()
    return {"y": y.real.detach(), "h": h.detach(), **{f"d{n}": leaf.grad for n, leaf in leaves.items()}}


@pytest.mark.parametrize(("is_complex", "select"), CASES, ids=str)
def test_the_packages_form_gives_what_the_chunked_form_gives(is_complex, select, monkeypatch):
    monkeypatch.setitem(
        sys.modules, "mamba_ssm.ops.selective_scan_interface", SimpleNamespace(selective_scan_fn=documented)
    )
    monkeypatch.setattr(module, "_unavailable", lambda name, **about: "beside it" if about["weighted"] else "")
    given = operands(is_complex, select)
    with observing(verify=True) as report:
        actual = results(*given, backend="mamba-ssm")
    assert report.backends == {"selective_scan": "mamba-ssm"} and report.errors["selective_scan"] < 1e-5
    for name, wanted in results(*given, backend="chunked").items():
        torch.testing.assert_close(actual[name], wanted, rtol=1e-4, atol=1e-4, msg=name)


@pytest.mark.parametrize("is_complex", [False, True])
def test_weights_beside_a_selected_c_are_not_its(is_complex):
    x, dt, A, B, C, W = operands(is_complex, "dt C")
    assert C is not None and W is not None
    with pytest.raises(ValueError, match="cannot run here"):
        selective_scan(x, dt, A, B, C, W_DN=W, backend="mamba-ssm")


@pytest.mark.skipif(
    not torch.cuda.is_available() or bool(why_missing("mamba_ssm.ops.selective_scan_interface")),
    reason="needs CUDA and mamba-ssm",
)
@pytest.mark.parametrize(("is_complex", "select"), CASES, ids=str)
@pytest.mark.parametrize(("dtype", "limit"), [(torch.float32, 1e-4), (torch.bfloat16, 2e-2)])
def test_the_kernel_agrees_with_the_chunked_form(is_complex, select, dtype, limit):
    given = [None if t is None else t.cuda() for t in operands(is_complex, select, dtype)]
    actual = results(*given, backend="mamba-ssm")
    for name, wanted in results(*given, backend="chunked").items():
        assert relative_error(torch.view_as_real(actual[name]) if actual[name].is_complex() else actual[name],
                              torch.view_as_real(wanted) if wanted.is_complex() else wanted) < limit, name  # fmt: skip
