"""The U-Net: frames are late by one, so that nothing hears what follows; steps, prompts and rates as they should be."""

import pytest
import torch

from models import MODELS, build_model, find_factory
from models.conformance import CHECKS, run_checks
from models.pooling import Pooling
from models.presets import ABLATED, AUDIO_MODELS, SIZES
from models.unet import UNet

LIGHT = ["mamba_complex-unet1x4", "transformer-unet1x4", "transformer_absolute-unet1x4", "mamba+transformer-unet1x4"]


@pytest.fixture(autouse=True)
def _one_thread():
    torch.set_num_threads(1)


def on_meta(name: str) -> UNet:
    with torch.device("meta"):
        model = find_factory(name)(vocab_size=256)
    assert isinstance(model, UNet)
    return model


@pytest.mark.conformance
@pytest.mark.parametrize("check", CHECKS)
@pytest.mark.parametrize("name", LIGHT)
def test_unets_pass_every_check(name, check):
    (finding,) = run_checks(find_factory(name), only=[check])
    assert finding.status == "passed", finding.detail


@pytest.mark.parametrize("check", ["causality", "step_equals_parallel", "parameters", "flops"])
def test_the_papers_unet_passes(check):
    (finding,) = run_checks(find_factory("s4d-unet3x16"), only=[check])
    assert finding.status == "passed", finding.detail


@pytest.fixture
def model() -> UNet:
    built = build_model("mamba_complex-unet1x4", vocab_size=16, dtype=torch.float64)
    assert isinstance(built, UNet)
    return built


def pooling(factor: int = 4) -> Pooling:
    made = Pooling(3, 6, factor).double()
    made.init_weights(torch.Generator().manual_seed(0))
    return made


