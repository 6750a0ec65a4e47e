"""The conformance suite: the suite's own models pass it, and each check catches the model that is broken in its way."""

import dataclasses
import importlib.util
from pathlib import Path

import pytest
import torch
from torch import nn

from models import MODELS, find_factory
from models.conformance import CHECKS, BuildError, run_checks
from models.model import SequenceModel
from models.ops.context import observe
from models.presets import MIXERS, WHOLE_BLOCKS, WIRINGS

pytestmark = pytest.mark.conformance

ROOT = Path(__file__).resolve().parents[2]
EXAMPLE = ROOT / "docs" / "examples" / "min_gru.py"
TINY = [name for name in MODELS if name.endswith("-tiny")]
GRID = [f"{mixer}.{wiring}-tiny" for mixer in MIXERS for wiring in WIRINGS if mixer not in WHOLE_BLOCKS]

spec = importlib.util.spec_from_file_location("min_gru", EXAMPLE)
min_gru = importlib.util.module_from_spec(spec)
spec.loader.exec_module(min_gru)


@pytest.fixture(autouse=True)
def _one_thread():
    torch.set_num_threads(1)


def checked(name: str, check: str):
    try:
        (finding,) = run_checks(find_factory(name), only=[check])
    except BuildError as error:
        # Some mixers are too wide for some wirings.
        reason = str(error)
        if "use another wiring" in reason:
            pytest.skip(reason)
        raise
    return finding


@pytest.mark.parametrize("check", CHECKS)
@pytest.mark.parametrize("name", TINY)
def test_listed_models_pass_every_check(name, check):
    finding = checked(name, check)
    assert finding.status == "passed", finding.detail


@pytest.mark.parametrize("check", ["causality", "step_equals_parallel", "parameters"])
@pytest.mark.parametrize("name", GRID)
def test_any_mixer_in_any_wiring_is_a_model(name, check):
    finding = checked(name, check)
    assert finding.status == "passed", finding.detail


# --------------------------------------------------------------------------------------------------
# Broken models. Each is the example, which passes, with one thing wrong.


def gru(model_class=SequenceModel, mixer_class=min_gru.MinGRU, *, vocab_size):
    mixers = [mixer_class(32) for _ in range(2)]
    return model_class(vocab_size=vocab_size, d_model=32, mixers=mixers, d_mlp=64)


class Parallel(nn.Module):
    """Without a recurrent form; subclasses change the final hidden states."""

    def __init__(self, *, vocab_size):
        super().__init__()
        self.model = gru(vocab_size=vocab_size)

    def init_weights(self, generator):
        self.model.init_weights(generator)

    def forward(self, ids):
        return self.model.lm_head(self.change(self.model.hidden(ids)))

    def change(self, h):
        return h


class LooksAheadWithinPairs(Parallel):
    def change(self, h):
        following = torch.cat([h[:, 1:], h[:, -1:]], 1)
        is_first = (torch.arange(h.shape[1]) % 2 == 0).to(h.dtype)[:, None]
        return h + 0.1 * is_first * following


class LateByOne(Parallel):
    def change(self, h):
        return torch.cat([torch.zeros_like(h[:, :1]), h[:, :-1]], 1)


class CentredOverTheBatch(Parallel):
    def change(self, h):
        return h + 0.1 * h.mean(0)


class StretchesWithLength(Parallel):
    def change(self, h):
        return h * (1 + 0.5 * torch.linspace(0, 1, h.shape[1]).to(h.dtype)[:, None])


class WrongVocabulary(SequenceModel):
    def __init__(self, **options):
        super().__init__(**options)
        self.vocab_size += 1


class HiddenIsNotWhatTheHeadReads(Parallel):
    d_model = 32

    def __init__(self, *, vocab_size):
        super().__init__(vocab_size=vocab_size)
        self.vocab_size, self.lm_head = vocab_size, self.model.lm_head

    def hidden(self, ids):
        return 2 * self.model.hidden(ids)


class NotFiniteAt257(Parallel):
    def change(self, h):
        return h / (h.shape[1] != 257)


class Draws(SequenceModel):
    def hidden(self, ids):
        torch.rand(1)
        return super().hidden(ids)


