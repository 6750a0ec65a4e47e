"""Attention: every variant against softmax as written, its cache, its memory and the choice of its kernel."""

import itertools
import math

import pytest
import torch
from torch.nn.attention import SDPBackend

from harness.memory import memory_of
from harness.prediction import predict
from models.attention import Attention
from models.ops import attention as ops
from models.ops import attention_blocks, sdpa
from models.ops.attention import causal_attention, causal_attention_flops, force_kernel
from models.ops.context import observing
from models.ops.positions import alibi_slopes, rotary_tables, rotate, sinusoids, xpos_rates

POSITIONS = ["rope", "xpos", "alibi", "none", "absolute"]
BIASES = ["none", "alibi", "xpos", "alibi and xpos"]


@pytest.fixture(autouse=True)
def _one_thread():
    torch.set_num_threads(1)


@pytest.fixture
def small_blocks(monkeypatch):
    """Every kind of block within a hundred positions."""
    monkeypatch.setattr(attention_blocks, "_MAX_MASKED_BLOCK", 16)
    monkeypatch.setattr(attention_blocks, "_CENTRED_BLOCK", 24)
    monkeypatch.setattr(attention_blocks, "_FOLDED_LEN", 192)


def normal(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def biases(name: str, num_heads: int, head_dim: int) -> dict[str, torch.Tensor]:
    slopes = {"slopes_H": alibi_slopes(num_heads)} if "alibi" in name else {}
    return slopes | ({"xpos_K": xpos_rates(head_dim)} if "xpos" in name else {})


def naive(q, k, v, *, window=None, slopes_H=None, xpos_K=None):
    """Scores of all pairs at once, in the dtype given."""
    L, K = q.shape[2:]
    distance = torch.arange(L)[:, None] - torch.arange(L)
    seen = (distance >= 0) & (distance < (window or L))
    distance = distance.clamp_min(0).to(q.dtype)
    scores = q @ k.mT if xpos_K is None else 0.0
    if xpos_K is not None:
        for i, rate in enumerate(xpos_K.to(q.dtype)):
            scores = scores + q[..., :, None, i] * k[..., None, :, i] * (rate * distance).exp()
    scores = scores / math.sqrt(K)
    if slopes_H is not None:
        scores = scores - slopes_H.to(q.dtype)[:, None, None] * distance
    return scores.masked_fill(~seen, -torch.inf).softmax(-1) @ v


@pytest.mark.parametrize("bias", BIASES)
@pytest.mark.parametrize("window", [None, 1, 8, 70, 1000])
@pytest.mark.parametrize("seq_len", [1, 97, 301])
def test_values_and_gradients_are_those_of_softmax(small_blocks, bias, window, seq_len):
    tensors = [normal(2, 3, seq_len, 6, seed=i).requires_grad_() for i in range(3)]
    how = {"window": window, **biases(bias, 3, 6)}
    actual, expected = causal_attention(*tensors, **how), naive(*tensors, **how)
    assert torch.allclose(actual, expected, atol=1e-12)
    weight = normal(*actual.shape, seed=9)
    for ours, theirs in zip(
        torch.autograd.grad((actual * weight).sum(), tensors),
        torch.autograd.grad((expected * weight).sum(), tensors),
        strict=True,
    ):
        assert torch.allclose(ours, theirs, atol=1e-11)


@pytest.mark.parametrize("bias", BIASES)
@pytest.mark.parametrize("window", [None, 200])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_narrow_dtypes_stay_within_their_rounding(bias, window, dtype):
    """Blocks of the sizes in use, and more than one of each kind."""
    tensors = [normal(1, 2, 1100, 8, seed=i).to(dtype).requires_grad_() for i in range(3)]
    wide = [t.detach().double().requires_grad_() for t in tensors]
    how = {"window": window, **biases(bias, 2, 8)}
    actual, expected = causal_attention(*tensors, **how), naive(*wide, **how)
    assert actual.dtype == dtype
    pairs = [(actual, expected)]
    pairs += zip(torch.autograd.grad(actual.sum(), tensors), torch.autograd.grad(expected.sum(), wide), strict=True)
    limit = {torch.float32: 2e-6, torch.bfloat16: 2e-2, torch.float16: 3e-3}[dtype]
    for ours, theirs in pairs:
        assert (ours.double() - theirs).norm() <= limit * theirs.norm()


@pytest.mark.parametrize("bias", ["alibi", "alibi and xpos"])
@pytest.mark.parametrize("block", [128, 1000])
def test_slopes_as_head_dimensions_are_the_bias(monkeypatch, bias, block):
    """What runs in bfloat16 on CUDA, here on the CPU."""
    monkeypatch.setattr(ops, "folds_slopes", lambda q: True)
    monkeypatch.setattr(attention_blocks, "_CENTRED_BLOCK", block)
    tensors = [normal(2, 6, 500, 8, seed=i).to(torch.bfloat16).requires_grad_() for i in range(3)]
    wide = [t.detach().double().requires_grad_() for t in tensors]
    how = biases(bias, 6, 8)
    actual, expected = causal_attention(*tensors, **how), naive(*wide, **how)
    pairs = [(actual, expected)]
    pairs += zip(torch.autograd.grad(actual.sum(), tensors), torch.autograd.grad(expected.sum(), wide), strict=True)
    for ours, theirs in pairs:
        assert (ours.double() - theirs).norm() <= 2e-2 * theirs.norm()


def test_slopes_as_head_dimensions_keep_their_digits():
    """The products that a kernel adds up, at the ends of the range, are the bias to 0.002."""
    slopes, places = alibi_slopes(12), torch.tensor([-(2.0**20), -777_777.0, -16_385.0, -129.0, -1.0, 0.0, 4095.0])
    empty = torch.zeros(1, 12, 7, 64, dtype=torch.bfloat16)
    q, k, _ = attention_blocks._with_slopes(empty, empty, empty, slopes, places)
    expected = slopes.double()[:, None] * places.double()
    actual = (q[0, :, :1].double() @ k[0].double().mT)[:, 0] / 64**0.5
    assert (actual - expected).abs().max() < 2e-3


@pytest.mark.parametrize("bias", BIASES)
@pytest.mark.parametrize("window", [None, 20])
@pytest.mark.parametrize("place", [0, 19, 20, 63, 99])
def test_causality_and_the_window(small_blocks, bias, window, place):
    """A key changes the outputs of those who see it, and of nobody else."""
    q, k, v = (normal(1, 2, 100, 8, seed=i) for i in range(3))
    how = {"window": window, **biases(bias, 2, 8)}
    changed_k, changed_v = k.clone(), v.clone()
    changed_k[:, :, place] += 1
    changed_v[:, :, place] += 1
    moved = (causal_attention(q, changed_k, changed_v, **how) - causal_attention(q, k, v, **how)).abs().amax((0, 1, 3))
    sees = torch.zeros(100, dtype=torch.bool)
    sees[place : None if window is None else place + window] = True
    assert bool((moved[sees] > 0).all())
    assert bool((moved[~sees] == 0).all())


@pytest.mark.parametrize("bias", BIASES)
def test_only_distances_matter(small_blocks, bias):
    """Rotated by positions near 2^20, and cut out of a longer sequence, the outputs are the same."""
    q, k, v = (normal(1, 2, 90, 8, seed=i) for i in range(3))
    how = {"window": 40, **biases(bias, 2, 8)}

    def rotated(start: int) -> list[torch.Tensor]:
        tables = rotary_tables(torch.arange(start, start + 90), 8, dtype=torch.float64)
        return [rotate(q, *tables), rotate(k, *tables), v]

    near = causal_attention(*rotated(0), **how)
    assert torch.allclose(near, causal_attention(*rotated(2**20 - 90), **how), atol=1e-8)
    # Behind 500 other positions every query that sees nothing of them has the same output.
    behind = [torch.cat([normal(1, 2, 500, 8, seed=7), t], dim=2) for t in rotated(0)]
    assert torch.allclose(near[:, :, 39:], causal_attention(*behind, **how)[:, :, 539:], atol=1e-12)


def test_rotation_in_float32_depends_on_the_distance_alone():
    """Angles rounded to float32 would be off by 0.06 at the far end."""
    q, k = normal(1, 64, seed=1, dtype=torch.float32), normal(1, 64, seed=2, dtype=torch.float32)

    def score(i: int, j: int) -> float:
        tables = [rotary_tables(torch.tensor([p]), 64) for p in (i, j)]
        return float((rotate(q, *tables[0]) * rotate(k, *tables[1])).sum())

    for distance in (0, 1, 100):
        assert score(2**20, 2**20 - distance) == pytest.approx(score(distance, 0), abs=2e-5)


def test_xpos_decays_at_every_distance_and_never_overflows():
    """Far from its block's centre an unlimited scale would be infinite: zeta^(-n/512) is 10^1100 at n = 2^20."""
    rates = xpos_rates(8)
    assert bool((rates <= 0).all())
    assert float((512 * rates).exp().min()) == pytest.approx(0.4 / 1.4)  # the paper's gamma / (1 + gamma)
    q, k = normal(1, 1, 1, 8, dtype=torch.float32), normal(1, 1, 2**20 + 1, 8, seed=1, dtype=torch.float32)
    scaled_q, scaled_k = attention_blocks._xpos_scaled(q, k, rates, torch.arange(-(2.0**20), 1))
    assert scaled_k.isfinite().all() and scaled_q.isfinite().all()
    distance = torch.arange(2**20, -1, -1, dtype=torch.float64)
    expected = (k[0, 0].double() * q[0, 0].double() * (rates.double() * distance[:, None]).exp()).sum(-1)
    assert torch.allclose((scaled_k @ scaled_q.mT)[0, 0, :, 0].double(), expected, rtol=1e-5, atol=1e-6)


def test_slopes_and_sinusoids_are_the_papers():
    assert alibi_slopes(8).tolist() == [2.0**-h for h in range(1, 9)]
    twelve = [2.0**-h for h in range(1, 9)] + [2.0 ** -(h / 2) for h in (1, 3, 5, 7)]
    assert alibi_slopes(12).tolist() == pytest.approx(twelve)
    places = [0, 1, 1000, 2**20]
    table = sinusoids(torch.tensor(places), 32)
    assert table.dtype == torch.float32
    for row, position in zip(table.tolist(), places, strict=True):
        for i in range(16):
            angle = position / 10_000 ** (2 * i / 32)
            assert row[2 * i : 2 * i + 2] == pytest.approx([math.sin(angle), math.cos(angle)], abs=1e-7)
    with pytest.raises(ValueError, match="width=7"):
        sinusoids(torch.arange(3), 7)


def mixer(positions: str, window: int | None = None, **options) -> Attention:
    made = Attention(24, num_heads=6, positions=positions, window=window, **options).double()
    with torch.no_grad():
        made.init_weights(torch.Generator().manual_seed(0))
    return made


@torch.no_grad()
@pytest.mark.parametrize("positions", POSITIONS)
@pytest.mark.parametrize("window", [None, 1, 7, 200])
def test_prefill_and_steps_equal_the_forward(positions, window):
    """With a window of 7 the ring goes round many times, from every prompt's own place in it."""
    attention, x = mixer(positions, window), normal(2, 60, 24)
    full = attention(x)
    for prompt in (1, 6, 7, 8, 30, 60):
        state = attention.init_state(2, 60, device=x.device, dtype=x.dtype)
        addresses = {key: tensor.data_ptr() for key, tensor in state.items()}
        assert torch.allclose(attention.prefill(x[:, :prompt], state), full[:, :prompt], atol=1e-9)
        for t in range(prompt, 60):
            assert torch.allclose(attention.step(x[:, t], state), full[:, t], atol=1e-9), (prompt, t)
        assert addresses == {key: tensor.data_ptr() for key, tensor in state.items()}
        assert state["keys"].shape[2] == min(60, window or 60)


@torch.no_grad()
@pytest.mark.parametrize("positions", POSITIONS)
def test_shared_key_heads_are_full_heads_with_repeated_weights(positions):
    grouped, full, x = mixer(positions, num_kv_heads=2), mixer(positions), normal(2, 40, 24)
    q, k, v = grouped.in_proj.weight.split((24, 8, 8))
    repeated = [t.view(2, 4, 24).repeat_interleave(3, dim=0).flatten(0, 1) for t in (k, v)]
    full.in_proj.weight.copy_(torch.cat([q, *repeated]))
    full.out_proj.weight.copy_(grouped.out_proj.weight)
    expected = full(x)
    assert torch.allclose(grouped(x), expected, atol=1e-12)
    state = grouped.init_state(2, 40, device=x.device, dtype=x.dtype)
    assert state["keys"].shape == (2, 2, 40, 4)
    grouped.prefill(x[:, :20], state)
    for t in range(20, 40):
        assert torch.allclose(grouped.step(x[:, t], state), expected[:, t], atol=1e-9)


@torch.no_grad()
def test_positions_matter_and_differ():
    x, outputs = normal(1, 50, 24), {}
    for positions in POSITIONS:
        outputs[positions] = mixer(positions)(x)
    for one, other in itertools.combinations(POSITIONS, 2):
        same = torch.allclose(outputs[one], outputs[other], atol=1e-3)
        assert same == ({one, other} == {"none", "absolute"}), (one, other)


def test_the_cache_of_a_window_takes_longer_prompts_and_no_other_does():
    x = normal(1, 9, 24)
    for window, fits in ((None, False), (8, True), (20, False)):
        attention = mixer("rope", window)
        state = attention.init_state(1, 8, device=x.device, dtype=x.dtype)
        if fits:
            attention.prefill(x, state)
        else:
            with pytest.raises(ValueError, match="cache of 8"):
                attention.prefill(x, state)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(num_heads=5), "does not split into 5 heads"),
        (dict(num_heads=8), "even width"),
        (dict(num_heads=6, num_kv_heads=4), "num_kv_heads=4 does not divide"),
        (dict(num_heads=6, window=0), "window=0 is below 1"),
        (dict(num_heads=6, positions="learned"), "'learned' is not one of rope"),
    ],
)
def test_what_does_not_fit_is_refused_by_name(options, message):
    with pytest.raises(ValueError, match=message):
        Attention(24, **options)
    with pytest.raises(ValueError, match="window=0 is below 1"):
        causal_attention(*[normal(1, 1, 4, 4)] * 3, window=0)


