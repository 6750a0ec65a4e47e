"""Generation: what is generated, refused, predicted, searched for, and how samples become rates."""

from dataclasses import replace

import pytest
import torch

import benchmarks.generation as generation
from benchmarks.generation import predicted_generation, run_generation
from benchmarks.generation_checks import check_tokens, prompt_ids, verify
from benchmarks.generation_loops import LOOPS, EagerLoop, GraphLoop, Sample
from benchmarks.generation_models import GPT_NEOX, build_generation_model
from benchmarks.generation_search import (
    MAX_PROBES,
    Probe,
    is_bracketed,
    largest_fitting,
    line_to_capacity,
    search_largest,
)
from benchmarks.generation_times import host_times, throughput
from harness import Trial, Unsupported, WrongOutput
from harness.outcomes import is_out_of_memory
from models import MODELS, family
from models.ops.context import observe

TINY = [name for name in MODELS if name.endswith("-tiny")]
WAYS = [*((name, "eager") for name in [*TINY, "gpt_neox-tiny"]), ("gpt_neox-tiny", "transformers")]
# One of each kind of state and of activations.
PREDICTED = (
    "mamba",
    "mamba2",
    "mamba3",
    "transformer",
    "transformer_alibi",
    "s4d",
    "hyena",
    "retnet",
    "lstm",
    "gpt_neox",
)


@pytest.fixture(autouse=True)
def _one_thread():
    torch.set_num_threads(1)


def make_trial(model: str, loop: str = "eager", *, new_tokens: int = 5, **changes) -> Trial:
    protocol = {"new_tokens": new_tokens, "loop": loop, "sample_budget_s": 0.05}
    fields = dict(
        kind="generation", model=model, task=None, seq_len=24, batch=2, dtype="float32", direction="forward",
        device="cpu", seed=3, protocol=protocol,
    )  # fmt: skip
    return Trial(**(fields | changes))


def measure(trial: Trial) -> dict:
    return run_generation(trial, {}, lambda metrics: None)


@pytest.mark.parametrize(("name", "loop"), WAYS)
def test_tokens_are_those_of_a_naive_greedy_loop_of_whole_forwards(name, loop):
    trial = make_trial(name, loop, dtype="float64")
    model = build_generation_model(trial)
    prompt_BL = prompt_ids(trial, model, 2)
    ids_BL = prompt_BL
    with torch.no_grad():
        for _ in range(6):
            ids_BL = torch.cat([ids_BL, model(ids_BL)[:, -1].argmax(-1, keepdim=True)], dim=1)
    generating = LOOPS[loop](model, prompt_BL, 5)
    for _ in range(2):  # a second time from used states
        generating.prefill()
        generating.decode()
        assert torch.equal(generating.tokens_BN, ids_BL[:, 24:])


@pytest.mark.parametrize(("name", "loop"), [("mamba-tiny", "eager"), ("gpt_neox-tiny", "transformers")])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_trial_gives_the_metrics_of_the_schema(name, loop, dtype):
    reported = []
    trial = make_trial(name, loop, dtype=dtype)
    result = run_generation(trial, {}, reported.append)
    metrics = result["metrics"]
    assert len(metrics["prefill_ms"]) == len(metrics["decode_ms"]) >= 1
    model = build_generation_model(trial)
    assert metrics["params"] == model.num_params
    assert metrics["state_bytes"] == model.state_bytes(24 + 5, batch=2)
    weights = sum(p.nbytes for p in model.parameters())
    assert metrics["peak_alloc_bytes"] > weights + metrics["state_bytes"] * (loop != "transformers")
    assert 0 <= metrics["max_relative_error"] < (0.1 if dtype == "bfloat16" else 1e-5)
    assert result["backend"]["loop"].startswith(loop)
    assert metrics["l2_policy"].startswith("warm")
    assert not metrics.keys() & {"host_ms", "launch_bound"}  # a CPU is its own host
    assert "prefill_ms" not in reported[0] and reported[0]["params"] == metrics["params"]


def test_half_precision_keeps_the_weights_wide_that_act_through_exponentials():
    model = build_generation_model(make_trial("mamba-tiny", dtype="bfloat16"))
    dtypes = {name.rpartition(".")[2]: p.dtype for name, p in model.named_parameters()}
    assert dtypes["A_log"] == torch.float32
    assert model.lm_head.weight.dtype == torch.bfloat16


