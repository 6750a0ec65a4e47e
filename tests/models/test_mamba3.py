"""Mamba-3: the portable form against the recurrence as written, its steps, and mamba-ssm's operator against both.

Tests marked so want CUDA and mamba-ssm: ``python -m pytest tests/models/test_mamba3.py``.
"""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from models import mamba3
from models.mamba3 import Mamba3
from models.model import SequenceModel
from models.ops.context import observing, relative_error, why_missing

needs_operator = pytest.mark.skipif(
    not torch.cuda.is_available() or bool(why_missing("mamba_ssm.ops.triton.mamba3.mamba3_siso_combined")),
    reason="needs CUDA and mamba-ssm's Mamba-3",
)
D_MODEL = 32


@pytest.fixture(autouse=True)
def _one_thread():
    torch.set_num_threads(1)


def make(*, dtype: torch.dtype = torch.float64, d_model: int = D_MODEL, d_state: int = 16, head_dim: int = 16):
    """With every parameter away from its initial value, so that none can be forgotten."""
    mixer = Mamba3(d_model, d_state=d_state, head_dim=head_dim)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        mixer.init_weights(generator)
        for parameter in mixer.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator), alpha=0.2)
        mixer.in_proj.weight.mul_(2)
    mixer.to(dtype)
    return mixer


def sequences(batch: int, length: int, d_model: int = D_MODEL, dtype: torch.dtype = torch.float64) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(batch, length, d_model, generator=generator, dtype=torch.float64).to(dtype)