def test_flops_count_the_pairs_that_see_each_other():
    for seq_len, window in itertools.product((1, 5, 12), (None, 1, 4, 12, 30)):
        pairs = sum(min(i + 1, window or seq_len) for i in range(seq_len))
        assert causal_attention_flops(seq_len, 10, window) == 4 * 10 * pairs


@pytest.mark.parametrize("bias", BIASES)
@pytest.mark.parametrize("window", [None, 50])
def test_every_variant_is_checked_and_a_wrong_output_is_caught(bias, window):
    q, k, v = (normal(2, 4, 3000, 16, seed=i, dtype=torch.float32) for i in range(3))
    how = {"window": window, **biases(bias, 4, 16)}
    with observing(verify=True) as report:
        out = causal_attention(q, k, v, **how)
    assert report.errors["attention"] < 2e-6
    assert report.forward_flops == 2 * causal_attention_flops(3000, 64, window)
    pattern = attention_blocks.Pattern(**how)
    # What another variant would have given is wrong here.
    for other in ({}, {"window": 49}, biases("alibi", 4, 16), biases("xpos", 4, 16)):
        if other.keys() != {key for key, value in how.items() if value is not None} or "window" in other:
            assert ops._slice_error(q, k, v, causal_attention(q, k, v, **other), pattern) > 1e-3, other
    out[0, 3, -1] = 0
    assert ops._slice_error(q, k, v, out, pattern) > 1e-3


