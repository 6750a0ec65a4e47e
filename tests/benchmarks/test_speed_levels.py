"""Operators, blocks and ceilings: right before fast, costs that bound from below, plans that need no GPU."""

import itertools
import math
import statistics
import time

import pytest
import torch

from benchmarks import speed
from benchmarks.ceilings import CEILINGS, CHAIN
from benchmarks.operator_costs import Shape
from benchmarks.operators import OPERATORS, Draw, dual, dual_error, full_scan, full_scan_error
from benchmarks.plan import _predicted, predicted_cost
from benchmarks.speed import CHECKED_TOKENS, MIN_CHECKED_CALLS, evenly_spread, run_speed
from benchmarks.speed import verify as verify_speed
from benchmarks.suite_trials import Selection, expand
from benchmarks.suites import load_suite
from benchmarks.workloads import Workload, build_workload
from harness import Trial, Unsupported, WrongOutput
from harness.clocks import Replays, Timing
from models.ops.context import OpReport, observe, observing

pytestmark = pytest.mark.conformance

RUNS_ON_CPU = [name for name, operator in OPERATORS.items() if operator.only_on != "cuda"]
SIZES = {"width": 32, "d_state": 4, "head_dim": 16}


def speed_trial(model: str, level: str, seq_len: int = 96, **changes) -> Trial:
    protocol = {"level": level, "sample_budget_s": 0.01} | (SIZES if model in OPERATORS else {})
    settings = {"batch": 2, "dtype": "float32", "direction": "forward", "device": "cpu"} | changes
    return Trial(kind="speed", model=model, task=None, seq_len=seq_len, seed=0, protocol=protocol, **settings)


def measured(trial: Trial) -> tuple[dict, dict]:
    torch.set_num_threads(1)
    result = run_speed(trial, {}, lambda metrics: None)
    return result["metrics"], result["backend"]


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("direction", ["forward", "train"])
@pytest.mark.parametrize("name", RUNS_ON_CPU)
def test_every_operator_is_checked_and_predicted(name, direction, dtype):
    trial = speed_trial(name, "operator", dtype=dtype, direction=direction)
    metrics, backend = measured(trial)
    assert 0 < metrics["max_relative_error"] < (1e-5 if dtype == "float32" else 1e-2)
    assert any(operator in backend for operator in ("selective_scan", "ssd", "fft_conv", "attention"))
    assert set(metrics["cost"]) == {"bytes", "flops", "exps"}
    assert len(metrics["latency_ms"]) >= 1
    assert metrics["l2_policy"].startswith("warm")
    predicted = predicted_cost(trial).peak_bytes
    # PyTorch's CPU kernels of attention allocate some scratch out of sight, most of it in a backward.
    assert predicted <= metrics["peak_alloc_bytes"] * 1.02
    assert predicted >= metrics["peak_alloc_bytes"] * (0.5 if name.startswith("attention") else 0.9)


@pytest.mark.parametrize("name", RUNS_ON_CPU)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_bytes_of_a_forward_are_those_of_its_inputs_and_output(name, dtype):
    shape = Shape(batch=2, seq_len=96, element_bytes=dtype.itemsize, **SIZES)
    operator = OPERATORS[name]
    generator = torch.Generator().manual_seed(0)
    inputs = operator.draw(shape, Draw(device=torch.device("cpu"), dtype=dtype, generator=generator))
    output = operator.call(*inputs)
    assert output.dtype == dtype
    assert operator.cost(shape, False).bytes == sum(t.nbytes for t in (*inputs, output))


@pytest.mark.parametrize("direction", ["forward", "train"])
@pytest.mark.parametrize("name", RUNS_ON_CPU)
def test_an_implementation_counts_no_less_than_the_least(name, direction):
    trial = speed_trial(name, "operator", 1024, batch=1, direction=direction)
    cost = build_workload(trial).cost
    assert cost is not None
    least = cost.flops + (0 if name.startswith("attention") else cost.exps)  # softmax is in no closed form of attention
    assert least <= predicted_cost(trial).flops * 1.001


@pytest.mark.parametrize("name", OPERATORS)
def test_costs_grow_with_length_as_they_should(name):
    def cost(seq_len: int, train: bool = False):
        return OPERATORS[name].cost(Shape(batch=1, seq_len=seq_len, width=64, head_dim=64), train)

    growth = cost(2**16).flops / cost(2**15).flops
    if name.startswith("attention"):
        assert growth == pytest.approx(4, rel=1e-3)
        assert cost(2**10).exps == 2**10 * (2**10 + 1) / 2
    else:
        assert 2 <= growth < 2.2
    trained, forward = cost(2**10, True), cost(2**10)
    assert trained.flops > 1.9 * forward.flops
    assert trained.bytes > 2 * forward.bytes


