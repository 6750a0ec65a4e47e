"""Properties of the selective scan, for every backend that runs on this machine."""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from models.ops import scan_kernel
from models.ops.context import observing
from models.ops.selective_scan import available_backends, force_backend, selective_scan

NAMES = ("x", "dt", "A", "B", "C", "h0", "W")
FAST = [name for name in ("kernel", "chunked") if not available_backends("cpu")[name]]
SHAPES = [  # B, L, D, N
    (1, 1, 1, 1),
    (2, 2, 5, 3),
    (3, 63, 17, 16),
    (1, 64, 130, 16),
    (2, 65, 17, 20),
    (1, 129, 40, 1),
    (2, 257, 5, 16),
    (1, 257, 130, 3),
    (1, 130, 33, 37),
]
every_backend = pytest.mark.parametrize("backend", FAST)


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def inputs(B: int, L: int, D: int, N: int, dtype: torch.dtype = torch.float64, seed: int = 0) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    dt = torch.nn.functional.softplus(normal(B, L, D) - 1)
    tensors = [normal(B, L, D), dt, -normal(D, N).exp(), normal(B, L, N), normal(B, L, N), normal(B, D, N)]
    return [t.to(dtype) for t in tensors]


def weighted_inputs(B: int, L: int, D: int, N: int, dtype: torch.dtype = torch.float64) -> list[Tensor]:
    """The same and weights W of the read-out."""
    W = torch.randn(D, N, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    return [*inputs(B, L, D, N, dtype), W.to(dtype)]


def scan(tensors: list[Tensor], backend: str) -> tuple[Tensor, Tensor]:
    x, dt, A, B, C, h0, *W = tensors
    return selective_scan(x, dt, A, B, C, h0_BDN=h0, W_DN=W[0] if W else None, backend=backend)


def with_gradients(tensors: list[Tensor], backend: str) -> dict[str, Tensor]:
    leaves = [t.detach().clone().requires_grad_() for t in tensors]
    y, h = scan(leaves, backend)
    generator = torch.Generator().manual_seed(1)
    weights = [torch.randn(t.shape, generator=generator, dtype=torch.float64).to(t.dtype) for t in (y, h)]
    gradients = torch.autograd.grad([y, h], leaves, weights)
    return {"y": y.detach(), "h": h.detach()} | dict(zip(NAMES[: len(leaves)], gradients, strict=True))


def assert_agree(actual: dict[str, Tensor], wanted: dict[str, Tensor], tolerance: float) -> None:
    for name, reference in wanted.items():
        error = (actual[name].double() - reference.double()).norm() / reference.double().norm().clamp_min(1e-30)
        assert error <= tolerance, f"{name}: {error:.2e}"


@every_backend
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-10), (torch.float32, 1e-5)], ids=str)
def test_outputs_and_gradients_agree_with_the_recurrence(backend, shape, dtype, tolerance):
    tensors = inputs(*shape, dtype=dtype)
    wanted = with_gradients([t.double() for t in tensors], "sequential")
    actual = with_gradients(tensors, backend)
    assert actual["y"].dtype == dtype
    assert_agree(actual, wanted, tolerance)


@every_backend
def test_gradcheck(backend):
    leaves = [t.requires_grad_() for t in inputs(2, 3, 2, 2)]
    assert torch.autograd.gradcheck(lambda *t: scan(list(t), backend), leaves)


@pytest.mark.parametrize("B_and_C_constant", [(True, False), (False, True), (True, True)], ids=str)
def test_weights_stand_for_factors_of_B_and_C_that_differ_by_channel(B_and_C_constant):
    x, dt, A, B, C, _ = inputs(2, 20, 5, 3)
    P, Q = (torch.randn(5, 3, generator=torch.Generator().manual_seed(s), dtype=torch.float64) for s in (3, 4))
    B, C = (torch.ones_like(t) if constant else t for t, constant in zip((B, C), B_and_C_constant, strict=True))
    h, ys = torch.zeros(2, 5, 3, dtype=torch.float64), []
    for t in range(20):
        decay, entering = torch.exp(dt[:, t, :, None] * A), (dt * x)[:, t, :, None] * B[:, t, None] * P
        h = decay * h + entering
        ys.append((h * C[:, t, None] * Q).sum(-1))
    y, _ = selective_scan(x, dt, A, B, C, W_DN=P * Q, backend="sequential")
    torch.testing.assert_close(y, torch.stack(ys, 1))