class InitialisesGlobally(SequenceModel):
    def init_weights(self, generator):
        super().init_weights(generator)
        nn.init.normal_(self.backbone.embedding.weight, std=0.02)


class LeavesAWeight(SequenceModel):
    def init_weights(self, generator):
        gain = self.backbone.norm_f.weight.clone()
        super().init_weights(generator)
        self.backbone.norm_f.weight.data.copy_(gain)


class IgnoresTheSeed(SequenceModel):
    def init_weights(self, generator):
        super().init_weights(torch.Generator().manual_seed(0))


class OneStepLate(min_gru.MinGRU):
    def step(self, x, state):
        out = self.out_proj(state["h"].to(x.dtype))
        super().step(x, state)
        return out


class PrefillForgets(min_gru.MinGRU):
    def prefill(self, x, state):
        out = super().prefill(x, state)
        state["h"].mul_(0.999)
        return out


class Reallocates(min_gru.MinGRU):
    def step(self, x, state):
        keep, write = self._keep_and_write(x)
        state["h"] = state["h"] * keep + write
        return self.out_proj(state["h"].to(x.dtype))


class Grows(min_gru.MinGRU):
    def step(self, x, state):
        state["seen"] = torch.cat([state.get("seen", x[:0]), x])
        return super().step(x, state)


class StatesTooLittle(SequenceModel):
    def state_bytes(self, seq_len, *, batch=1):
        return super().state_bytes(seq_len)


class HasAnIdleWeight(min_gru.MinGRU):
    def __init__(self, d_model):
        super().__init__(d_model)
        self.idle = nn.Parameter(torch.zeros(d_model))

    def init_weights(self, generator):
        super().init_weights(generator)
        nn.init.ones_(self.idle)


class CutsTheGradient(min_gru.MinGRU):
    def _states(self, x):
        return super()._states(x).detach()


class CutsOneOfTwoWays(min_gru.MinGRU):
    def forward(self, x):
        return super().forward(0.9 * x + 0.1 * x.detach())


class Scaled(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, factor):
        ctx.factor = factor
        return x.clone()

    @staticmethod
    def backward(ctx, gradient):
        return gradient * ctx.factor, None


class WrongBackward(min_gru.MinGRU):
    def forward(self, x):
        return Scaled.apply(super().forward(x), 1.001)


class Explodes(min_gru.MinGRU):
    def forward(self, x):
        return Scaled.apply(super().forward(x), 1e3)


class AlwaysFloat32(SequenceModel):
    def forward(self, ids):
        return super().forward(ids).float()


class LosesDigits(Parallel):
    def change(self, h):
        offset = 100 if h.dtype == torch.bfloat16 else 0
        return h + offset - offset


class StatesTooManyFlops(SequenceModel):
    def describe(self, seq_len=2048):
        honest = super().describe(seq_len)
        return dataclasses.replace(honest, forward_flops=1.2 * honest.forward_flops)


class LoudLogits(SequenceModel):
    def init_weights(self, generator):
        super().init_weights(generator)
        self.backbone.embedding.weight.data.mul_(15)


class WrongKernel(SequenceModel):
    def hidden(self, ids):
        observe("mine", "fast but wrong", check=lambda: 0.1)
        return super().hidden(ids)


class LooksAtValues(SequenceModel):
    def hidden(self, ids):
        return super().hidden(ids) if float(ids.sum()) >= 0 else ids


MODEL_CLASSES = (
    ("interface", WrongVocabulary),
    ("determinism", Draws),
    ("determinism", InitialisesGlobally),
    ("determinism", LeavesAWeight),
    ("determinism", IgnoresTheSeed),
    ("state_bytes", StatesTooLittle),
    ("dtypes", AlwaysFloat32),
    ("flops", StatesTooManyFlops),
    ("fresh_loss", LoudLogits),
    ("kernels_named", WrongKernel),
    ("fake", LooksAtValues),
)
MIXER_CLASSES = (
    ("step_equals_parallel", OneStepLate),
    ("step_equals_parallel", PrefillForgets),
    ("state_in_place", Reallocates),
    ("state_in_place", Grows),
    ("parameters", HasAnIdleWeight),
    ("gradcheck", WrongBackward),
    ("gradcheck", CutsOneOfTwoWays),
)
PARALLEL_CLASSES = (
    ("interface", HiddenIsNotWhatTheHeadReads),
    ("length_sweep", NotFiniteAt257),
    ("causality", LooksAheadWithinPairs),
    ("causality", LateByOne),
    ("batch_invariance", CentredOverTheBatch),
    ("padding_invariance", StretchesWithLength),
    ("dtypes", LosesDigits),
)
BROKEN = [
    *((check, broken, lambda c=broken, **options: gru(c, **options)) for check, broken in MODEL_CLASSES),
    *((check, broken, lambda c=broken, **options: gru(mixer_class=c, **options)) for check, broken in MIXER_CLASSES),
    *((check, broken, broken) for check, broken in PARALLEL_CLASSES),
]