def test_a_wrong_full_scan_and_a_wrong_dual_are_seen():
    shape, generator = Shape(batch=2, seq_len=70, **SIZES), torch.Generator().manual_seed(1)
    draw = Draw(device=torch.device("cpu"), dtype=torch.float32, generator=generator)
    for name, call, error in (("selective_scan_full", full_scan, full_scan_error), ("ssd", dual, dual_error)):
        inputs = OPERATORS[name].draw(shape, draw)
        output = call(*inputs)
        assert error(*inputs, output) < 1e-6
        output[-1, -1] *= 1.5
        assert error(*inputs, output) > 1e-3


def test_time_last_inputs_give_the_same_numbers():
    """The layout is the kernel's business, not the result's."""
    shape, cpu = Shape(batch=2, seq_len=70, **SIZES), torch.device("cpu")
    for name in ("selective_scan", "selective_scan_full"):
        draw = Draw(device=cpu, dtype=torch.float32, generator=torch.Generator().manual_seed(0), time_last=True)
        inputs = OPERATORS[name].draw(shape, draw)
        assert inputs[0].stride(1) == 1  # mamba-ssm's (B, D, L), without a copy
        dense = [tensor.contiguous() for tensor in inputs]
        torch.testing.assert_close(OPERATORS[name].call(*inputs), OPERATORS[name].call(*dense))


def test_a_kernel_of_another_device_is_unsupported_with_the_reason():
    for build in (build_workload, predicted_cost):
        with pytest.raises(Unsupported, match="attention_cudnn is a kernel for cuda"):
            build(speed_trial("attention_cudnn", "operator"))
    with pytest.raises(Unsupported, match="unheard_of"):
        build_workload(Trial(**speed_trial("ssd", "operator").as_dict() | {"model": "unheard_of"}))
    with pytest.raises(Unsupported, match="fast"):
        build_workload(speed_trial("fast", "ceiling"))


@pytest.mark.parametrize("direction", ["forward", "train"])
@pytest.mark.parametrize("model", ["mamba-tiny", "mamba2-tiny", "transformer-tiny", "hyena-tiny"])
def test_a_block_is_checked_and_its_memory_predicted(model, direction):
    trial = speed_trial(model, "block", direction=direction)
    metrics, _ = measured(trial)
    assert metrics["max_relative_error"] < 1e-5
    whole, _ = measured(speed_trial(model, "model"))
    assert 0 < metrics["params"] < whole["params"]
    assert 0 < metrics["state_bytes"] < whole["state_bytes"]
    assert predicted_cost(trial).peak_bytes == pytest.approx(metrics["peak_alloc_bytes"], rel=0.02)


@pytest.mark.parametrize(("model", "size"), [("copy", 2**16), ("matmul", 64), ("exp", 2**12)])
def test_ceilings_are_checked_and_have_a_rate(model, size):
    trial = speed_trial(model, "ceiling", size, batch=1)
    metrics, backend = measured(trial)
    assert metrics["max_relative_error"] < 1e-5
    exps = size * (CHAIN if "chain" in backend.get("exp", "") else 1)
    amount = {"copy": 2 * 4 * size, "matmul": 2 * size**3, "exp": exps}[model]
    median_s = statistics.median(metrics["latency_ms"]) / 1e3
    assert metrics["rate"] * median_s == pytest.approx(amount, rel=0.01)
    assert metrics["rate_unit"] == {"copy": "byte/s", "matmul": "flop/s", "exp": "exp/s"}[model]
    assert "tokens_per_s" not in metrics
    assert predicted_cost(trial).peak_bytes >= 4 * size


def test_a_ceiling_that_computes_something_else_is_seen():
    ceiling = CEILINGS["copy"](2**12, torch.device("cpu"), torch.float32, torch.Generator().manual_seed(0))
    with observing(verify=True) as report:
        ceiling.call()
    assert report.errors["copy"] == 0
    with pytest.raises(ValueError, match="multiple"):
        CEILINGS["exp"](100, torch.device("cpu"), torch.float32, None)


def test_a_wrong_operator_gets_no_speed(monkeypatch):
    monkeypatch.setattr("benchmarks.operators.relative_error", lambda actual, reference: 0.5)
    with pytest.raises(WrongOutput, match="selective_scan_full"):
        measured(speed_trial("selective_scan_full", "operator"))