@every_backend
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-10), (torch.float32, 1e-5)], ids=str)
def test_weighted_outputs_and_gradients_agree_with_the_recurrence(
    backend, shape, threads, dtype, tolerance, monkeypatch
):
    monkeypatch.setattr(scan_kernel, "STATES_PER_THREAD", 1)
    tensors = weighted_inputs(*shape, dtype=dtype)
    wanted = with_gradients([t.double() for t in tensors], "sequential")
    torch.set_num_threads(threads)
    assert_agree(with_gradients(tensors, backend), wanted, tolerance)


@pytest.mark.parametrize("backend", ["sequential", *FAST])
@pytest.mark.parametrize("shape", [(2, 3, 3, 2), (1, 4, 17, 1), (2, 2, 5, 5)], ids=str)
@pytest.mark.parametrize("threads", [1, 2])
def test_gradcheck_with_weights(backend, shape, threads, monkeypatch):
    monkeypatch.setattr(scan_kernel, "STATES_PER_THREAD", 1)
    torch.set_num_threads(threads)
    leaves = [t.requires_grad_() for t in weighted_inputs(*shape)]
    assert torch.autograd.gradcheck(lambda *t: scan(list(t), backend), leaves)


@every_backend
def test_weights_of_one_change_nothing(backend):
    tensors = inputs(2, 150, 33, 20, torch.float32)
    plain, weighted = (with_gradients([*tensors, *W], backend) for W in ([], [torch.ones(33, 20)]))
    assert torch.equal(weighted["y"], plain["y"])
    assert_agree(weighted, plain, 1e-6)


@every_backend
def test_only_the_gradients_asked_for(backend):
    x, dt, A, B, C, _ = inputs(1, 9, 3, 2)
    A.requires_grad_()
    y, h = selective_scan(x, dt, A, B, C, backend=backend)
    (from_h,) = torch.autograd.grad(h.sum(), A, retain_graph=True)
    (from_y,) = torch.autograd.grad(y.sum(), A)
    y, h = selective_scan(x, dt, A, B, C, backend="sequential")
    torch.testing.assert_close(from_h, torch.autograd.grad(h.sum(), A, retain_graph=True)[0])
    torch.testing.assert_close(from_y, torch.autograd.grad(y.sum(), A)[0])


@every_backend
@pytest.mark.parametrize("cut", [1, 64, 100])
def test_a_sequence_in_two_pieces_is_the_whole(backend, cut):
    x, dt, A, B, C, h0 = inputs(2, 150, 17, 4)
    y, h = selective_scan(x, dt, A, B, C, h0_BDN=h0, backend=backend)
    head = [t[:, :cut] for t in (x, dt)] + [A] + [t[:, :cut] for t in (B, C)]
    tail = [t[:, cut:] for t in (x, dt)] + [A] + [t[:, cut:] for t in (B, C)]
    y_head, middle = selective_scan(*head, h0_BDN=h0, backend=backend)
    y_tail, h_tail = selective_scan(*tail, h0_BDN=middle, backend=backend)
    torch.testing.assert_close(torch.cat([y_head, y_tail], 1), y)
    torch.testing.assert_close(h_tail, h)