@pytest.mark.parametrize("length", [1, 3, 4, 5, 8, 11, 16])
def test_a_frame_is_heard_in_the_next_one_and_no_sooner(length):
    made, x_BLD = pooling(), torch.randn(1, length, 3, dtype=torch.float64)
    with torch.no_grad():
        before = made.up(made.down(x_BLD), length)
        assert before.shape == x_BLD.shape and not before[:, :4].any()
        for place in range(length):
            changed = x_BLD.clone()
            changed[:, place] += 1
            difference = (made.up(made.down(changed), length) - before)[0].abs().sum(-1)
            later = slice(4 * (place // 4 + 1), 4 * (place // 4 + 2))
            heard = torch.zeros(length, dtype=torch.bool)
            heard[later] = True
            assert torch.equal(difference > 1e-12, heard), f"sample {place} of {length}"


@torch.no_grad()
@pytest.mark.parametrize("split", [1, 3, 4, 5, 15, 16, 17, 31, 32, 33])
def test_a_prompt_of_any_length_leaves_the_state_that_steps_would(model, split):
    ids_BL = torch.randint(16, (2, split), generator=torch.Generator().manual_seed(1))
    stepped, filled = model.init_state(2, 64), model.init_state(2, 64)
    model.prefill(ids_BL, filled)
    for ids_B in ids_BL.unbind(1):
        model.step(ids_B, stepped)
    # What is due was cut where it has been used, and the steps have wrapped round to the same place.
    due = (split % 4, split // 4 % 4)
    for i, (one, other) in enumerate(zip(stepped, filled, strict=True)):
        for key in one:
            left, right = one[key], other[key]
            if key == "due":
                keep = 4 - due[i - len(model.blocks)]
                left, right = left[:, :keep], right[:, :keep]
            torch.testing.assert_close(left, right, rtol=1e-9, atol=1e-12, msg=f"{key} of state {i}")


@torch.no_grad()
@pytest.mark.parametrize("split", [1, 3, 4, 15, 16, 33])
def test_a_prompt_of_any_length_starts_anew_whatever_the_states_held(model, split):
    ids_BL = torch.randint(16, (2, split), generator=torch.Generator().manual_seed(1))
    fresh, used = model.init_state(2, 64), model.init_state(2, 64)
    model.prefill(torch.randint(16, (2, 40), generator=torch.Generator().manual_seed(2)), used)
    for states in (fresh, used):
        model.prefill(ids_BL, states)
    for _ in range(30):
        assert torch.equal(*(model.step(ids_BL[:, 0], states) for states in (fresh, used)))


@torch.no_grad()
def test_a_stage_steps_as_often_as_its_rate(model, monkeypatch):
    calls = dict.fromkeys(range(len(model.blocks)), 0)
    for place, block in enumerate(model.blocks):
        real = block.step
        monkeypatch.setattr(
            block, "step", lambda x, s, place=place, real=real: calls.update({place: calls[place] + 1}) or real(x, s)
        )
    states = model.init_state(1, 64)
    for _ in range(64):
        model.step(torch.zeros(1, dtype=torch.int64), states)
    assert list(calls.values()) == [64, 16, 4, 16, 64]


@torch.no_grad()
def test_step_at_needs_only_the_place_that_the_host_knows(model):
    ids_BL = torch.randint(16, (1, 40), generator=torch.Generator().manual_seed(2))
    whole, states = model(ids_BL), model.init_state(1, 40)
    states[-1]["num_heard"].fill_(-99)  # not read
    for place in range(40):
        logits_BV = model.step_at(ids_BL[:, place], states, model.ticks_after(place + 1))
        torch.testing.assert_close(logits_BV, whole[:, place], rtol=1e-9, atol=1e-12)


def test_widths_double_and_every_stage_has_its_blocks():
    model = on_meta("mamba_complex-unet3x16")
    widths = [block.norm.weight.shape[0] for block in model.blocks]
    assert widths == [64] * 3 + [128] * 3 + [256] * 3 + [128] * 3 + [64] * 3
    assert model.settling_len == 2 * 16 * 16


@pytest.mark.parametrize(
    ("name", "published"),
    [("s4d-unet3x16", 3.5e6), ("mamba_complex-unet3x16", 3.5e6), *((f"{row}-unet8x4", 6e6) for row in ABLATED)],
)
def test_parameters_are_about_the_papers(name, published):
    assert on_meta(name).num_params == pytest.approx(published, rel=0.05)


@pytest.mark.parametrize("size", [size for size in SIZES if SIZES[size].pooling])
@pytest.mark.parametrize(
    "family", ["s4d", "transformer", "hyena", "mamba2", "s6_complex_dt.mamba", "s6_complex_lti.mamba"]
)
def test_blocks_of_other_mixers_have_the_parameters_of_mamba(family, size):
    assert on_meta(f"{family}-{size}").num_params == pytest.approx(on_meta(f"mamba-{size}").num_params, rel=0.05)


def test_only_the_centre_differs_where_two_families_are_named():
    outer, mixed = on_meta("s6_complex_lti.mamba-unet8x4"), on_meta("s6_complex_lti.mamba+mamba-unet8x4")
    labels = [block.mixer.label for block in mixed.blocks]
    assert labels[:16] + labels[24:] == [outer.blocks[0].mixer.label] * 32
    assert set(labels[16:24]) == {"S6 in Mamba"}


@pytest.mark.parametrize("name", ["mamba+s4d-tiny", "mamba+s7-unet8x4", "mamba+-unet8x4", "mamba+s4d+h3-unet8x4"])
def test_two_families_are_for_unets_and_must_exist(name):
    with pytest.raises(ValueError, match="unknown model"):
        find_factory(name)


def test_absolute_positions_must_begin_with_the_first_block():
    with pytest.raises(ValueError, match="the first block must know of"):
        on_meta("mamba+transformer_absolute-unet1x4")


def test_the_suites_models_are_listed():
    assert set(AUDIO_MODELS) <= set(MODELS)


@torch.no_grad()
@pytest.mark.parametrize("name", ["s6_lti.mamba-tiny", "s6_complex_lti.mamba-tiny"])
def test_a_scan_of_constants_is_the_convolution(name):
    mixer = build_model(name, vocab_size=16, dtype=torch.float64).blocks[0].mixer.inner
    x_BLE = torch.randn(2, 150, mixer.width, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    torch.testing.assert_close(mixer(x_BLE), mixer._scan(x_BLE)[0], rtol=1e-9, atol=1e-12)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@torch.no_grad()
def test_steps_captured_for_each_number_of_ticks_are_the_eager_ones():
    model = build_model("mamba_complex-unet1x4", vocab_size=16, device="cuda")
    assert isinstance(model, UNet)
    ids_BL = torch.randint(16, (2, 48), generator=torch.Generator().manual_seed(4)).cuda()
    states, eager = model.init_state(2, 48), model.init_state(2, 48)
    ids_B, graphs = ids_BL[:, 0].clone(), []
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        model.step_at(ids_B, states, 2)
    torch.cuda.current_stream().wait_stream(stream)
    for ticks in range(3):
        graphs.append(torch.cuda.CUDAGraph())
        with torch.cuda.graph(graphs[-1]):
            logits_BV = model.step_at(ids_B, states, ticks)
        graphs[-1].logits_BV = logits_BV
    for state in states:
        for tensor in state.values():
            tensor.zero_()
    for place in range(48):
        ids_B.copy_(ids_BL[:, place])
        graph = graphs[model.ticks_after(place + 1)]
        graph.replay()
        torch.testing.assert_close(graph.logits_BV, model.step(ids_BL[:, place], eager), rtol=1e-4, atol=1e-5)
    with pytest.raises(RuntimeError, match="capture step_at"), torch.cuda.graph(torch.cuda.CUDAGraph()):
        model.step(ids_B, eager)
