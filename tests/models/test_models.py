"""Predicted memory of every model, convolutions, small parts. What every model must do is in test_conformance."""

import pytest
import torch

from harness.memory import memory_of
from harness.prediction import predict
from models import MODELS, build_fake_model, build_model, family
from models.base import GatedMLP
from models.ops.fft_conv import causal_conv, fast_fft_len, ssm_final_state, ssm_kernel
from models.s4d import S4D

VOCAB = 16
TINY = [name for name in MODELS if name.endswith("-tiny")]
tiny = pytest.mark.parametrize("name", TINY)


@pytest.fixture(autouse=True)
def _one_thread():
    torch.set_num_threads(1)


def make(name: str, seed: int = 0):
    return build_model(name, vocab_size=VOCAB, seed=seed)


def tokens(batch: int, seq_len: int, seed: int = 0) -> torch.Tensor:
    return torch.randint(VOCAB, (batch, seq_len), generator=torch.Generator().manual_seed(seed))


@pytest.mark.conformance
@tiny
@pytest.mark.parametrize(("direction", "seq_len"), [("forward", 4096), ("train", 1024)])
def test_predicted_peak_equals_the_allocators(name, direction, seq_len):
    """Within 1 %; what is left are small allocations inside kernels. oneDNN's LSTM is fitted, not known."""

    def build(fake: bool):
        model = build_fake_model(name, vocab_size=VOCAB) if fake else make(name)
        ids = torch.zeros(1, seq_len, dtype=torch.int64)
        optimizer = torch.optim.AdamW(model.parameters())

        def call() -> None:
            if direction == "forward":
                with torch.no_grad():
                    model(ids)
                return
            optimizer.zero_grad(set_to_none=True)
            torch.nn.functional.cross_entropy(model(ids).flatten(0, 1), ids.flatten()).backward()
            optimizer.step()

        return call

    def work() -> object:
        call = build(False)
        call()
        call()
        return call

    predicted = predict(lambda: build(True)).peak_bytes
    measured = memory_of(work, torch.device("cpu"))["peak_alloc_bytes"]
    assert predicted == pytest.approx(measured, rel=0.15 if family(name) == "lstm" else 0.01)


def test_mamba_parameters_have_mamba_ssms_names_and_shapes_but_for_the_mixers_own_level():
    state = make("mamba-tiny").state_dict()
    expected = {
        "backbone.embedding.weight": (16, 64),
        "backbone.norm_f.weight": (64,),
        "lm_head.weight": (16, 64),
    }
    for i in range(2):
        layer = f"backbone.layers.{i}."
        expected |= {
            layer + "norm.weight": (64,),
            layer + "mixer.inner.A_log": (128, 16),
            layer + "mixer.inner.D": (128,),
            layer + "mixer.in_proj.weight": (256, 64),
            layer + "mixer.conv1d.weight": (128, 1, 4),
            layer + "mixer.conv1d.bias": (128,),
            layer + "mixer.inner.x_proj.weight": (36, 128),
            layer + "mixer.inner.dt_proj.weight": (128, 4),
            layer + "mixer.inner.dt_proj.bias": (128,),
            layer + "mixer.out_proj.weight": (64, 128),
        }
    assert {key: tuple(value.shape) for key, value in state.items()} == expected


def test_ssm_kernel_agrees_with_the_recurrence():
    generator = torch.Generator().manual_seed(0)
    mixer = S4D(8, d_state=16).double()
    with torch.no_grad():
        mixer.init_weights(generator)
    log_decay, input_, C = mixer.discretised()
    kernel = ssm_kernel(C * input_, log_decay, 300)
    h, outputs = input_.clone(), []
    for _ in range(300):
        outputs.append(2 * (C * h).sum(-1).real)
        h = h * log_decay.exp()
    assert torch.allclose(kernel, torch.stack(outputs, -1), atol=1e-12)

    x = torch.randn(2, 8, 77, generator=generator, dtype=torch.float64)
    h = torch.zeros(2, 8, 8, dtype=torch.complex128)
    for t in range(77):
        h = h * log_decay.exp() + input_ * x[:, :, t, None]
    assert torch.allclose(ssm_final_state(x, input_, log_decay), h, atol=1e-12)


@pytest.mark.parametrize("seq_len", [1, 2, 100, 1000])
def test_fft_convolution_agrees_with_the_direct_one(seq_len):
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(2, 3, seq_len, generator=generator, dtype=torch.float64)
    kernel = torch.randn(3, seq_len, generator=generator, dtype=torch.float64)
    direct = torch.zeros_like(x)
    for j in range(seq_len):
        direct[..., j:] += kernel[:, j, None] * x[..., : seq_len - j]
    assert torch.allclose(causal_conv(x, kernel), direct, atol=1e-9)


@pytest.mark.parametrize("seq_len", [1, 7, 50])
def test_fft_convolution_has_the_gradients_of_finite_differences(seq_len):
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(2, 3, seq_len, generator=generator, dtype=torch.float64).requires_grad_()
    kernel = torch.randn(3, seq_len, generator=generator, dtype=torch.float64).requires_grad_()
    assert torch.autograd.gradcheck(causal_conv, (x, kernel))


def test_fft_convolution_makes_no_gradient_that_nobody_asks_for():
    x, kernel = torch.randn(2, 3, 9), torch.randn(3, 9)
    for wanted, other in ((x, kernel), (kernel, x)):
        wanted.requires_grad_(), other.requires_grad_(False)
        causal_conv(x, kernel).sum().backward()
        assert wanted.grad is not None and other.grad is None
        wanted.grad = None


def test_fft_lengths_are_even_smooth_and_no_shorter():
    for minimum in [*range(1, 300), 1000, 2**20 - 1, 2**21, 3_000_001]:
        n = fast_fft_len(minimum)
        assert n >= minimum and n % 2 == 0
        for prime in (2, 3, 5):
            while n % prime == 0:
                n //= prime
        assert n == 1


def test_swiglu_is_what_it_says():
    mlp = GatedMLP(4, 3)
    x = torch.randn(2, 4, generator=torch.Generator().manual_seed(0))
    value, gate = (x @ mlp.fc1.weight.T).chunk(2, -1)
    assert torch.allclose(mlp(x), (value * gate * gate.sigmoid()) @ mlp.fc2.weight.T)


@pytest.mark.parametrize("shape", [(3,), (2, 0), (1, 2, 3)])
def test_ids_of_a_wrong_shape_are_refused(shape):
    with pytest.raises(ValueError, match=r"\(batch, seq_len\)"):
        make("s4d-tiny")(torch.zeros(shape, dtype=torch.int64))


def test_a_prompt_longer_than_the_cache_is_refused():
    model = make("transformer-tiny")
    with pytest.raises(ValueError, match="cache of 8"):
        model.prefill(tokens(1, 9), model.init_state(1, 8))