def forward_backward(seq_len: int, *, window: int | None = None, bias: str = "none", fake: bool = False):
    """Builds, where it is called, what calls the operator and its gradient."""

    def build():
        make = torch.empty if fake else normal
        tensors = [make(1, 4, seq_len, 16, dtype=torch.float32).requires_grad_() for _ in range(3)]
        how = {"window": window, **biases(bias, 4, 16)}

        def call() -> None:
            for tensor in tensors:
                tensor.grad = None
            out = causal_attention(*tensors, **how)
            out.backward(out.detach())  # dense: kernels copy an expanded gradient

        return call

    return build


@pytest.mark.conformance
@pytest.mark.parametrize("bias", ["none", "alibi", "xpos"])
def test_memory_of_a_window_is_linear_and_predicted(bias):
    def work() -> object:
        call = forward_backward(2**14, window=64, bias=bias)()
        call()
        call()
        return call

    def predicted(seq_len: int) -> int:
        return predict(forward_backward(seq_len, window=64, bias=bias, fake=True)).peak_bytes

    assert memory_of(work, torch.device("cpu"))["peak_alloc_bytes"] == pytest.approx(predicted(2**14), rel=0.01)
    first, second, third = (predicted(2**n) for n in (16, 17, 18))
    assert third - second == pytest.approx(2 * (second - first), rel=0.05)
    # Eight tensors of q's size: q, k, v and their gradients, the output and its gradient.
    assert (third - second) / 2**17 < 8.5 * 4 * 64