def timed(prefill_ms: float, decode_ms: float, *host_ms: float) -> Sample:
    prefill_host_ms, step_host_ms = host_ms or (None, None)
    return Sample(
        prefill_ms=prefill_ms, decode_ms=decode_ms, prefill_host_ms=prefill_host_ms, step_host_ms=step_host_ms
    )


def test_rates_are_of_the_medians():
    samples = [timed(100.0, 1900.0), timed(300.0, 700.0), timed(200.0, 800.0)]
    metrics = throughput(samples, batch=4, new_tokens=50)
    assert metrics["prefill_ms"] == [100.0, 300.0, 200.0]
    assert metrics["tokens_per_s"] == pytest.approx(4 * 50 / 1.0)
    assert metrics["decode_tokens_per_s"] == pytest.approx(4 * 50 / 0.8)
    assert metrics["few_samples"].startswith("3 of 5")
    assert "few_samples" not in throughput([timed(1.0, 1.0)] * 5, batch=1, new_tokens=1)
    assert "decode_tokens_per_s" not in throughput([timed(2.0, -0.1)] * 5, batch=1, new_tokens=1)


def test_launch_bound_is_where_prefill_and_steps_take_the_host_as_long():
    samples = [timed(3.0, 99.0, 2.0, 0.5), timed(3.0, 97.0, 2.0, 0.5), timed(3.0, 97.0, 9.0, 4.0)]
    metrics = host_times(samples, 10)
    assert metrics["prefill_host_ms"] == [2.0, 2.0, 9.0] and metrics["step_host_ms"] == [0.5, 0.5, 4.0]
    assert metrics["host_ms"] == [7.0, 7.0, 49.0] and metrics["launch_bound"] is False
    assert host_times(samples, 200)["launch_bound"] is True  # 102 of 100 ms
    assert host_times([timed(3.0, 97.0)], 10) == {}


@pytest.mark.skipif(not torch.cuda.is_available(), reason="a CPU is its own host")
@pytest.mark.parametrize(("name", "loop"), [*(("mamba-tiny", loop) for loop in ("eager", "cuda_graph")), WAYS[-1]])
@pytest.mark.parametrize("new_tokens", [2, 12])
def test_the_hosts_time_is_that_of_issuing_and_steps_stay_within_their_states(name, loop, new_tokens):
    trial = make_trial(name, loop, new_tokens=new_tokens, device="cuda")
    metrics = measure(trial)["metrics"]
    if loop == "transformers":  # waits for the device itself
        assert "host_ms" not in metrics
        return
    assert len(metrics["step_host_ms"]) == len(metrics["prefill_host_ms"]) == len(metrics["decode_ms"])
    assert isinstance(metrics["launch_bound"], bool) and min(metrics["host_ms"]) > 0


# --------------------------------------------------------------------------------------------------
# Refusals


def test_a_wrong_step_gives_no_speed(monkeypatch):
    from models.s6 import S6

    right = S6.step
    monkeypatch.setattr(S6, "step", lambda self, x_BE, state: right(self, x_BE.roll(1, dims=-1), state))
    with pytest.raises(WrongOutput, match="step 1"):
        measure(make_trial("mamba-tiny"))


def test_a_prefill_that_does_not_start_anew_gives_no_speed(monkeypatch):
    from models.s6 import S6

    def adding(self, x_BLE, state):
        y_BLE, h_BEN = self._scan(x_BLE)
        state["h"].add_(h_BEN)
        return y_BLE

    monkeypatch.setattr(S6, "prefill", adding)
    with pytest.raises(WrongOutput, match="step 1 in the second generation"):
        measure(make_trial("mamba-tiny"))