@every_backend
def test_the_past_does_not_see_the_future_nor_a_sequence_its_neighbour(backend):
    tensors = inputs(3, 140, 17, 16)
    y, _ = scan(tensors, backend)
    changed = [t.clone() for t in tensors]
    for i in (0, 1, 3, 4):
        changed[i][1, 90:] += 1
    y_changed, _ = scan(changed, backend)
    assert torch.equal(y[1, :90], y_changed[1, :90])
    assert torch.equal(y[[0, 2]], y_changed[[0, 2]])
    assert not torch.equal(y[1, 90], y_changed[1, 90])
    alone, _ = scan([t if i == 2 else t[1:2] for i, t in enumerate(tensors)], backend)
    torch.testing.assert_close(alone[0], y[1])


@every_backend
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("step", [1e3, 1e8, 1e20])
def test_large_steps_forget_everything(backend, dtype, step):
    tensors = inputs(1, 70, 17, 3, dtype)
    tensors[1].fill_(step)
    tensors[0] /= step
    results = with_gradients(tensors, backend)
    assert all(t.isfinite().all() for t in results.values())
    x, _, _, B, C, _ = tensors
    torch.testing.assert_close(results["y"], step * x * (B * C).sum(-1, keepdim=True), rtol=1e-4, atol=1e-4)


@every_backend
@pytest.mark.parametrize("A_value", [0.0, -1e-6, 0.05])
def test_slow_decays_and_growth(backend, A_value):
    tensors = inputs(1, 300, 3, 2, torch.float32)
    tensors[2].fill_(A_value)
    assert_agree(with_gradients(tensors, backend), with_gradients([t.double() for t in tensors], "sequential"), 1e-5)


@every_backend
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("which", range(7), ids=NAMES)
def test_nan_comes_through(backend, dtype, which):
    tensors = weighted_inputs(1, 100, 20, 3, dtype)
    # A payload in the low bits: arithmetic on the bits of a float would turn it into a number.
    bits, payload = (torch.int32, 0x7FC00001) if dtype == torch.float32 else (torch.int64, 0x7FF8000000000001)
    tensors[which].view(bits).view(-1)[0] = payload
    y, h = scan(tensors, backend)
    assert y[0, 0, 0].isnan()
    if NAMES[which] not in ("C", "W"):
        assert y[0, -1, 0].isnan() and h[0, 0].isnan().any()
    if NAMES[which] not in ("B", "C"):
        assert not y[0, :, 1:].isnan().any()


@every_backend
def test_any_strides(backend):
    tensors = weighted_inputs(2, 70, 17, 4)
    wanted = with_gradients(tensors, "sequential")
    wide = torch.stack([tensors[0], tensors[1]], 2).flatten(2)  # as a projection leaves them, side by side
    x, dt = wide[..., :17], wide[..., 17:]
    A, B, C, W = (tensors[i].transpose(-1, -2).contiguous().transpose(-1, -2) for i in (2, 3, 4, 6))
    leaves = [t.requires_grad_() for t in (x, dt, A, B, C, tensors[5], W)]
    y, h = scan(leaves, backend)
    assert_agree({"y": y, "h": h}, {name: wanted[name] for name in ("y", "h")}, 1e-12)
    expanded = torch.autograd.grad(y.sum(), leaves)  # its gradient has strides 0
    wanted_y, _ = scan(leaves, "sequential")
    for actual, reference in zip(expanded, torch.autograd.grad(wanted_y.sum(), leaves), strict=True):
        torch.testing.assert_close(actual, reference)


@every_backend
@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("make", [inputs, weighted_inputs])
def test_the_same_again_and_with_two_threads(backend, batch, make, monkeypatch):
    monkeypatch.setattr(scan_kernel, "STATES_PER_THREAD", 1)
    monkeypatch.setattr(scan_kernel, "PARTIAL_ELEMENTS", 1)  # the threads meet after every chunk
    tensors = make(batch, 200, 130, 3)
    once = with_gradients(tensors, backend)
    assert all(torch.equal(t, once[name]) for name, t in with_gradients(tensors, backend).items())
    torch.set_num_threads(2)
    two = with_gradients(tensors, backend)
    assert_agree(two, once, 1e-12)
    assert all(torch.equal(t, two[name]) for name, t in with_gradients(tensors, backend).items())