def test_nothing_of_the_scores_is_kept_for_the_backward():
    """ALiBi over 2,048 positions: all biases of four heads would be 64 MiB."""
    kept: list[int] = []

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        kept.append(tensor.nbytes)
        return tensor

    tensors = [normal(1, 4, 2048, 16, dtype=torch.float32).requires_grad_() for _ in range(3)]
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda t: t):
        causal_attention(*tensors, **biases("alibi", 4, 16)).sum()
    assert kept and sum(kept) <= 3 * tensors[0].nbytes


# --------------------------------------------------------------------------------------------------

FLASH, CUDNN = SDPBackend.FLASH_ATTENTION, SDPBackend.CUDNN_ATTENTION
EFFICIENT, MATH = SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH


@pytest.fixture
def timed(monkeypatch):
    """Four candidates, an empty memory of choices, and a clock that says what it is told."""
    times: dict[SDPBackend, float] = {}
    asked: list[SDPBackend] = []

    def time_of(kernel, q, k, v, needs_grad):
        asked.append(kernel)
        return times[kernel]

    monkeypatch.setattr(sdpa, "_candidates", lambda q: [FLASH, CUDNN, EFFICIENT, MATH])
    monkeypatch.setattr(sdpa, "_time_of", time_of)
    monkeypatch.setattr(sdpa, "_NUM_ROUNDS", 1)
    monkeypatch.setattr(sdpa, "_fastest", {})
    monkeypatch.delenv(ops.KERNEL_VARIABLE, raising=False)
    return times, asked