def test_a_last_sequence_that_differs_from_itself_alone_is_wrong():
    trial = make_trial("mamba-tiny", batch=3)
    model = build_generation_model(trial)
    loop = EagerLoop(model, prompt_ids(trial, model, 3), 5)
    loop.prefill()
    loop.decode()
    assert check_tokens(trial, model, loop.prompt_BL, loop.tokens_BN) < 1e-5
    shifted = loop.tokens_BN.clone()
    shifted[-1] = (shifted[-1] + 1) % model.vocab_size
    with pytest.raises(WrongOutput, match="sequence 2 of 3"):
        check_tokens(trial, model, loop.prompt_BL, shifted)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        (dict(model="mamba-tiny", loop="cuda_graph"), "needs a CUDA device"),
        (dict(model="mamba-tiny", loop="transformers"), "no model of transformers"),
        (dict(model="mamba-tiny", loop="beam"), "is not one of eager"),
        (dict(model="mamba-tiny", new_tokens=0), "new_tokens=0"),
        (dict(model="mamba-tiny", direction="train"), "forward only"),
    ],
)
@pytest.mark.parametrize("ask", [measure, predicted_generation])
def test_what_cannot_run_is_unsupported_before_it_is_tried(changes, reason, ask):
    with pytest.raises(Unsupported, match=reason):
        ask(make_trial(**changes))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="captures a CUDA graph")
@pytest.mark.parametrize("name", [*TINY, "gpt_neox-tiny"])
def test_a_captured_loop_generates_what_the_eager_one_does(name):
    trial = make_trial(name, device="cuda")
    model = build_generation_model(trial)
    loops = [loop(model, prompt_ids(trial, model, 2), 5) for loop in (EagerLoop, GraphLoop)]
    for loop in loops:
        loop.prefill()
        loop.decode()
    assert torch.equal(loops[0].tokens_BN, loops[1].tokens_BN)
    assert loops[1].capture_ms > 0


# --------------------------------------------------------------------------------------------------
# Memory


@pytest.mark.conformance
@pytest.mark.parametrize(("name", "loop"), [way for way in WAYS if family(way[0]) in PREDICTED])
def test_predicted_peak_is_the_allocators(name, loop):
    """Within 10 %. Long enough that states and activations are not lost in the weights."""
    trial = make_trial(name, loop, batch=16, seq_len=256, new_tokens=3)
    model = build_generation_model(trial)
    measured = generation._generate(trial, model, LOOPS[loop], 16).metrics["peak_alloc_bytes"]
    weights = sum(p.nbytes for p in model.parameters())
    assert measured > 1.2 * weights
    # oneDNN's LSTM is fitted, not known.
    assert predicted_generation(trial).peak_bytes == pytest.approx(measured, rel=0.15 if "lstm" in name else 0.1)


def test_prediction_grows_with_the_batch_and_takes_no_memory():
    one, many = (predicted_generation(make_trial("transformer-130m", batch=b, seq_len=2048)) for b in (0, 1024))
    assert many.peak_bytes > 50 * 2**30
    assert many.flops == pytest.approx(1024 * one.flops)


def test_the_largest_batch_fits_a_given_memory(monkeypatch):
    trial = make_trial("transformer-tiny", batch=0, seq_len=64)
    need = {batch: predicted_generation(replace(trial, batch=batch)).peak_bytes for batch in (1, 6)}
    model = build_generation_model(trial)
    weights = sum(p.nbytes for p in model.parameters())
    room = (need[6] - weights) / generation.HOST_SHARE
    monkeypatch.setattr(generation, "available_memory_bytes", lambda device: int(room) + 1000)
    generated: list[int] = []
    real = generation._generate

    def counted(*args):
        generated.append(args[-1])
        return real(*args)

    monkeypatch.setattr(generation, "_generate", counted)
    metrics = measure(trial)["metrics"]
    assert metrics["largest_batch"] == 6
    assert {"batch": 6, "fits": True} in metrics["search"]
    assert {probe["batch"] for probe in metrics["search"] if not probe["fits"]} == {7}
    assert generated == [6]  # the prediction begins there, its probe is the whole generation, and 7 is not run
    assert metrics["peak_alloc_bytes"] == pytest.approx(need[6], rel=0.1)
    assert metrics["predicted_peak_bytes"] == pytest.approx(need[6], rel=0.02)
    assert metrics["state_bytes"] == model.state_bytes(64 + 5, batch=6)


def test_no_batch_at_all_is_out_of_memory(monkeypatch):
    monkeypatch.setattr(generation, "available_memory_bytes", lambda device: 1000)
    with pytest.raises(MemoryError, match="not even a batch of 1") as caught:
        measure(make_trial("transformer-tiny", batch=0))
    assert is_out_of_memory(caught.value)


