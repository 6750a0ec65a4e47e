"""Properties of the state space dual and of the mixers built on it."""

from collections.abc import Callable, Iterator

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.flop_counter import FlopCounterMode

from harness.memory import memory_of
from harness.prediction import predict
from models.base import Mixer
from models.linear_attention import LinearAttention, positive
from models.mamba2 import Mamba2, import_fused_block
from models.model import SequenceModel
from models.ops import ssd as ssd_module
from models.ops import ssd_chunked
from models.ops.context import observing, predicting
from models.ops.positions import rotary_tables
from models.ops.ssd import available_backends, ssd
from models.retnet import RetNet
from tasks.audio.torchaudio_import import import_torchaudio

DECAYS = ("per step", "constant", "none")
SHAPES = [  # B, L, H, P, G, N
    (1, 1, 1, 1, 1, 1),
    (2, 63, 4, 3, 2, 5),
    (1, 64, 2, 5, 1, 7),
    (2, 65, 3, 2, 3, 4),
    (1, 200, 6, 4, 2, 3),
    (1, 401, 2, 1, 1, 33),
]
every_decay = pytest.mark.parametrize("decay", DECAYS)
cuda = pytest.mark.skipif(
    not torch.cuda.is_available() or bool(available_backends("cuda")["mamba-ssm"]), reason="needs CUDA and mamba-ssm"
)


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def small_segments(monkeypatch):
    """Several chunks a segment and several segments a sequence, at lengths that tests can afford."""
    monkeypatch.setitem(ssd_module.CHUNK, "chunked", 16)
    monkeypatch.setattr(ssd_chunked, "SEGMENT_ELEMENTS", {"cpu": 2**13})


def inputs(
    B: int, L: int, H: int, P: int, G: int, N: int, decay: str = "per step", dtype: torch.dtype = torch.float64
) -> list[Tensor | None]:
    """x, log_decay, B, C, h0."""
    generator = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype)

    log_decay = {"per step": -normal(B, L, H).exp(), "constant": -normal(H).exp() / 8, "none": None}[decay]
    return [normal(B, L, H, P), log_decay, normal(B, L, G, N), normal(B, L, G, N), normal(B, H, P, N)]


def run(tensors: list[Tensor | None], backend: str = "chunked") -> tuple[Tensor, Tensor]:
    x, log_decay, B, C, h0 = tensors
    return ssd(x, log_decay, B, C, h0_BHPN=h0, backend=backend)


def with_gradients(tensors: list[Tensor | None], backend: str) -> dict[str, Tensor]:
    leaves = [None if t is None else t.detach().clone().requires_grad_() for t in tensors]
    y, h = run(leaves, backend)
    generator = torch.Generator(y.device).manual_seed(1)
    weights = [torch.randn(t.shape, generator=generator, device=t.device).to(t.dtype) for t in (y, h)]
    named = {name: t for name, t in zip(("x", "decay", "B", "C", "h0"), leaves, strict=True) if t is not None}
    gradients = torch.autograd.grad([y, h], list(named.values()), weights)
    return {"y": y.detach(), "h": h.detach()} | dict(zip(named, gradients, strict=True))


def widened(tensors: list[Tensor | None]) -> list[Tensor | None]:
    return [None if t is None else t.double() for t in tensors]


def assert_agree(actual: dict[str, Tensor], wanted: dict[str, Tensor], tolerance: float) -> None:
    for name, reference in wanted.items():
        error = (actual[name].double() - reference.double()).norm() / reference.double().norm().clamp_min(1e-30)
        assert error <= tolerance, f"{name}: {error:.2e}"


@every_decay
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-11), (torch.float32, 1e-5)], ids=str)
def test_outputs_and_gradients_agree_with_the_recurrence(shape, decay, dtype, tolerance, small_segments):
    tensors = inputs(*shape, decay, dtype)
    actual = with_gradients(tensors, "chunked")
    assert actual["y"].dtype == dtype
    assert_agree(actual, with_gradients(widened(tensors), "sequential"), tolerance)


@settings(max_examples=25, deadline=None)
@given(sizes=st.tuples(*(st.integers(1, n) for n in (2, 150, 2, 4, 2, 6))), decay=st.sampled_from(DECAYS))
def test_any_shape_agrees_with_the_recurrence(sizes, decay):
    B, L, per_group, P, G, N = sizes
    tensors = inputs(B, L, per_group * G, P, G, N, decay)
    assert_agree(with_gradients(tensors, "chunked"), with_gradients(tensors, "sequential"), 1e-11)