@every_backend
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_half_precision_is_computed_in_float32(backend, dtype):
    x, dt, A, B, C, h0 = inputs(1, 100, 17, 4, torch.float32)
    x, dt, B, C = (t.to(dtype) for t in (x, dt, B, C))
    y, h = selective_scan(x, dt, A, B, C, h0_BDN=h0, backend=backend)
    y_wide, h_wide = selective_scan(x.float(), dt.float(), A, B.float(), C.float(), h0_BDN=h0, backend=backend)
    assert y.dtype == dtype and h.dtype == torch.float32
    assert torch.equal(y, y_wide.to(dtype)) and torch.equal(h, h_wide)


@pytest.mark.parametrize("complex_BC", [False, True])
@pytest.mark.parametrize("W_factor", [None, 1, 1 - 1j])
@pytest.mark.parametrize("complex_A", [False, True])
def test_complex(complex_A, complex_BC, W_factor):
    if not (complex_A or complex_BC or isinstance(W_factor, complex)):
        pytest.skip("everything is real: other tests' case")
    *tensors, W = weighted_inputs(2, 150, 5, 3)
    if complex_A:
        tensors[2] = torch.complex(tensors[2], 3 * torch.linspace(-1, 1, 15, dtype=torch.float64).view(5, 3))
    if W_factor is not None:
        tensors.append(W * W_factor)
    tensors[5] = tensors[5] * (1 + 1j)
    if complex_BC:
        tensors[3], tensors[4] = tensors[3] * (1 - 2j), tensors[4] * (0.5 + 1j)
    wanted, actual = (with_gradients(tensors, "sequential"), with_gradients(tensors, "auto"))
    assert actual["y"].is_complex()
    for name, reference in wanted.items():
        assert actual[name].dtype == reference.dtype
        torch.testing.assert_close(actual[name], reference)


@every_backend
@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("make", [inputs, weighted_inputs])
def test_fake_tensors_have_the_same_shapes(backend, threads, make):
    torch.set_num_threads(threads)
    tensors = make(2, 70, 17, 4, torch.float32)
    real = with_gradients(tensors, backend)
    with FakeTensorMode():
        leaves = [torch.empty(t.shape, requires_grad=True) for t in tensors]
        y, h = scan(leaves, backend)
        gradients = torch.autograd.grad([y.sum(), h.sum()], leaves)
        fake = {"y": y, "h": h} | dict(zip(NAMES[: len(leaves)], gradients, strict=True))
    assert {k: (t.shape, t.dtype, t.stride()) for k, t in fake.items()} == {
        k: (t.shape, t.dtype, t.stride()) for k, t in real.items()
    }


def test_another_machines_backend_can_be_predicted():
    with FakeTensorMode(), force_backend("mamba-ssm"), observing(verify=True) as report:
        shapes = [(2, 4097, 6)] * 2 + [(6, 4)] + [(2, 4097, 4)] * 2
        leaves = [torch.empty(s, requires_grad=True) for s in shapes]
        y, h = selective_scan(*leaves)
        gradients = torch.autograd.grad(y.sum(), leaves)
    assert y.shape == (2, 4097, 6) and h.shape == (2, 6, 4)
    assert [g.shape for g in gradients] == [leaf.shape for leaf in leaves]
    assert report.backends == {"selective_scan": "mamba-ssm"} and not report.errors


def test_another_machines_backend_falls_back_as_it_would_there():
    why = "it takes weights of the channels in place of C only, not beside it"
    assert available_backends("cpu", weighted=True)["chunked"] == ""
    with FakeTensorMode(), force_backend("mamba-ssm"), observing() as report:
        x, dt, A, B, C, _, W = (torch.empty(t.shape) for t in weighted_inputs(2, 70, 6, 4))
        selective_scan(x, dt, A, B, C, W_DN=W)
    assert report.backends == {"selective_scan": f"chunked (no mamba-ssm: {why})"}