@pytest.mark.parametrize("weights", [0, 3000, 10**6])
@pytest.mark.parametrize("a_sequence", [1, 7, 150, 5000])
@pytest.mark.parametrize("visible", [True, False])
@pytest.mark.parametrize("estimated", [0.5, 0.97, 1.0, 1.03, 1.5, 10.0])
def test_search_ends_within_a_sixteenth_of_the_truth(weights, a_sequence, visible, estimated):
    """Whatever is thought of the capacity, and whether or not peaks are known."""
    memory = 2 * 10**6
    truth = (memory - weights) // a_sequence
    capacity = int(estimated * memory)
    line = line_to_capacity(lambda batch: weights + a_sequence * batch, empty_bytes=weights, capacity_bytes=capacity)

    def probe(batch: int) -> Probe:
        taken = weights + a_sequence * batch
        return Probe(batch=batch, fits=taken <= memory, peak_bytes=taken if visible else None)

    expected = line.batch_that_fills(capacity)
    assert expected == pytest.approx((capacity - weights) / a_sequence, abs=1)
    probes = search_largest(probe, expected=expected, capacity_bytes=capacity, budget_s=1e9)
    found, tried = largest_fitting(probes), [p.batch for p in probes]
    assert found <= truth <= found + max(1, found // 16) - 1
    assert is_bracketed(probes)
    assert len(tried) == len(set(tried)) <= MAX_PROBES
    if 0.97 <= estimated <= 1.03 and weights < 10**6:
        assert sum(p.fits for p in probes) <= 2 and len(probes) <= 4  # those that fit take long


@pytest.mark.parametrize("share", [1.0, 1.2])
def test_a_batch_too_large_costs_no_second_one_that_fits(share):
    """As where the allocator loses an eighth of the memory: failing probes end early, one that fits takes long."""
    truth = 1000
    probes = search_largest(
        lambda batch: Probe(batch=batch, fits=batch <= truth), expected=int(truth * 1.05 * share), capacity_bytes=0,
        budget_s=1e9,
    )  # fmt: skip
    assert [p.fits for p in probes].count(True) == 1 and probes[-1].fits
    assert is_bracketed(probes)


def test_the_line_is_that_of_the_end_where_kernels_cut_large_batches_into_parts():
    def peak(batch: int) -> int:
        return 1000 + (10 * batch if batch <= 200 else 2000 + 7 * (batch - 200))

    line = line_to_capacity(peak, empty_bytes=1000, capacity_bytes=10_000)
    end = line.batch_that_fills(10_000)
    assert peak(end) == pytest.approx(10_000, rel=0.02)
    assert line.peak_bytes(end) == pytest.approx(peak(end), rel=0.02)
    assert line_to_capacity(peak, empty_bytes=1000, capacity_bytes=500).batch_that_fills(500) == 1


def test_search_stops_when_its_time_is_up_but_not_before_one_fits():
    now = iter(range(100))
    probes = search_largest(
        lambda batch: Probe(batch=batch, fits=True), expected=1, capacity_bytes=0, budget_s=4.5,
        clock=lambda: float(next(now)),
    )  # fmt: skip
    assert 4 <= len(probes) <= 6 and not is_bracketed(probes)
    now = iter(range(0, 1000, 10))
    probes = search_largest(
        lambda batch: Probe(batch=batch, fits=batch < 10), expected=1000, capacity_bytes=0, budget_s=1,
        clock=lambda: float(next(now)),
    )  # fmt: skip
    assert [p.fits for p in probes].count(True) == 1 and probes[-1].fits


@pytest.mark.conformance
def test_a_batch_whose_last_tokens_are_wrong_does_not_fit(monkeypatch):
    """As kernels that index with 32 bits write to wrong places, without an error."""
    trial = make_trial("transformer-tiny", batch=0, new_tokens=2)
    real = generation.check_tokens

    def wrapping(trial, model, prompt_BL, tokens_BN):
        if len(prompt_BL) > 5:
            raise WrongOutput("a token differs")
        return real(trial, model, prompt_BL, tokens_BN)

    weights = sum(p.nbytes for p in build_generation_model(trial).parameters())
    room = (generation._predicted_peak(trial, 7) - weights) / generation.HOST_SHARE
    monkeypatch.setattr(generation, "available_memory_bytes", lambda device: int(room) + 1000)
    monkeypatch.setattr(generation, "check_tokens", wrapping)
    metrics = measure(trial)["metrics"]
    assert metrics["largest_batch"] == 5
    assert {"batch": 6, "fits": False, "why": "a token differs"} in metrics["search"]


@pytest.mark.conformance
def test_a_batch_that_generates_once_but_not_twice_does_not_fit(monkeypatch):
    """A loop that is not captured allocates as it goes, and may leave the memory in pieces."""
    trial = make_trial("transformer-tiny", batch=0, new_tokens=2)
    weights = sum(p.nbytes for p in build_generation_model(trial).parameters())
    room = (generation._predicted_peak(trial, 4) - weights) / generation.HOST_SHARE
    monkeypatch.setattr(generation, "available_memory_bytes", lambda device: int(room) + 1000)
    real = LOOPS["eager"].sample

    def sample(loop):
        if len(loop.prompt_BL) > 3:
            raise MemoryError("the memory is in pieces")
        return real(loop)

    monkeypatch.setattr(LOOPS["eager"], "sample", sample)
    metrics = measure(trial)["metrics"]
    assert {"batch": 4, "fits": False, "why": "the memory is in pieces"} in metrics["search"]
    assert metrics["largest_batch"] == 3 and metrics["sampled_in_search"]
    assert metrics["prefill_ms"] != [pytest.approx(metrics["first_call_ms"], abs=1e-3)]  # its first is not like others


@pytest.mark.conformance
def test_a_long_generation_of_the_search_is_its_own_sample(monkeypatch):
    trial = make_trial("transformer-tiny", batch=0, new_tokens=2)
    weights = sum(p.nbytes for p in build_generation_model(trial).parameters())
    room = (generation._predicted_peak(trial, 4) - weights) / generation.HOST_SHARE
    monkeypatch.setattr(generation, "available_memory_bytes", lambda device: int(room) + 1000)
    monkeypatch.setattr(LOOPS["eager"], "captured", True)
    again = measure(trial)["metrics"]
    assert "sampled_in_search" not in again
    monkeypatch.setattr(generation, "OWN_SAMPLE_MS", 0.0)
    own = measure(trial)["metrics"]
    assert own["sampled_in_search"]
    assert own["largest_batch"] == again["largest_batch"]
    assert len(own["prefill_ms"]) == len(own["decode_ms"]) == 1
    assert own["prefill_ms"] == [pytest.approx(own["first_call_ms"], abs=1e-3)]
    assert "few_samples" in own


def test_an_error_that_is_no_limit_of_the_batch_ends_the_trial(monkeypatch):
    trial = make_trial("gpt_neox-tiny", "eager")
    model = build_generation_model(trial)

    def fails(trial, model, loop_class, batch):
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory" if batch > 1 else "no such kernel")

    monkeypatch.setattr(generation, "_generate", fails)
    assert "allocate" in generation._try(trial, model, LOOPS["eager"], 8)
    with pytest.raises(RuntimeError, match="no such kernel"):
        generation._try(trial, model, LOOPS["eager"], 1)


def test_gpt_neox_has_pythias_shape():
    assert GPT_NEOX["gpt_neox-1.4b"]["hidden_size"] * 4 == GPT_NEOX["gpt_neox-1.4b"]["intermediate_size"]
    with torch.device("meta"):
        model = build_generation_model(make_trial("gpt_neox-1.4b", device="meta"))
    assert model.num_params == 1_414_647_808  # of the published checkpoint
    config = model.network.config
    assert config.use_parallel_residual
    assert config.rope_parameters["partial_rotary_factor"] == 0.25


def test_an_operator_whose_reference_runs_another_is_checked(monkeypatch):
    """As the fused blocks, whose references are portable forms with operators of their own."""
    trial = make_trial("mamba-tiny", "eager")
    model = build_generation_model(trial)
    embedding = model.backbone.embedding
    lookup = embedding.forward

    def reference() -> float:
        observe("inner", "portable", check=lambda: 1e-9)
        return 1e-9

    def embedded(ids):
        observe("block", "fused", check=reference)
        return lookup(ids)

    monkeypatch.setattr(embedding, "forward", embedded)
    assert verify(trial, model, LOOPS["eager"])["inner"] == 1e-9