@pytest.mark.parametrize("total", [1, 2, 5, 6, 7, 24, 48])
@pytest.mark.parametrize("most", [2, 6, 47])
def test_checked_calls_are_spread_evenly_from_the_first_to_the_last(total, most):
    chosen = sorted(evenly_spread(total, most))
    assert len(chosen) == min(total, most)
    assert (chosen[0], chosen[-1]) == (0, total - 1)
    gaps = [b - a for a, b in itertools.pairwise(chosen)]
    assert max(gaps, default=1) - min(gaps, default=1) <= 1


@pytest.mark.parametrize("model", ["mamba-tiny", "mamba2-tiny", "transformer-tiny", "hyena-tiny", "h3-tiny"])
def test_the_check_runs_the_operators_of_the_timed_call_as_often(model):
    """Or the last call would not be known."""
    for direction in ("forward", "train"):
        workload = build_workload(speed_trial(model, "model", 64, direction=direction))
        with observing() as timed:
            workload.call()
        with observing() as checked:
            workload.forward()
        assert timed.calls == checked.calls


def test_of_long_models_a_few_blocks_are_checked_and_the_record_says_how_many(monkeypatch):
    monkeypatch.setattr("benchmarks.speed.MIN_CHECKED_CALLS", 2)
    monkeypatch.setattr("benchmarks.speed.CHECKED_TOKENS", 96)
    metrics, _ = measured(speed_trial("s4d-tiny", "model"))
    (total,) = {count.partition(" of ")[2] for count in metrics["checked_calls"].values()}
    assert int(total) >= 2
    assert set(metrics["checked_calls"].values()) == {f"2 of {total}"}
    monkeypatch.undo()
    assert set(measured(speed_trial("s4d-tiny", "model"))[0]["checked_calls"].values()) == {f"{total} of {total}"}
    assert CHECKED_TOKENS >= 24 * 1024  # every block of a model of 130M


@pytest.mark.parametrize(("wrong", "seen"), [(0, True), (11, True), (1, False)])
def test_a_wrong_first_or_last_block_is_seen_at_any_length(wrong, seen, monkeypatch):
    monkeypatch.setattr("benchmarks.speed.CHECKED_TOKENS", 1)
    trial = speed_trial("mamba-tiny", "model")

    def twelve_blocks() -> None:
        for block in range(12):
            observe("mixer", "kernel", check=lambda block=block: 0.5 * (block == wrong))

    workload = Workload(call=twelve_blocks, forward=twelve_blocks)
    if not seen:
        assert verify_speed(trial, workload, _twelve_calls()).checked_calls == {"mixer": MIN_CHECKED_CALLS}
        with pytest.raises(WrongOutput, match="mixer"):
            verify_speed(trial, workload)  # of operators whose calls nobody counted every one is checked
        return
    with pytest.raises(WrongOutput, match="mixer"):
        verify_speed(trial, workload, _twelve_calls())


def _twelve_calls() -> OpReport:
    return OpReport(verify=False, calls={"mixer": 12})


@pytest.mark.parametrize("name", RUNS_ON_CPU)
def test_what_a_first_call_gave_is_checked_without_another(name, monkeypatch):
    trial = speed_trial(name, "operator")
    workload = build_workload(trial)
    with observing(verify=True, later=True) as first:
        workload.call()
    assert not first.errors  # nothing was compared while it ran
    again = verify_speed(trial, workload)
    monkeypatch.setattr(workload, "forward", lambda: pytest.fail("it ran before"))
    checked = verify_speed(trial, workload, first)
    assert (checked.errors, checked.checked_calls) == (again.errors, again.checked_calls)
    assert not checked.waiting  # its tensors are let go


def test_a_wrong_first_call_gets_no_speed():
    with observing(verify=True, later=True) as first:
        observe("scan", "kernel", check=lambda: 0.5)
    workload = Workload(call=lambda: None, forward=lambda: None)
    with pytest.raises(WrongOutput, match="scan"):
        verify_speed(speed_trial("selective_scan", "operator"), workload, first)


def test_phases_account_for_the_time_of_a_trial():
    began = time.perf_counter()
    metrics, _ = measured(speed_trial("fft_conv", "operator"))
    assert set(metrics["phases_s"]) == {"memory", "touch", "check", "timing"}
    assert 0 < sum(metrics["phases_s"].values()) < time.perf_counter() - began