def failures(factory):
    return {f.check: f for f in run_checks(factory) if f.status in ("failed", "error")}


@pytest.mark.parametrize(
    ("check", "factory"), [pytest.param(c, f, id=f"{c}-{broken.__name__}") for c, broken, f in BROKEN]
)
def test_a_broken_model_fails_its_check_and_no_other(check, factory):
    failed = failures(factory)
    assert set(failed) == {check}, {name: f.detail for name, f in failed.items()}
    assert failed[check].status == "failed"


@pytest.mark.parametrize(
    ("mixer", "phrase"), [(CutsTheGradient, "gets no gradient"), (Explodes, "norm at initialisation is")]
)
def test_wrong_gradients_fail_both_checks_on_them(mixer, phrase):
    failed = failures(lambda **options: gru(mixer_class=mixer, **options))
    assert set(failed) == {"parameters", "gradcheck"}
    assert phrase in failed["parameters"].detail


def test_every_check_has_a_model_that_it_catches():
    assert {check for check, *_ in BROKEN} == set(CHECKS)


def test_what_the_broken_ones_are_made_from_passes():
    assert not failures(gru)
    assert not failures(Parallel)


def test_failures_name_the_value_and_the_limit():
    assert "limit 1e-09" in failures(CentredOverTheBatch)["batch_invariance"].detail
    detail = failures(NotFiniteAt257)["length_sweep"].detail
    assert "seq_len=257" in detail and "not finite" in detail


def test_a_module_without_a_recurrent_form_is_told_what_is_missing():
    skipped = {f.check: f.detail for f in run_checks(Parallel) if f.status == "skipped"}
    assert set(skipped) == {"step_equals_parallel", "state_in_place", "state_bytes", "flops", "kernels_named"}
    assert "has no init_state, prefill, step" in skipped["step_equals_parallel"]
    assert "describe" in skipped["flops"]


def test_an_exception_is_a_status_that_names_it():
    class Picky(Parallel):
        def change(self, h):
            return h.reshape(h.shape[0], -1, 5, 32).flatten(1, 2) if h.shape[1] == 3 else h

    (finding,) = run_checks(Picky, only=["length_sweep"])
    assert finding.status == "error"
    assert "RuntimeError" in finding.detail and "seq_len=3" in finding.detail


def test_without_float64_limits_are_wider_and_the_finding_says_so():
    class NoDoubles(Parallel):
        def change(self, h):
            if h.dtype == torch.float64:
                raise NotImplementedError("no kernel for double")
            return h

    findings = {f.check: f for f in run_checks(NoDoubles, only=["causality", "gradcheck"])}
    assert findings["causality"].status == "passed"
    assert "float32" in findings["causality"].detail and "no kernel for double" in findings["causality"].detail
    assert findings["gradcheck"].status == "skipped"


def test_a_factory_that_raises_is_named():
    def broken(*, vocab_size):
        raise KeyError("d_model")

    with pytest.raises(BuildError, match="KeyError: 'd_model'"):
        run_checks(broken)
    with pytest.raises(BuildError, match=r"NoneType, and not a torch\.nn\.Module"):
        run_checks(lambda *, vocab_size: None)


def test_unknown_checks_and_vocabularies_are_refused():
    with pytest.raises(ValueError, match="no check speed; there are interface"):
        run_checks(gru, only=["causality", "speed"])
    with pytest.raises(ValueError, match="at least 2"):
        run_checks(gru, vocab_size=1)


def test_checks_leave_the_global_generator_alone():
    before = torch.get_rng_state()
    run_checks(gru)
    assert torch.equal(before, torch.get_rng_state())
