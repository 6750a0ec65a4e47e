"""Loops that sample: eager or captured, each draws what whole forwards would by the same random numbers."""

from types import SimpleNamespace

import pytest
import torch

from benchmarks.audio_generation_loops import EagerSampler, GraphSampler
from benchmarks.audio_generation_sampling import Sampling, choose, draw_uniforms
from models import build_model
from tasks.audio.clips import SILENCE

MODELS = ("mamba_complex-unet1x4", "transformer-unet1x4", "hyena-unet1x4", "mamba-tiny", "s4d-tiny", "transformer-tiny")
NEW = 40


@pytest.fixture(autouse=True)
def _one_thread():
    torch.set_num_threads(1)


@pytest.fixture(scope="module")
def cuda():
    if not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")
    return torch.device("cuda")


def sharp_model(name: str) -> torch.nn.Module:
    """Of logits that are far from even, so that a wrong one would change what is drawn; more, and a token repeats."""
    model = build_model(name, vocab_size=256, seed=1, dtype=torch.float64).eval()
    with torch.no_grad():
        model.lm_head.weight.mul_(4)
    return model


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("prompt_len", [1, 21])
@pytest.mark.parametrize("sampling", [Sampling(), Sampling(temperature=0.7, top_p=0.8)], ids=["plain", "top-p"])
def test_samples_are_those_of_whole_forwards_by_the_same_random_numbers(name, prompt_len, sampling):
    model = sharp_model(name)
    prompt_BL = torch.randint(256, (2, prompt_len), generator=torch.Generator().manual_seed(0))
    uniforms_BN = draw_uniforms(2, NEW, seed=5)
    ids_BL = prompt_BL
    with torch.no_grad():
        for place in range(NEW):
            next_B = choose(model(ids_BL)[:, -1], uniforms_BN[:, place], sampling)
            ids_BL = torch.cat([ids_BL, next_B[:, None]], dim=1)
    loop = EagerSampler(model, prompt_BL, uniforms_BN, sampling)
    for _ in range(2):  # a second time from used states
        loop.prefill()
        loop.decode(NEW - 1)
        assert torch.equal(loop.tokens_BN, ids_BL[:, prompt_len:])
    assert len(loop.tokens_BN.unique()) > 5


@pytest.mark.parametrize("name", ["mamba_complex-unet1x4", "transformer-unet1x4", "mamba-tiny", "transformer-tiny"])
@pytest.mark.parametrize("prompt_len", [1, 21])
def test_captured_steps_sample_what_eager_ones_do(name, prompt_len, cuda):
    model = sharp_model(name).to(cuda)
    prompt_BL = torch.full((2, prompt_len), SILENCE, device=cuda)
    uniforms_BN = draw_uniforms(2, NEW, seed=5)
    found = []
    for loop_class in (EagerSampler, GraphSampler):
        loop = loop_class(model, prompt_BL, uniforms_BN, Sampling(top_p=0.9))
        loop.prefill()
        loop.decode(NEW - 1)
        found.append(loop.tokens_BN.cpu())
    assert torch.equal(*found)


class Replayed(GraphSampler):
    """What is captured runs instead, so that a CPU sees which step is replayed where."""

    def _capture(self):
        for ticks in self._ticks():
            logits_BV = self.prompt_BL.new_zeros(len(self.prompt_BL), 256, dtype=torch.float64)
            replay = torch.no_grad()(lambda ticks=ticks, logits_BV=logits_BV: logits_BV.copy_(self._run(ticks)))
            self._graphs[ticks] = SimpleNamespace(replay=replay), logits_BV


@pytest.mark.parametrize("name", ["mamba_complex-unet1x4", "transformer-unet1x4", "mamba-tiny"])
@pytest.mark.parametrize("prompt_len", [1, 15, 16, 21])
def test_of_captured_steps_the_one_of_the_place_is_replayed(name, prompt_len, monkeypatch):
    monkeypatch.setattr(torch.cuda, "synchronize", lambda device=None: None)
    model = sharp_model(name)
    prompt_BL = torch.randint(256, (2, prompt_len), generator=torch.Generator().manual_seed(0))
    eager, replayed = (
        loop_class(model, prompt_BL, draw_uniforms(2, NEW, seed=5), Sampling())
        for loop_class in (EagerSampler, Replayed)
    )
    assert len(replayed._graphs) == (3 if "unet" in name else 1)
    for _ in range(2):
        for ours, theirs in zip(replayed.trace(), eager.trace(), strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-12)
        assert torch.equal(replayed.tokens_BN, eager.tokens_BN)


def test_tokens_are_drawn_in_proportion_and_never_from_beyond_the_nucleus():
    shares_V = torch.tensor([0.5, 0.0, 0.3, 0.15, 0.05])
    uniforms_B = (torch.arange(1000, dtype=torch.float64) + 0.5) / 1000
    logits_BV = shares_V.log().expand(1000, -1)
    assert torch.bincount(choose(logits_BV, uniforms_B, Sampling()), minlength=5).tolist() == [500, 0, 300, 150, 50]
    within = torch.bincount(choose(logits_BV, uniforms_B, Sampling(top_p=0.8)), minlength=5)
    assert within.tolist() == [625, 0, 375, 0, 0]
    cold = torch.bincount(choose(logits_BV, uniforms_B, Sampling(temperature=0.5)), minlength=5)
    assert cold[0] / cold[2] == pytest.approx((0.5 / 0.3) ** 2, rel=0.02)
    edge = torch.tensor([1 - 2**-53], dtype=torch.float64)
    assert choose(torch.tensor([[0.0, -torch.inf]]), edge, Sampling()).tolist() == [0]


def test_a_longer_batch_has_the_numbers_of_the_shorter_and_seeds_differ():
    assert torch.equal(draw_uniforms(3, NEW, 1)[:2], draw_uniforms(2, NEW, 1))
    assert not torch.equal(draw_uniforms(2, NEW, 1), draw_uniforms(2, NEW, 2))