@pytest.mark.parametrize("captured", [True, False])
def test_a_call_that_the_host_holds_up_is_replayed_or_says_why_not(captured, monkeypatch):
    def replays(call, device, *, per_call_ms, budget_s):
        assert per_call_ms == 1.0 and budget_s < 1
        if not captured:
            raise RuntimeError("operation not permitted when stream is capturing\nmore of it")
        return Replays([0.1] * 5, 2)

    def timing(call, device, *, budget_s, warmed_up):
        return Timing(samples_ms=[1.0] * 5, calls_per_sample=1, warm_up_calls=1, clock="cuda_events", host_ms=[host_ms])

    monkeypatch.setattr(speed, "time_replays", replays)
    monkeypatch.setattr(speed, "time_calls", timing)
    host_ms = 0.6
    metrics, _ = measured(speed_trial("fft_conv", "operator"))
    found = {key: metrics[key] for key in metrics if "repla" in key}
    if captured:
        assert found == {"replay_ms": [0.1] * 5, "calls_per_replay": 2}
    else:
        assert found == {"replay_error": "operation not permitted when stream is capturing"}
    assert metrics["latency_ms"] == [1.0] * 5  # what was measured before stands
    host_ms = 0.4
    metrics, _ = measured(speed_trial("fft_conv", "operator"))
    assert not any("repla" in key for key in metrics)


# --- the suite -----------------------------------------------------------------------------------------------------


def speed_suite(device: str) -> list[Trial]:
    return [item.trial for item in expand(load_suite("speed"), Selection(), device=device, source_of={})]


def test_the_sweep_on_a_gpu_is_short_enough_and_spans_the_lengths():
    """Every trial costs a second of start there: what bounds a sweep of ten minutes."""
    trials = speed_suite("cuda")
    assert len(trials) <= 300
    for operator in ("selective_scan", "ssd", "fft_conv", "attention"):
        lengths = {t.seq_len for t in trials if t.model == operator and t.direction == "forward"}
        assert {2**i for i in range(9, 21)} <= lengths
    assert {t.protocol["level"] for t in trials if t.kind == "speed"} == {"operator", "block", "model", "ceiling"}
    assert {t.model for t in trials if t.protocol.get("level") == "ceiling"} == {"copy", "matmul", "exp"}


@pytest.mark.parametrize("device", ["cuda", "cpu"])
def test_the_suite_is_planned_without_a_gpu(device):
    """The longest trial of every operator, block and ceiling; and what cannot fit is known beforehand."""
    longest: dict[tuple, Trial] = {}
    for trial in speed_suite(device):
        if trial.protocol.get("level") in ("operator", "block", "ceiling"):
            key = (trial.model, trial.direction, trial.protocol["level"])
            longest[key] = max(longest.get(key, trial), trial, key=lambda t: (t.seq_len, t.batch))
    for (model, *_), trial in longest.items():
        prediction = predicted_cost(trial)
        assert prediction.peak_bytes > 0
        if model == "attention_math" and trial.seq_len >= 2**16:
            assert prediction.peak_bytes > 2 * trial.seq_len**2
        elif model != "attention_math":
            assert prediction.peak_bytes < 2**37, trial
    assert not torch.cuda.is_initialized()


@pytest.mark.parametrize("direction", ["forward", "train"])
def test_a_deep_models_cost_is_told_from_a_few_of_its_layers(direction):
    changes = {"direction": direction, "device": "cuda", "dtype": "bfloat16", "batch": 1}
    trial = speed_trial("transformer-130m", "model", 2048, **changes)
    told, whole = predicted_cost(trial), _predicted(trial)
    assert told.peak_bytes == pytest.approx(whole.peak_bytes, rel=0.01)
    assert math.isclose(told.flops, whole.flops, rel_tol=1e-9)


def test_a_generations_cost_is_linear_in_its_batch():
    from benchmarks.generation import predicted_generation

    for model, loop in (("mamba-tiny", "cuda_graph"), ("transformer-tiny", "cuda_graph")):
        protocol = {"new_tokens": 8, "loop": loop, "sample_budget_s": 0.1}
        settings = {"dtype": "bfloat16", "direction": "forward", "device": "cuda", "seed": 0, "protocol": protocol}
        trial = Trial(kind="generation", model=model, task=None, seq_len=64, batch=100, **settings)
        assert predicted_cost(trial).peak_bytes == pytest.approx(predicted_generation(trial).peak_bytes, rel=0.01)
