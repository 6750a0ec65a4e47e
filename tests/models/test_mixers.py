"""Mixers against definitions written down again: S6's variants, S4D, Hyena, LSTM; and the wirings around them."""

import itertools
import math

import pytest
import torch
import torch.nn.functional as F

from models.base import Mixer
from models.hyena import SLOW, TARGET, Hyena
from models.lstm import LSTM
from models.ops.context import observing
from models.s4d import S4D
from models.s6 import S6, SELECTABLE
from models.wirings import H3, Mamba, Plain

SELECTIONS = [c for n in range(4) for c in itertools.combinations(SELECTABLE, n)]


@pytest.fixture(autouse=True)
def _one_thread():
    torch.set_num_threads(1)


def ready(mixer: Mixer, dtype: torch.dtype = torch.float64) -> Mixer:
    with torch.no_grad():
        mixer.init_weights(torch.Generator().manual_seed(0))
    return mixer.to(dtype)


def normal(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def s6_by_definition(s6: S6, x_BLE: torch.Tensor) -> torch.Tensor:
    """Channel by channel and position by position, with nothing shared with the mixer but its parameters."""
    A = torch.complex(-s6.A_log.exp(), s6.A_imag) if s6.is_complex else -s6.A_log.exp()
    fixed = {n: getattr(s6, n) for n in {"B", "C"} - s6.select}
    if s6.is_complex:
        fixed = {n: torch.view_as_complex(p) for n, p in fixed.items()}
    h = torch.zeros(x_BLE.shape[0], *A.shape, dtype=A.dtype)
    ys = []
    for t in range(x_BLE.shape[1]):
        x = x_BLE[:, t]
        parts = dict(zip(SELECTABLE, s6.x_proj(x).split(s6.sizes, -1), strict=True)) if s6.select else {}
        dt = F.softplus(s6.dt_proj(parts["dt"]) if "dt" in s6.select else s6.dt_bias.expand_as(x))

        def modes(name, parts=parts):
            if name in fixed:
                return fixed[name][None]
            p = parts[name]
            return (torch.complex(p[:, 0::2], p[:, 1::2]) if s6.is_complex else p)[:, None]

        h = torch.exp(dt[..., None] * A) * h + (dt * x)[..., None] * modes("B")
        y = (h * modes("C")).sum(-1)
        ys.append((2 * y.real if s6.is_complex else y) + s6.D * x)
    return torch.stack(ys, 1)


@pytest.mark.parametrize("is_complex", [False, True], ids=["real", "complex"])
@pytest.mark.parametrize("select", SELECTIONS, ids=["+".join(s) or "lti" for s in SELECTIONS])
def test_s6_is_its_definition_whatever_is_selected(select, is_complex):
    s6 = ready(S6(6, d_state=8, dt_rank=2, select=select, is_complex=is_complex))
    x = normal(2, 40, 6)
    assert torch.allclose(s6(x), s6_by_definition(s6, x), atol=1e-10)


@pytest.mark.parametrize("is_complex", [False, True], ids=["real", "complex"])
@pytest.mark.parametrize("select", SELECTIONS, ids=["+".join(s) or "lti" for s in SELECTIONS])
def test_s6_gradients_are_those_of_its_definition(select, is_complex):
    s6 = ready(S6(3, d_state=4, dt_rank=2, select=select, is_complex=is_complex))
    x, weights = normal(2, 17, 3).requires_grad_(), normal(2, 17, 3)
    inputs = [x, *s6.parameters()]
    ours = torch.autograd.grad((s6(x) * weights).sum(), inputs)
    theirs = torch.autograd.grad((s6_by_definition(s6, x) * weights).sum(), inputs)
    for name, a, b in zip(["x", *dict(s6.named_parameters())], ours, theirs, strict=True):
        assert torch.allclose(a, b, atol=1e-9), name


def test_without_selection_s6_is_time_invariant_and_with_it_is_not():
    x = normal(1, 60, 6)
    shifted = F.pad(x, (0, 0, 5, 0))
    for select, invariant in (((), True), (SELECTABLE, False)):
        s6 = ready(S6(6, d_state=4, dt_rank=2, select=select))
        # Linear and time-invariant: a scaled and shifted input gives the scaled and shifted output.
        same = torch.allclose(s6(3 * shifted)[:, 5:], 3 * s6(x), atol=1e-8)
        assert same == invariant, select


@pytest.mark.parametrize("is_complex", [False, True], ids=["real", "complex"])
def test_s4d_convolution_equals_its_recurrence(is_complex):
    s4d = ready(S4D(5, d_state=8, is_complex=is_complex))
    x = normal(2, 300, 5)
    A = -s4d.log_A_real.exp()
    C = s4d.C
    if is_complex:
        A, C = torch.complex(A, s4d.A_imag), torch.view_as_complex(s4d.C)
    dt = s4d.log_dt.exp()[:, None]
    decay, into = torch.exp(dt * A), (torch.exp(dt * A) - 1) / A  # zero-order hold
    h, ys = torch.zeros(2, *A.shape, dtype=A.dtype), []
    for t in range(300):
        h = decay * h + into * x[:, t, :, None]
        y = (C * h).sum(-1)
        ys.append((2 * y.real if is_complex else y) + s4d.D * x[:, t])
    assert torch.allclose(s4d(x), torch.stack(ys, 1), atol=1e-10)


@pytest.mark.parametrize("seq_len", [1, 2, 77, 300])
def test_hyena_equals_the_direct_convolution_with_its_filter(seq_len):
    hyena = ready(Hyena(4, filter_width=8, num_features=6, max_period=128))
    x, kernel = normal(2, seq_len, 4), hyena.filter(seq_len)
    direct = hyena.D_skip * x
    for lag in range(seq_len):
        direct[:, lag:] += kernel[:, lag] * x[:, : seq_len - lag]
    assert torch.allclose(hyena(x), direct, atol=1e-10)


def test_hyenas_windows_spread_from_the_shortest_to_beyond_the_period():
    width, period, shortest = 6, 2**14, 64
    hyena = ready(Hyena(width, max_period=period, shortest_window=shortest))
    torch.nn.init.zeros_(hyena.fc2.weight)  # the MLP's value is then the same everywhere
    torch.nn.init.constant_(hyena.fc2.bias, 0.1)
    filter_DL = hyena.filter(2 * period).abs()
    falls_to = filter_DL / filter_DL[:, :1]
    where_D = [int((row > TARGET).sum()) for row in falls_to]
    assert where_D[0] == pytest.approx(shortest, rel=0.05) and where_D[-1] == pytest.approx(SLOW * period, rel=0.05)
    ratios = [b / a for a, b in itertools.pairwise(where_D)]
    assert max(ratios) == pytest.approx(min(ratios), rel=0.1)


def test_hyenas_filter_is_the_same_at_every_length():
    hyena = ready(Hyena(4))
    assert torch.allclose(hyena.filter(1000)[:, :100], hyena.filter(100), atol=1e-12)


def test_hyenas_filter_stays_finite_and_small_at_a_million():
    hyena = ready(Hyena(2, filter_width=8), torch.float32)
    with torch.no_grad():
        kernel = hyena.filter(2**20)
    assert kernel.isfinite().all()
    assert kernel[:, -1].abs().max() < 1e-6


def test_the_lstm_is_torchs_and_its_step_the_equations():
    lstm = ready(LSTM(6))
    x = normal(2, 30, 6)
    assert torch.equal(lstm(x), lstm.cell(x)[0])
    state = lstm.init_state(2, 30, device=torch.device("cpu"), dtype=torch.float64)
    stepped = torch.stack([lstm.step(x[:, t], state) for t in range(30)], 1)
    assert torch.allclose(stepped, lstm.cell(x)[0], atol=1e-12)
    # A fresh forget gate is half open at most if its bias is 0; 1 lets 73 % through.
    assert torch.equal((lstm.cell.bias_ih_l0 + lstm.cell.bias_hh_l0)[6:12], torch.ones(6, dtype=torch.float64))


@pytest.mark.parametrize("wiring", [Plain, H3, Mamba])
def test_wirings_are_their_formulas(wiring):
    inner = S4D(6, d_state=4)
    mixer = ready(wiring(6, inner) if wiring is Plain else wiring(6, inner, d_inner=6))
    x = normal(2, 50, 6)

    def conv(u):
        weight, bias = mixer.conv1d.weight, mixer.conv1d.bias
        return F.conv1d(F.pad(u.transpose(1, 2), (3, 0)), weight, bias, groups=u.shape[-1]).transpose(1, 2)

    if wiring is Plain:
        value, gate = (F.gelu(inner(x)) @ mixer.out_proj.weight.T).chunk(2, -1)
        expected = value * gate.sigmoid()
    elif wiring is H3:
        k, q, v = (x @ mixer.in_proj.weight.T).chunk(3, -1)
        expected = (q * inner(conv(k) * v)) @ mixer.out_proj.weight.T
    else:
        u, z = (x @ mixer.in_proj.weight.T).chunk(2, -1)
        expected = (inner(F.silu(conv(u))) * F.silu(z)) @ mixer.out_proj.weight.T
    assert torch.allclose(mixer(x), expected, atol=1e-10)


def test_hyenas_wiring_convolves_all_three_projections():
    inner = Hyena(4, filter_width=8)
    mixer = ready(H3(4, inner, d_inner=4, convolve_all=True))
    x = normal(1, 30, 4)
    projected = F.pad((x @ mixer.in_proj.weight.T).transpose(1, 2), (3, 0))
    k, q, v = F.conv1d(projected, mixer.conv1d.weight, mixer.conv1d.bias, groups=12).transpose(1, 2).chunk(3, -1)
    assert torch.allclose(mixer(x), (q * inner(k * v)) @ mixer.out_proj.weight.T, atol=1e-10)


def test_the_record_names_the_kernel_of_every_operator():
    with observing(verify=True) as report, torch.no_grad():
        ready(Mamba(4, S6(8), d_inner=8), torch.float32)(normal(1, 20, 4).float())
        ready(LSTM(4), torch.float32)(normal(1, 20, 4).float())
    assert set(report.backends) == {"causal_conv1d", "selective_scan", "lstm"}
    assert max(report.errors.values()) < 1e-5


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: S6(4, select=("dt", "A")), "none of dt, B, C"),
        (lambda: S6(4, d_state=3, is_complex=True), "conjugate pairs"),
        (lambda: S4D(4, d_state=3), "conjugate pairs"),
        (lambda: Hyena(4, num_features=3), "cosines and sines"),
    ],
)
def test_impossible_mixers_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_a_prompt_longer_than_hyenas_state_is_refused():
    hyena = ready(Hyena(4))
    state = hyena.init_state(1, 8, device=torch.device("cpu"), dtype=torch.float64)
    with pytest.raises(ValueError, match="state of 8"):
        hyena.prefill(normal(1, 9, 4), state)


def test_hyenas_windows_span_a_range_of_decays():
    """At max_period the fastest has fallen to TARGET^(1/0.3), the slowest to TARGET^(1/1.5)."""
    hyena = ready(Hyena(8, max_period=512))
    with torch.no_grad():
        envelope = hyena.filter(513)[:, 512].abs() / hyena.filter(1)[:, 0].abs().clamp(min=1e-9)
    assert envelope[0] < 1e-5
    assert math.log10(envelope[-1]) > -5
