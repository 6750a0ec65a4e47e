"""Prompts and steps by the packages' kernels: how they are called, on stand-ins, and the kernels where there is CUDA.

The last tests want CUDA, mamba-ssm and causal-conv1d: ``python -m pytest tests/models/test_inference_kernels.py``.
"""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from models import mamba2, wirings
from models.mamba2 import Mamba2
from models.ops.context import observing, predicting, relative_error
from models.ops.inference_kernels import InferenceKernels, inference_kernels, outgrows_32_bits
from models.s6 import S6
from models.wirings import Mamba

D_MODEL, BATCH, PROMPT, STEPS = 32, 3, 21, 5
MIXERS = {
    "mamba": lambda: Mamba(D_MODEL, S6(64, d_state=8, dt_rank=3), d_inner=64),
    "mamba2": lambda: Mamba2(D_MODEL, d_state=16, head_dim=16),
    "mamba2, groups": lambda: Mamba2(D_MODEL, d_state=16, head_dim=16, num_groups=2),
}
BLOCKS = {"mamba": "mamba_block", "mamba2": "mamba2_block", "mamba2, groups": "mamba2_block"}
every_mixer = pytest.mark.parametrize("name", MIXERS)


def conv(x: Tensor, weight: Tensor, bias: Tensor, *, activation: str) -> Tensor:
    assert activation == "silu" and x.shape[1] == len(weight)
    return F.silu(F.conv1d(F.pad(x, (weight.shape[1] - 1, 0)), weight[:, None], bias, groups=len(weight)))


def conv_step(x: Tensor, window: Tensor, weight: Tensor, bias: Tensor, *, activation: str) -> Tensor:
    assert activation == "silu" and window.dtype == x.dtype
    window.copy_(torch.cat([window[..., 1:], x[..., None]], dim=-1))
    return F.silu((window * weight).sum(-1) + bias)