def qkv(batch=2, num_heads=2, seq_len=40, requires_grad=False):
    return [normal(batch, num_heads, seq_len, 8, dtype=torch.float32).requires_grad_(requires_grad) for _ in range(3)]


@pytest.mark.parametrize(
    ("ms", "winner"),
    [
        ((10, 5, 20, 30), CUDNN),
        ((10, 9.7, 20, 30), FLASH),  # not clearly faster than PyTorch's own choice
        ((10, math.inf, 9, math.inf), EFFICIENT),  # candidates that do not run are passed over
        ((math.inf, math.inf, math.inf, 30), MATH),
        ((math.inf, math.inf, math.inf, math.inf), FLASH),
    ],
)
def test_the_clearly_fastest_kernel_is_chosen_and_remembered(timed, ms, winner):
    times, asked = timed
    times.update(zip((FLASH, CUDNN, EFFICIENT, MATH), ms, strict=True))
    assert ops.choose_kernel(*qkv()) == winner
    times.update(dict.fromkeys(times, 1.0))
    assert ops.choose_kernel(*qkv(seq_len=50)) == winner
    assert asked == [FLASH, CUDNN, EFFICIENT, MATH]


def test_choices_differ_by_what_they_depend_on(timed):
    times, asked = timed
    times.update({FLASH: 2.0, CUDNN: 1.0, EFFICIENT: 3.0, MATH: 4.0})
    for shape in ({}, {"seq_len": 100}, {"num_heads": 8}, {"requires_grad": True}):
        before = len(asked)
        ops.choose_kernel(*qkv(**shape))
        assert len(asked) == before + 4, shape
    before = len(asked)
    with torch.no_grad():
        ops.choose_kernel(*qkv(requires_grad=True))  # as without gradients
    assert len(asked) == before


def test_measurements_take_a_slice_and_leave_no_gradient(monkeypatch):
    seen: list[tuple[int, ...]] = []

    def watch(call, device, calls=1):
        call()
        return 1.0

    def time_of(kernel, q, k, v, needs_grad, run=sdpa._time_of):
        seen.append(tuple(q.shape))
        return run(kernel, q, k, v, needs_grad)

    monkeypatch.setattr(sdpa, "_candidates", lambda q: [FLASH, CUDNN])
    monkeypatch.setattr(sdpa, "_fastest", {})
    monkeypatch.setattr(sdpa, "_time_of", time_of)
    monkeypatch.setattr(sdpa, "_time_ms", watch)
    monkeypatch.setattr(sdpa, "_MEASURED_LEN", 64)
    tensors = qkv(batch=5, seq_len=30, requires_grad=True)
    assert ops.choose_kernel(*tensors) == FLASH  # cuDNN raises on a CPU
    assert ops.choose_kernel(*qkv(seq_len=100)) == FLASH
    # Flash in every round, cuDNN once.
    assert seen == [(2, 2, 30, 8)] * (sdpa._NUM_ROUNDS + 1) + [(1, 2, 64, 8)] * (sdpa._NUM_ROUNDS + 1)
    assert all(t.grad is None for t in tensors)