def recurrence(
    *, Q: Tensor, K: Tensor, V: Tensor, ADT: Tensor, DT: Tensor, Trap: Tensor, Q_bias: Tensor, K_bias: Tensor,
    Angles: Tensor, D: Tensor, Z: Tensor, chunk_size: int,
) -> Tensor:  # fmt: skip
    """What mamba-ssm's operator of these arguments computes, one position after the other, turns as complex factors."""
    del chunk_size
    (B, L, H, P), N = V.shape, Q.shape[-1]
    angle, h, before = V.new_zeros(B, H, N // 2), V.new_zeros(B, H, P, N), V.new_zeros(B, H, P, N)
    outputs = []
    for t in range(L):
        turn = torch.tanh(Angles[:, t]) * math.pi * DT[:, :, t, None]
        angle = angle + F.pad(turn, (0, N // 2 - turn.shape[-1]))
        factor = torch.polar(torch.ones_like(angle), angle)
        k, q = (
            torch.view_as_real(torch.view_as_complex((x[:, t] + bias).unflatten(-1, (-1, 2)).contiguous()) * factor)
            for x, bias in ((K, K_bias), (Q, Q_bias))
        )
        now = V[:, t, :, :, None] * k.flatten(-2)[:, :, None]
        dt, share, decay = (x[:, :, t, None, None] for x in (DT, Trap.sigmoid(), ADT.exp()))
        h = decay * h + decay * dt * (1 - share) * before + dt * share * now
        y = (h * q.flatten(-2)[:, :, None]).sum(-1) + D[:, None] * V[:, t]
        outputs.append(y * F.silu(Z[:, t]))
        before = now
    return torch.stack(outputs, 1)


def results(mixer: Mamba3, x: Tensor, *, sequential: bool) -> dict[str, Tensor]:
    """The output and all gradients; ``sequential`` by :func:`recurrence`."""
    x = x.detach().requires_grad_()
    mixer.zero_grad()
    y = mixer.out_proj(mixer.mix_fused(recurrence, mixer.in_proj(x))) if sequential else mixer(x)
    weights = torch.arange(y.numel(), dtype=torch.float64, device=y.device).cos().reshape(y.shape)
    (y.double() * weights).sum().backward()
    return {"y": y.detach(), "x": x.grad, **{n: p.grad.clone() for n, p in mixer.named_parameters()}}


def test_parameters_have_mamba_ssms_names_and_shapes():
    shapes = {key: tuple(value.shape) for key, value in Mamba3(64, d_state=32, head_dim=16).state_dict().items()}
    assert shapes == {
        "dt_bias": (8,),
        "B_bias": (8, 1, 32),
        "C_bias": (8, 1, 32),
        "D": (8,),
        "in_proj.weight": (2 * 128 + 2 * 32 + 3 * 8 + 8, 64),
        "B_norm.weight": (32,),
        "C_norm.weight": (32,),
        "out_proj.weight": (64, 128),
    }


@pytest.mark.parametrize("length", [1, 2, 63, 64, 65, 150])
def test_outputs_and_gradients_are_the_recurrences(length):
    mixer, x = make(), sequences(2, length)
    wanted = results(mixer, x, sequential=True)
    for name, actual in results(mixer, x, sequential=False).items():
        torch.testing.assert_close(actual, wanted[name], rtol=0, atol=1e-9 * float(wanted[name].norm()), msg=name)


def test_float32_loses_nothing_to_cancellation():
    """Where a position's own share is almost nothing, what it reads of itself is small beside what follows it."""
    mixer, x = make(), sequences(1, 100)
    with torch.no_grad():
        own_share = sum(mixer.widths[:6])
        mixer.in_proj.weight[own_share : own_share + mixer.num_heads] *= 20
    with torch.no_grad():
        wanted = mixer(x)
        assert relative_error(mixer.float()(x.float()), wanted) < 1e-5


def test_gradients_are_those_of_differences():
    mixer = make(d_model=4, d_state=4, head_dim=4)
    parameters = tuple(p.detach().requires_grad_() for p in mixer.parameters())
    names = [name for name, _ in mixer.named_parameters()]

    def call(x: Tensor, *values: Tensor) -> Tensor:
        return torch.func.functional_call(mixer, dict(zip(names, values, strict=True)), (x,))

    assert torch.autograd.gradcheck(call, (sequences(1, 5, 4).requires_grad_(), *parameters))


@pytest.mark.parametrize("prompt", [0, 1, 2, 64, 100])
@torch.no_grad()
def test_prefill_and_steps_are_the_forward_pass(prompt):
    mixer, x = make(), sequences(2, 130)
    full = mixer(x)
    state = mixer.init_state(2, 130, device=x.device, dtype=x.dtype)
    addresses = {key: tensor.data_ptr() for key, tensor in state.items()}
    for _ in range(2):  # the second time from what the first has left
        if prompt:
            torch.testing.assert_close(mixer.prefill(x[:, :prompt], state), full[:, :prompt], rtol=0, atol=1e-9)
        for t in range(prompt, 130):
            torch.testing.assert_close(mixer.step(x[:, t], state), full[:, t], rtol=0, atol=1e-9)
        if not prompt:
            break
    assert addresses == {key: tensor.data_ptr() for key, tensor in state.items()}


@torch.no_grad()
def test_prefill_leaves_the_state_that_steps_leave():
    mixer, x = make(), sequences(2, 70)
    read, stepped = (mixer.init_state(2, 70, device=x.device, dtype=x.dtype) for _ in range(2))
    mixer.prefill(x, read)
    for t in range(70):
        mixer.step(x[:, t], stepped)
    for name in ("h", "k", "v"):
        torch.testing.assert_close(read[name], stepped[name])
    turns = (read["angle"] - stepped["angle"]) / (2 * math.pi)  # 0 and 2 pi are one angle
    torch.testing.assert_close(turns, turns.round())


@torch.no_grad()
def test_angles_keep_their_digits_over_many_turns():
    """After 2^17 steps some have turned by 2e4 rad, where float32 numbers lie 2e-3 apart."""
    mixer, length = make(dtype=torch.float32), 2**17
    projected = torch.zeros(1, length, sum(mixer.widths))
    projected[..., -mixer.num_angles :] = 3.0
    turned_BHS = mixer._operands(projected).turned().sum(1, dtype=torch.float64)
    _, state = mixer._mix(projected)
    difference = state["angle"].double() - turned_BHS
    assert turned_BHS.max() > 2e4
    assert (torch.polar(torch.ones_like(difference), difference) - 1).abs().max() < 1e-6


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"d_model": 30}, "d_model=30 times expand=2 does not split into heads of 64"),
        ({"d_model": 64, "d_state": 30}, "d_state=30 does not split"),
        ({"d_model": 64, "d_state": 0}, "d_state=0 does not split"),
    ],
)
def test_widths_that_do_not_split_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        Mamba3(**options)


@torch.no_grad()
def test_half_precision_stays_near():
    mixer, x = make(), sequences(2, 300)
    reference = mixer(x)
    SequenceModel(vocab_size=4, d_model=D_MODEL, mixers=[mixer]).cast(torch.bfloat16)
    assert mixer.in_proj.weight.dtype == torch.bfloat16 != mixer.B_bias.dtype
    actual = mixer(x.bfloat16())
    assert actual.dtype == torch.bfloat16
    assert relative_error(actual, reference) < 3e-2