def state_step(
    state: Tensor, x: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor,
    z: Tensor | None = None, *, dt_bias: Tensor, dt_softplus: bool,
) -> Tensor:  # fmt: skip
    """As documented: with or without heads, which the kernel adds itself."""
    assert (
        dt_softplus and dt.shape == x.shape and A.shape == state.shape[1:] and D.shape == dt_bias.shape == x.shape[1:]
    )
    if state.ndim == 4:
        assert dt.stride(-1) == A.stride(-1) == A.stride(-2) == dt_bias.stride(-1) == 0
        B, C = (t.repeat_interleave(state.shape[1] // t.shape[1], dim=1)[:, :, None] for t in (B, C))
    else:
        B, C = B[:, None], C[:, None]
    dt = F.softplus(dt + dt_bias)[..., None]
    state.copy_(state * torch.exp(dt * A) + dt * B * x[..., None])
    y = (state * C).sum(-1) + D * x
    return y if z is None else y * F.silu(z)


def scan(
    u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor,
    *, z: Tensor, delta_bias: Tensor, delta_softplus: bool, return_last_state: bool,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    assert return_last_state and u.shape == delta.shape == z.shape and u.stride(-1) == 1
    state = u.new_zeros(*u.shape[:2], A.shape[1])
    columns = zip(*(t.unbind(-1) for t in (u, delta, B, C, z)), strict=True)
    ys = [
        state_step(state, u_t, d_t, A, B_t, C_t, D, z_t, dt_bias=delta_bias, dt_softplus=delta_softplus)
        for u_t, d_t, B_t, C_t, z_t in columns
    ]
    return torch.stack(ys, dim=-1), state


def dual(
    x: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, chunk_size: int,
    *, D: Tensor, dt_bias: Tensor, dt_softplus: bool, return_final_states: bool,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    assert return_final_states and chunk_size > 0
    (_, L, H, P), N = x.shape, B.shape[-1]
    state = x.new_zeros(len(x), H, P, N)
    by_channel = [t[..., None].expand(*t.shape, P) for t in (D, dt_bias)]
    ys = [
        state_step(
            state, x[:, t], dt[:, t, :, None].expand(-1, -1, P), A[:, None, None].expand(H, P, N), B[:, t], C[:, t],
            by_channel[0], dt_bias=by_channel[1], dt_softplus=dt_softplus,
        )
        for t in range(L)
    ]  # fmt: skip
    return torch.stack(ys, dim=1), state


STAND_INS = InferenceKernels(conv=conv, conv_step=conv_step, scan=scan, dual=dual, state_step=state_step)


def use(monkeypatch: pytest.MonkeyPatch, kernels: InferenceKernels | None) -> None:
    for module in (wirings, mamba2):
        monkeypatch.setattr(module, "inference_kernels", lambda x: kernels)


def make(name: str):
    mixer = MIXERS[name]()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        mixer.init_weights(generator)
        for parameter in mixer.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator), alpha=0.1)
    return mixer


def inputs(length: int) -> Tensor:
    return torch.randn(BATCH, length, D_MODEL, generator=torch.Generator().manual_seed(1))


@torch.no_grad()
def outputs(mixer, x_BLD: Tensor, prompt: int) -> dict[str, Tensor]:
    """Of the prompt and the steps after it, and the state that is left."""
    state = mixer.init_state(len(x_BLD), x_BLD.shape[1], device=x_BLD.device, dtype=x_BLD.dtype)
    read = mixer.prefill(x_BLD[:, :prompt], state)
    steps = [mixer.step(x_BLD[:, t], state) for t in range(prompt, x_BLD.shape[1])]
    return {"y": torch.cat([read, torch.stack(steps, dim=1)], dim=1), **state}


@every_mixer
@pytest.mark.parametrize("prompt", [1, 2, PROMPT])
def test_the_packages_functions_give_what_the_portable_forms_give(name, prompt, monkeypatch):
    mixer, x = make(name), inputs(prompt + STEPS)
    wanted = outputs(mixer, x, prompt)
    use(monkeypatch, STAND_INS)
    with observing(verify=True) as report:
        actual = outputs(mixer, x, prompt)
    assert report.backends[BLOCKS[name]] == "mamba-ssm selective_state_update"
    assert report.errors[BLOCKS[name]] < 1e-5
    assert actual.keys() == wanted.keys()
    for key, tensor in actual.items():
        torch.testing.assert_close(tensor, wanted[key], rtol=1e-4, atol=1e-5, msg=key)


@pytest.mark.parametrize("parts", [2, 3])
def test_a_batch_beyond_32_bits_is_read_in_parts(parts, monkeypatch):
    mixer, x = make("mamba2"), inputs(PROMPT + STEPS)
    wanted = outputs(mixer, x, PROMPT)
    use(monkeypatch, STAND_INS)
    monkeypatch.setattr(mamba2, "MAX_OFFSET", math.ceil(BATCH * PROMPT * mixer.in_proj.out_features / parts))
    read = []
    fused = mixer._prefill_fused
    monkeypatch.setattr(mixer, "_prefill_fused", lambda *args, **kw: read.append(len(args[1])) or fused(*args, **kw))
    for key, tensor in outputs(mixer, x, PROMPT).items():
        torch.testing.assert_close(tensor, wanted[key], rtol=1e-4, atol=1e-5, msg=key)
    assert sum(read) == BATCH and len(read) == parts


def test_a_sequence_beyond_32_bits_takes_the_portable_form(monkeypatch):
    mixer, x = make("mamba2"), inputs(PROMPT + STEPS)
    wanted = outputs(mixer, x, PROMPT)
    use(monkeypatch, STAND_INS)
    monkeypatch.setattr(mamba2, "MAX_OFFSET", 1000)
    state = mixer.init_state(BATCH, PROMPT, device=x.device, dtype=x.dtype)
    with observing() as report, torch.no_grad():
        y = mixer.prefill(x[:, :PROMPT], state)
    assert report.backends["ssd"] == "chunked" and "mamba2_block" not in report.backends
    torch.testing.assert_close(y, wanted["y"][:, :PROMPT])


@pytest.mark.parametrize(("shape", "strides", "beyond"), [((2, 2**30), (2**30, 1), False), ((2, 2), (2**31, 1), True)])
def test_offsets_are_counted_by_strides(shape, strides, beyond):
    assert outgrows_32_bits(None, torch.empty(0, device="meta").as_strided(shape, strides)) is beyond


def test_no_kernel_is_asked_for_gradients_float64_or_on_a_cpu():
    x, fake = torch.ones(2), torch.ones(2, device="meta")
    assert inference_kernels(x) is None and inference_kernels(fake) is None
    with predicting("cpu"):
        assert inference_kernels(fake) is None
    with predicting("cuda"):
        assert inference_kernels(fake) is not None
        assert inference_kernels(x) is None  # it has data
        assert inference_kernels(fake.double()) is None
        assert inference_kernels(fake.clone().requires_grad_()) is None


needs_kernels = pytest.mark.skipif(
    not torch.cuda.is_available() or inference_kernels(torch.ones(1, device="cuda")) is None,
    reason="needs CUDA, mamba-ssm and causal-conv1d",
)


@needs_kernels
@every_mixer
@pytest.mark.parametrize("prompt", [1, PROMPT, 700])
@pytest.mark.parametrize(("dtype", "limit"), [(torch.float32, 2e-3), (torch.bfloat16, 2e-2)])
def test_the_kernels_agree_with_the_portable_forms(name, prompt, dtype, limit):
    mixer, x = make(name).cuda(), inputs(prompt + STEPS).cuda()
    mixer.fused = False
    wanted = outputs(mixer, x, prompt)
    mixer.fused = True
    mixer.to(dtype)
    with observing() as report:
        actual = outputs(mixer, x.to(dtype), prompt)
    assert report.backends[BLOCKS[name]] == "mamba-ssm selective_state_update"
    for key, tensor in actual.items():
        assert relative_error(tensor, wanted[key]) < limit, key


@needs_kernels
@every_mixer
@torch.no_grad()
def test_a_captured_step_is_the_eager_one(name):
    mixer, x = make(name).cuda(), inputs(STEPS).cuda()
    eager, captured = (mixer.init_state(BATCH, STEPS, device=x.device, dtype=x.dtype) for _ in range(2))
    wanted = [mixer.step(x[:, t], eager) for t in range(STEPS)]
    x_BD = x[:, 0].clone()
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        mixer.step(x_BD, captured)
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        y_BD = mixer.step(x_BD, captured)
    for tensor in captured.values():
        tensor.zero_()
    for t in range(STEPS):
        x_BD.copy_(x[:, t])
        graph.replay()
        torch.testing.assert_close(y_BD, wanted[t], rtol=0, atol=1e-6)