@every_decay
def test_gradcheck(decay, monkeypatch):
    monkeypatch.setitem(ssd_module.CHUNK, "chunked", 2)
    monkeypatch.setattr(ssd_chunked, "SEGMENT_ELEMENTS", {"cpu": 1})
    x, log_decay, B, C, h0 = inputs(2, 5, 2, 2, 1, 1, decay)
    if log_decay is None:
        leaves = [t.requires_grad_() for t in (x, B, C, h0)]
        assert torch.autograd.gradcheck(lambda x, B, C, h0: run([x, None, B, C, h0]), leaves)
        return
    leaves = [t.requires_grad_() for t in (x, log_decay, B, C, h0)]
    assert torch.autograd.gradcheck(lambda *t: run(list(t)), leaves)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("log_decay", [-1e3, -1e8, -1e20, -torch.inf])
def test_strong_decays_forget_everything_and_nothing_else(log_decay, dtype, small_segments):
    """All that came before the step is gone; what comes after it keeps its digits."""
    tensors = inputs(1, 100, 2, 3, 1, 4, dtype=dtype)
    tensors[1].mul_(0.01)
    tensors[1][:, 40] = log_decay
    actual = with_gradients(tensors, "chunked")
    assert all(t.isfinite().all() for t in actual.values())
    x, decay, B, C, _ = tensors
    y_after, h_after = ssd(x[:, 40:], decay[:, 40:], B[:, 40:], C[:, 40:], backend="sequential")
    tolerance = 1e-5 if dtype == torch.float32 else 1e-11
    torch.testing.assert_close(actual["y"][:, 40:], y_after, rtol=tolerance, atol=tolerance)
    torch.testing.assert_close(actual["h"], h_after, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("log_decay", [-200.0, -1.0, -1e-6, 0.0, 1e-3])
def test_constant_and_zero_decays_without_nan(log_decay, small_segments):
    tensors = inputs(1, 300, 2, 3, 1, 2, dtype=torch.float32)
    tensors[1].fill_(log_decay)
    actual, wanted = with_gradients(tensors, "chunked"), with_gradients(widened(tensors), "sequential")
    if log_decay == -200.0:  # underflows in float32
        assert actual.pop("decay").abs().max() <= 1e-30
        wanted.pop("decay")
        assert actual.pop("h0").abs().max() == 0 and wanted.pop("h0").abs().max() < 1e-30
    assert_agree(actual, wanted, 1e-5)


def test_a_constant_decay_is_that_decay_at_each_step():
    x, log_decay, B, C, h0 = inputs(2, 150, 4, 3, 2, 5, "constant")
    same = with_gradients([x, log_decay.expand(2, 150, 4), B, C, h0], "chunked")
    same["decay"] = same["decay"].sum((0, 1))
    assert_agree(with_gradients([x, log_decay, B, C, h0], "chunked"), same, 1e-12)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_half_precision_is_computed_in_float32(dtype):
    x, log_decay, B, C, h0 = inputs(1, 1000, 2, 8, 1, 16, dtype=torch.float32)
    halves = [x.to(dtype), log_decay, B.to(dtype), C.to(dtype), h0]
    actual, wanted = with_gradients(halves, "chunked"), with_gradients(widened(halves), "sequential")
    assert actual["y"].dtype == dtype and actual["h"].dtype == torch.float32
    assert actual["B"].dtype == dtype and actual["decay"].dtype == torch.float32
    # Rounding the results is all that is lost (and the weights of the gradients, which differ by as much).
    assert_agree(actual, wanted, 6e-3 if dtype == torch.bfloat16 else 8e-4)
    assert_agree({"h": actual["h"]}, {"h": wanted["h"]}, 1e-6)


@every_decay
def test_the_past_does_not_see_the_future_nor_a_sequence_its_neighbour(decay, small_segments):
    tensors = inputs(3, 90, 4, 2, 2, 3, decay)
    y, _ = run(tensors)
    changed = [None if t is None else t.clone() for t in tensors]
    for i in (0, 2, 3):
        changed[i][1, 55:] += 1
    if decay == "per step":
        changed[1][1, 55:] -= 1
    y_changed, _ = run(changed)
    assert torch.equal(y[1, :55], y_changed[1, :55]) and torch.equal(y[[0, 2]], y_changed[[0, 2]])
    assert not torch.equal(y[1, 55], y_changed[1, 55])


@every_decay
@pytest.mark.parametrize("cut", [1, 16, 50])
def test_a_sequence_in_two_pieces_is_the_whole(decay, cut, small_segments):
    x, log_decay, B, C, h0 = inputs(2, 77, 4, 2, 2, 3, decay)
    y, h = run([x, log_decay, B, C, h0])
    pieces = []
    for part in (slice(0, cut), slice(cut, None)):
        decay_part = log_decay[:, part] if decay == "per step" else log_decay
        y_part, h0 = run([x[:, part], decay_part, B[:, part], C[:, part], h0])
        pieces.append(y_part)
    torch.testing.assert_close(torch.cat(pieces, 1), y)
    torch.testing.assert_close(h0, h)


def test_any_strides(small_segments):
    """As a projection leaves them: slices of one tensor, side by side."""
    B, L, H, P, G, N = 2, 70, 4, 3, 2, 5
    wide = torch.randn(B, L, H * P + 2 * G * N, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    x, b, c = wide.split([H * P, G * N, G * N], dim=-1)
    log_decay = -torch.rand(B, H, L, generator=torch.Generator().manual_seed(1), dtype=torch.float64).mT
    tensors = [x.unflatten(-1, (H, P)), log_decay, b.unflatten(-1, (G, N)), c.unflatten(-1, (G, N)), None]
    dense = [None if t is None else t.contiguous() for t in tensors]
    leaves = [t.requires_grad_() for t in tensors[:4]]
    expanded = torch.autograd.grad(run([*leaves, None])[0].sum(), leaves)  # its gradient has strides 0
    wanted_leaves = [t.requires_grad_() for t in dense[:4]]
    wanted = torch.autograd.grad(run([*wanted_leaves, None], "sequential")[0].sum(), wanted_leaves)
    for actual, reference in zip(expanded, wanted, strict=True):
        torch.testing.assert_close(actual, reference)


def test_only_the_gradients_asked_for():
    x, log_decay, B, C, _ = inputs(1, 80, 2, 3, 1, 2)
    B.requires_grad_()
    y, h = ssd(x, log_decay, B, C)
    (from_h,) = torch.autograd.grad(h.sum(), B, retain_graph=True)
    (from_y,) = torch.autograd.grad(y.sum(), B)
    y, h = ssd(x, log_decay, B, C, backend="sequential")
    torch.testing.assert_close(from_h, torch.autograd.grad(h.sum(), B, retain_graph=True)[0])
    torch.testing.assert_close(from_y, torch.autograd.grad(y.sum(), B)[0])


def train_call(L: int) -> tuple[list[Tensor], Callable[[], object]]:
    leaves = [torch.ones(1, L, 4, 8), -torch.ones(1, L, 4), torch.ones(1, L, 1, 64), torch.ones(1, L, 1, 64)]
    for leaf in leaves:
        leaf.requires_grad_()
    return leaves, lambda: torch.autograd.grad(ssd(*leaves)[0].sum(), leaves)


def test_memory_beside_inputs_and_outputs_stays_small_and_is_predicted():
    L = 2**14
    held: list[int] = []

    def work() -> object:
        leaves, call = train_call(L)
        held.append(2 * sum(leaf.nbytes for leaf in leaves) + leaves[0].nbytes)  # gradients, and y
        call()
        return leaves

    measured = memory_of(work, torch.device("cpu"))["peak_alloc_bytes"]
    all_states = 4 * L * 4 * 8 * 64
    assert measured - held[0] < all_states / 8
    assert predict(lambda: train_call(L)[1]).peak_bytes == pytest.approx(measured, rel=0.01)


@every_decay
def test_fake_tensors_have_the_same_shapes(decay, small_segments):
    real = with_gradients(inputs(2, 150, 4, 3, 2, 5, decay, torch.float32), "chunked")
    with FakeTensorMode():
        tensors = [None if t is None else torch.empty(t.shape) for t in inputs(2, 150, 4, 3, 2, 5, decay)]
        leaves = [t.requires_grad_() for t in tensors if t is not None]
        y, h = run(tensors, "chunked")
        gradients = torch.autograd.grad([y.sum(), h.sum()], leaves)
    fake = [(t.shape, t.dtype) for t in (y, h, *gradients)]
    assert fake == [(t.shape, t.dtype) for t in real.values()]


@pytest.mark.parametrize("trains_decay", [False, True])
def test_operations_are_counted_alike_with_and_without_data(trains_decay, small_segments):
    """Of fake tensors one segment runs; the closed form must make up for the others exactly."""

    def count(make: Callable[..., Tensor]) -> float:
        leaves = [make(2, 150, 4, 3), make(2, 150, 4), make(2, 150, 2, 5), make(2, 150, 2, 5)]
        for i in (0, 2, 3) + (1,) * trains_decay:
            leaves[i].requires_grad_()
        with FlopCounterMode(display=False) as counter, observing() as report:
            ssd(*leaves)[0].sum().backward()
        return counter.get_total_flops() + report.forward_flops + report.backward_flops

    with FakeTensorMode():
        fake = count(torch.empty)
    assert fake == count(torch.zeros)


def test_another_machines_backend_can_be_predicted():
    with FakeTensorMode(), predicting("cuda"), observing(verify=True) as report:
        shapes = [(2, 4097, 6, 4), (2, 4097, 6), (2, 4097, 2, 8), (2, 4097, 2, 8), (2, 6, 4, 8)]
        leaves = [torch.empty(s, requires_grad=True) for s in shapes]
        y, h = run(leaves, "auto")
        gradients = torch.autograd.grad([y.sum(), h.sum()], leaves)
    assert y.shape == shapes[0] and h.shape == shapes[4]
    assert [tuple(g.shape) for g in gradients] == shapes
    assert report.backends == {"ssd": "mamba-ssm"} and not report.errors


@every_decay
def test_a_check_sees_what_is_wrong(decay, monkeypatch):
    tensors = inputs(3, 300, 4, 5, 2, 4, decay, torch.float32)
    monkeypatch.setattr(ssd_module, "CHECKED_PIECE", 128)
    with observing(verify=True) as report:
        run(tensors)
    assert report.backends == {"ssd": "chunked"}
    assert 0 < report.errors["ssd"] < 1e-6

    def without_the_last_head(*arguments):
        y, h = ssd_module._sequential(*arguments)
        y[:, :, -1] *= 1.01
        return y, h

    monkeypatch.setattr(ssd_module, "_chunked", without_the_last_head)
    with observing(verify=True) as report:
        run(tensors)
    assert 1e-3 < report.errors["ssd"] < 2e-2


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"backend": "magic"}, "backend 'magic' is not one of auto, mamba-ssm"),
        ({"backend": "mamba-ssm"}, "these are on cpu"),
        ({"log_decay_BLH": torch.ones(1, 4, 3)}, r"log_decay has shape \(1, 4, 3\), x and B ask for \(1, 4, 4\)"),
        ({"x_BLHP": torch.ones(1, 0, 4, 2)}, "none empty"),
        ({"x_BLHP": torch.ones(1, 4, 3, 2)}, "3 heads of x do not split into the 2 groups"),
        ({"h0_BHPN": torch.ones(3, 2)}, r"h0 has shape \(3, 2\)"),
    ],
    ids=str,
)
def test_errors_name_the_value_and_the_fix(change, message):
    x, log_decay, B, C, _ = inputs(1, 4, 4, 2, 2, 3)
    arguments = {"x_BLHP": x, "log_decay_BLH": log_decay, "B_BLGN": B, "C_BLGN": C} | change
    with pytest.raises(ValueError, match=message):
        ssd(**arguments)