def test_a_kernel_can_be_forced_and_a_wrong_one_is_refused(timed, monkeypatch):
    _, asked = timed
    tensors = qkv()
    expected = naive(*tensors)
    for name in ("math", "flash"):
        monkeypatch.setenv(ops.KERNEL_VARIABLE, name)
        with observing() as report:
            assert torch.allclose(causal_attention(*tensors), expected, atol=1e-6)
        assert report.backends["attention"] == f"sdpa-{name}"
    with force_kernel("default"):
        assert ops.choose_kernel(*tensors) == FLASH
    with force_kernel("cudnn"), pytest.raises(ValueError, match="SEQBENCH_SDPA=cudnn cannot run"):
        causal_attention(*tensors)
    monkeypatch.setenv(ops.KERNEL_VARIABLE, "fastest")
    with pytest.raises(ValueError, match="'fastest' is not one of auto, default, flash"):
        causal_attention(*tensors)
    assert not asked


def test_predictions_measure_nothing(timed):
    _, asked = timed
    predict(forward_backward(40, fake=True))
    assert not asked


# --------------------------------------------------------------------------------------------------

cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")


@cuda
@pytest.mark.parametrize("bias", BIASES)
@pytest.mark.parametrize("window", [None, 200, 700])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_values_and_gradients_on_cuda(monkeypatch, bias, window, dtype):
    monkeypatch.setattr(attention_blocks, "_CENTRED_BLOCK", 256)
    tensors = [normal(2, 2, 1101, 16, seed=i).to("cuda", dtype).requires_grad_() for i in range(3)]
    wide = [t.detach().cpu().double().requires_grad_() for t in tensors]
    how = {"window": window, **biases(bias, 2, 16)}
    on_device = {key: value.cuda() if isinstance(value, torch.Tensor) else value for key, value in how.items()}
    actual, expected = causal_attention(*tensors, **on_device), naive(*wide, **how)
    pairs = [(actual, expected)]
    pairs += zip(torch.autograd.grad(actual.sum(), tensors), torch.autograd.grad(expected.sum(), wide), strict=True)
    for ours, theirs in pairs:
        assert (ours.cpu().double() - theirs).norm() <= {torch.float32: 1e-5, torch.bfloat16: 2e-2}[
            dtype
        ] * theirs.norm()


@cuda
@torch.no_grad()
@pytest.mark.parametrize("positions", POSITIONS)
@pytest.mark.parametrize("window", [None, 7])
def test_a_captured_step_replays_every_position(positions, window):
    attention, x = mixer(positions, window).cuda(), normal(2, 40, 24).cuda()
    full = attention(x)
    state = attention.init_state(2, 40, device=x.device, dtype=x.dtype)
    token, graph, stream = x[:, 0].clone(), torch.cuda.CUDAGraph(), torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        attention.step(token, state)
    torch.cuda.synchronize()
    with torch.cuda.graph(graph):
        out = attention.step(token, state)
    attention.prefill(x[:, :10], state)
    for t in range(10, 40):
        token.copy_(x[:, t])
        graph.replay()
        assert torch.allclose(out, full[:, t], atol=1e-9), t


@cuda
def test_the_choice_on_cuda_is_made_once_and_never_in_a_capture(monkeypatch):
    monkeypatch.setattr(sdpa, "_fastest", {})
    tensors = [normal(2, 4, 512, 64, dtype=torch.float32).to("cuda", torch.bfloat16) for _ in range(3)]
    graph = torch.cuda.CUDAGraph()
    causal_attention(*tensors)
    sdpa._fastest.clear()
    with torch.cuda.graph(graph):
        causal_attention(*tensors)
    assert not sdpa._fastest
    with observing(verify=True) as report:
        causal_attention(*tensors)
    (kernel,) = sdpa._fastest.values()
    assert report.backends["attention"] == f"sdpa-{sdpa._NAMES[kernel]}"
    assert report.errors["attention"] < 1e-2