@every_backend
def test_what_is_reported(backend):
    x, dt, A, B, C, h0 = inputs(3, 300, 17, 4, torch.float32)
    with observing(verify=True) as report:
        selective_scan(x, dt, A, B, C, h0_BDN=h0, backend=backend)
    assert report.backends == {"selective_scan": backend}
    assert report.forward_flops == 9 * 3 * 300 * 17 * 4
    assert 0 < report.errors["selective_scan"] < 1e-6
    with observing(verify=True) as weighted:
        selective_scan(x, dt, A, B, C, h0_BDN=h0, W_DN=2 * torch.ones(17, 4), backend=backend)
    assert weighted.forward_flops == 10 * 3 * 300 * 17 * 4
    assert 0 < weighted.errors["selective_scan"] < 1e-6
    x[-1, 100, 16] = float("nan")
    with observing(verify=True) as report:
        selective_scan(x, dt, A, B, C, h0_BDN=h0, backend=backend)
    assert report.errors["selective_scan"] != report.errors["selective_scan"]


def test_without_a_kernel_the_record_says_so(monkeypatch):
    monkeypatch.setenv("SEQBENCH_NO_KERNEL", "1")
    tensors = inputs(1, 10, 3, 2)
    with observing(verify=False) as report:
        scan(tensors, "auto")
    assert report.backends == {"selective_scan": "chunked (no kernel: SEQBENCH_NO_KERNEL is set)"}
    with pytest.raises(ValueError, match="'kernel' cannot run here: SEQBENCH_NO_KERNEL is set"):
        scan(tensors, "kernel")


def run_python(code: str, **env: str) -> subprocess.Popen[str]:
    root = Path(scan_kernel.__file__).parents[2]
    return subprocess.Popen(
        [sys.executable, "-c", code], cwd=root, env=os.environ | env, stdout=subprocess.PIPE, text=True
    )


@pytest.mark.conformance
@pytest.mark.skipif("kernel" not in FAST, reason="no kernel can be built here")
def test_two_processes_build_at_once_and_import_builds_nothing(tmp_path):
    code = "from models.ops import selective_scan as s; {} print(repr(s.ensure_built()))"
    workers = [run_python(code.format(""), SEQBENCH_CACHE=str(tmp_path / "shared")) for _ in range(2)]
    assert [w.communicate(timeout=60)[0].strip() for w in workers] == ["''", "''"]
    folder = next((tmp_path / "shared" / "kernels").iterdir())
    assert sorted(p.name for p in folder.iterdir()) == ["lock", "selective_scan.so"]
    check = "import os; assert not os.path.exists(os.environ['SEQBENCH_CACHE']);"
    lonely = run_python(code.format(check), SEQBENCH_CACHE=str(tmp_path / "none"), CXX="", PATH="/nowhere")
    assert "no C++ compiler" in lonely.communicate(timeout=60)[0]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"backend": "magic"}, "backend 'magic' is not one of auto, kernel"),
        ({"backend": "mamba-ssm"}, "these are on cpu"),
        ({"dt_BLD": torch.ones(1, 4, 2)}, r"dt has shape \(1, 4, 2\), x and A ask for \(1, 4, 3\)"),
        ({"x_BLD": torch.ones(1, 0, 3)}, "none of them empty"),
        ({"h0_BDN": torch.ones(3, 2)}, r"h0 has shape \(3, 2\)"),
        ({"W_DN": torch.ones(2, 3)}, r"W has shape \(2, 3\), x and A ask for \(3, 2\)"),
        ({"A_DN": torch.ones(3, 2, dtype=torch.complex64), "backend": "kernel"}, "real tensors, not torch.complex64"),
    ],
    ids=str,
)
def test_errors_name_the_value_and_the_fix(change, message):
    x, dt, A, B, C, _ = inputs(1, 4, 3, 2, torch.float32)
    arguments = {"x_BLD": x, "dt_BLD": dt, "A_DN": A, "B_BLN": B, "C_BLN": C} | change
    with pytest.raises(ValueError, match=message):
        selective_scan(**arguments)