def test_what_did_not_run_is_in_the_record(monkeypatch):
    mixer, x = make(dtype=torch.float32), sequences(1, 10, dtype=torch.float32)
    with observing() as here:
        mixer(x)
    assert here.backends == {"ssd": "chunked"}
    monkeypatch.setattr(Mamba3, "_choose", lambda self, projected: (None, "mamba_ssm does not import"))
    with observing() as report:
        mixer(x)
    assert report.backends["mamba3_block"] == "portable (no mamba-ssm: mamba_ssm does not import)"


@pytest.mark.parametrize(("wrong", "low", "high"), [(0.0, 1e-9, 1e-5), (0.05, 2e-3, 5e-2)])
def test_a_check_sees_what_is_wrong(wrong, low, high, monkeypatch):
    """In the operator's place the recurrence, whose last head may be off; compared in several pieces."""

    def operator(**arguments) -> Tensor:
        y_BLHP = recurrence(**arguments).clone()
        y_BLHP[:, :, -1] *= 1 + wrong
        return y_BLHP

    mixer, x = make(dtype=torch.float32), sequences(2, 150, dtype=torch.float32)
    monkeypatch.setattr(Mamba3, "_choose", lambda self, projected: (operator, ""))
    monkeypatch.setattr(mamba3, "CHECKED_PIECE", 64)
    with observing(verify=True) as report, torch.no_grad():
        mixer(x)
    assert low < report.errors["mamba3_block"] < high
    assert report.backends["mamba3_block"].startswith("mamba-ssm")


# --- mamba-ssm's operator ------------------------------------------------------------------------------------------


@needs_operator
@pytest.mark.usefixtures("one_mamba3_configuration")
@pytest.mark.parametrize("length", [1, 63, 64, 1000])
@pytest.mark.parametrize("widths", [{"d_state": 128, "head_dim": 64}, {"d_state": 32, "head_dim": 16}], ids=str)
def test_the_fused_operator_agrees_with_the_portable_form(widths, length):
    mixer, x = make(d_model=128, dtype=torch.float32, **widths), sequences(2, length, 128, torch.float32)
    SequenceModel(vocab_size=4, d_model=128, mixers=[mixer]).cast(torch.bfloat16)
    mixer.cuda()
    with observing() as report:
        actual = results(mixer, x.cuda().bfloat16(), sequential=False)
    assert report.backends["mamba3_block"] == "mamba-ssm mamba3_siso_combined"
    mixer.fused = False
    wanted = results(mixer.float(), x.cuda().bfloat16().float(), sequential=False)
    for name, tensor in actual.items():
        # Outputs, as the docstring of mamba3_kernels says. Gradients of steps and angles are small differences of sums:
        # rounding queries, keys, values and angles alone, in the portable form, moves them by 5e-2 at length 1,000.
        limit = {"y": 2e-2, "dt_bias": 1e-1, "in_proj.weight": 1e-1}.get(name, 5e-2)
        assert relative_error(tensor, wanted[name]) < limit, name


@needs_operator
@pytest.mark.usefixtures("one_mamba3_configuration")
def test_a_checkpoint_of_the_package_loads_and_agrees():
    package = pytest.importorskip("mamba_ssm.modules.mamba3")
    theirs = package.Mamba3(128, d_state=64, headdim=64, chunk_size=64, device="cuda", dtype=torch.bfloat16)
    ours = Mamba3(128, d_state=64).cuda().bfloat16()
    ours.load_state_dict(theirs.state_dict(), strict=True)
    x = sequences(2, 300, 128, torch.bfloat16).cuda()
    with torch.no_grad():
        assert relative_error(ours(x), theirs(x)) < 1e-2


@pytest.mark.skipif(not torch.cuda.is_available(), reason="captures a CUDA graph")
@torch.no_grad()
def test_a_captured_step_is_the_eager_one():
    mixer, x = make(dtype=torch.float32).cuda(), sequences(2, 40, dtype=torch.float32).cuda()
    eager, captured = (mixer.init_state(2, 40, device=x.device, dtype=x.dtype) for _ in range(2))
    wanted = [mixer.step(x[:, t], eager) for t in range(40)]
    x_BD = x[:, 0].clone()
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):  # warm-up, as capturing asks for
        mixer.step(x_BD, captured)
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        y_BD = mixer.step(x_BD, captured)
    for tensor in captured.values():
        tensor.zero_()
    for t in range(40):
        x_BD.copy_(x[:, t])
        graph.replay()
        torch.testing.assert_close(y_BD, wanted[t], rtol=0, atol=1e-6)