MIXERS: dict[str, Callable[[], Mixer]] = {
    "mamba2": lambda: Mamba2(32, d_state=16, head_dim=16),
    "mamba2-groups": lambda: Mamba2(32, d_state=8, head_dim=8, num_groups=4),
    "linear-attention": lambda: LinearAttention(32, num_heads=4),
    "retnet": lambda: RetNet(32, num_heads=4),
}
every_mixer = pytest.mark.parametrize("name", MIXERS)


def make(name: str, dtype: torch.dtype = torch.float64) -> Mixer:
    mixer = MIXERS[name]()
    with torch.no_grad():
        mixer.init_weights(torch.Generator().manual_seed(0))
    return mixer.to(dtype)


def sequences(batch: int, length: int, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(batch, length, 32, generator=torch.Generator().manual_seed(2), dtype=torch.float64).to(dtype)


@every_mixer
@pytest.mark.parametrize("prompt", [0, 1, 2, 3, 64, 100])
@torch.no_grad()
def test_prefill_and_steps_equal_the_full_forward_in_place(name, prompt):
    mixer, x = make(name), sequences(2, 130)
    full = mixer(x)
    state = mixer.init_state(2, 130, device=x.device, dtype=x.dtype)
    addresses = {key: tensor.data_ptr() for key, tensor in state.items()}
    if prompt:
        torch.testing.assert_close(mixer.prefill(x[:, :prompt], state), full[:, :prompt], rtol=0, atol=1e-9)
    for t in range(prompt, 130):
        torch.testing.assert_close(mixer.step(x[:, t], state), full[:, t], rtol=0, atol=1e-9)
    assert addresses == {key: tensor.data_ptr() for key, tensor in state.items()}


@every_mixer
def test_mixers_are_causal_and_every_parameter_learns(name):
    mixer, x = make(name), sequences(2, 100)
    changed = x.clone()
    changed[:, 70] += 1
    y, y_changed = mixer(x), mixer(changed)
    torch.testing.assert_close(y[:, :70], y_changed[:, :70])
    assert not torch.allclose(y[:, 70], y_changed[:, 70])
    y.square().sum().backward()
    for label, parameter in mixer.named_parameters():
        assert parameter.grad is not None and parameter.grad.isfinite().all(), label
        assert parameter.grad.abs().sum() > 0, label


@every_mixer
def test_half_precision_stays_near(name):
    mixer, x = make(name), sequences(2, 300)
    reference = mixer(x)
    for label, parameter in mixer.named_parameters(recurse=False):
        parameter.data = parameter.data.to(torch.float32 if label in mixer.wide_params else torch.bfloat16)
    for child in mixer.children():
        child.to(torch.bfloat16)
    actual = mixer(x.bfloat16())
    assert actual.dtype == torch.bfloat16
    assert (actual.double() - reference).norm() / reference.norm() < 3e-2


@every_mixer
def test_mixers_are_checked_and_predicted(name):
    mixer, x = make(name, torch.float32), sequences(1, 500, torch.float32)
    with observing(verify=True) as report, torch.no_grad():
        real = mixer(x)
    assert report.errors["ssd"] < 1e-5
    with FakeTensorMode(), torch.no_grad():
        assert MIXERS[name]()(torch.empty(1, 500, 32)).shape == real.shape
    assert 0 < mixer.op_flops(500) < 1.1 * mixer.op_flops(1000) / 2


def test_linear_attention_is_the_normalised_sum_over_the_past():
    mixer, x = make("linear-attention"), sequences(2, 40)
    q, k, v = mixer.in_proj(x).unflatten(-1, (3, 4, 8)).unbind(2)
    scores = torch.einsum("bihk,bjhk->bhij", positive(q), positive(k)).tril()
    out = torch.einsum("bhij,bjhk->bihk", scores / scores.sum(-1, keepdim=True), v)
    torch.testing.assert_close(mixer(x), mixer.out_proj(out.flatten(2)))
    u = torch.linspace(-3, 3, 50, dtype=torch.float64)
    torch.testing.assert_close(positive(u), torch.nn.functional.elu(u) + 1)


def test_retention_is_its_parallel_form():
    """Eq. 5 of the paper, with decays and rotations written as a matrix and complex numbers."""
    mixer, x = make("retnet"), sequences(2, 40)
    q, k, v, gate = mixer.in_proj(x).split([32, 32, 64, 64], dim=-1)
    positions = torch.arange(40, dtype=torch.float64)
    theta = 10_000.0 ** (-torch.arange(0, 8, 2, dtype=torch.float64) / 8)
    turns = torch.polar(torch.ones(40, 4, dtype=torch.float64), positions[:, None] * theta)[:, None]
    q_c, k_c = (torch.complex(*t.unflatten(-1, (4, 8)).chunk(2, dim=-1)) * turns for t in (q, k))
    gamma = 1 - 2.0 ** (-5 - torch.arange(4, dtype=torch.float64))
    decay = (gamma[:, None, None] ** (positions[:, None] - positions).clamp_min(0)).tril()
    scores = torch.einsum("bihk,bjhk->bhij", q_c, k_c.conj()).real / 8**0.5 * decay
    out = torch.einsum("bhij,bjhp->bihp", scores, v.unflatten(-1, (4, 16)))
    normed = mixer.group_norm(out.flatten(2).flatten(0, 1)).unflatten(0, (2, 40))
    wanted = mixer.out_proj(normed * torch.nn.functional.silu(gate))
    torch.testing.assert_close(mixer(x), wanted, rtol=1e-5, atol=1e-6)  # our angles are float32


def test_angles_keep_their_digits_at_a_million():
    position = torch.tensor([2**20 - 1])
    cos, sin = rotary_tables(position, 64)
    theta = 10_000.0 ** (-torch.arange(0, 64, 2, dtype=torch.float64) / 64)
    exact = (2**20 - 1) * theta
    torch.testing.assert_close(cos[0].double(), exact.cos(), rtol=0, atol=1e-6)
    torch.testing.assert_close(sin[0].double(), exact.sin(), rtol=0, atol=1e-6)


def test_mamba2_parameters_have_mamba_ssm_names_and_shapes():
    shapes = {key: tuple(value.shape) for key, value in Mamba2(64, d_state=32, head_dim=16).state_dict().items()}
    assert shapes == {
        "dt_bias": (8,),
        "A_log": (8,),
        "D": (8,),
        "in_proj.weight": (2 * 128 + 2 * 32 + 8, 64),
        "conv1d.weight": (128 + 2 * 32, 1, 4),
        "conv1d.bias": (128 + 2 * 32,),
        "norm.weight": (128,),
        "out_proj.weight": (64, 128),
    }


def test_mamba2_agrees_with_the_independent_implementation_in_transformers():
    import_torchaudio()  # transformers imports it too, and falls over its missing CUDA libraries
    transformers = pytest.importorskip("transformers")
    config = transformers.Mamba2Config(
        vocab_size=16, hidden_size=64, state_size=32, num_hidden_layers=2, expand=2, conv_kernel=4, num_heads=4,
        head_dim=32, n_groups=1, chunk_size=32, residual_in_fp32=False, tie_word_embeddings=True, rms_norm=True,
        layer_norm_epsilon=1e-5,
    )  # fmt: skip
    theirs = transformers.Mamba2ForCausalLM(config).eval()
    mixers = [Mamba2(64, d_state=32, head_dim=32) for _ in range(2)]
    ours = SequenceModel(vocab_size=16, d_model=64, mixers=mixers)
    ours.init_weights(torch.Generator().manual_seed(0))
    renamed = {key.replace("backbone.embedding.", "backbone.embeddings."): v for key, v in ours.state_dict().items()}
    theirs.load_state_dict(renamed)
    for length in (1, 3, 64, 100, 257):
        ids = torch.randint(16, (2, length), generator=torch.Generator().manual_seed(length))
        with torch.no_grad():
            torch.testing.assert_close(ours(ids), theirs(ids).logits, rtol=0, atol=1e-4)


def test_widths_that_do_not_split_are_refused():
    for build in (lambda: Mamba2(30), lambda: LinearAttention(30, num_heads=4), lambda: RetNet(36, num_heads=4)):
        with pytest.raises(ValueError, match="does not split into"):
            build()


@cuda
@every_decay
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 5e-3), (torch.bfloat16, 2e-2)], ids=str)
def test_mamba_ssm_agrees_with_the_recurrence(decay, dtype, tolerance):
    x, log_decay, B, C, h0 = (
        None if t is None else t.cuda() for t in inputs(2, 700, 4, 64, 2, 64, decay, torch.float32)
    )
    tensors = [x.to(dtype), log_decay, B.to(dtype), C.to(dtype), h0]
    assert_agree(with_gradients(tensors, "mamba-ssm"), with_gradients(widened(tensors), "chunked"), tolerance)


@cuda
@pytest.mark.skipif(import_fused_block() is None, reason="needs causal-conv1d")
def test_the_fused_block_agrees_with_the_portable_one():
    mixer = Mamba2(256)
    with torch.no_grad():
        mixer.init_weights(torch.Generator().manual_seed(0))
    x = torch.randn(2, 700, 256, generator=torch.Generator().manual_seed(1)).cuda()
    with observing(verify=True) as report, torch.no_grad():
        mixer.cuda()(x)
    assert report.backends["mamba2_block"].startswith("mamba-ssm")
    assert report.errors["mamba2_block"] < 5e-3
