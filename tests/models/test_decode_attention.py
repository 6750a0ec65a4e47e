"""A step's attention against softmax in float64, by every way; Triton's kernel in its interpreter, where Triton is.

The last tests want CUDA: ``python -m pytest tests/models/test_decode_attention.py``.
"""

import os
import subprocess
import sys
from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from harness.memory import memory_of
from harness.prediction import predict
from models.attention import Attention
from models.ops import decode_attention as ops
from models.ops.context import observing, predicting, relative_error, why_missing
from models.ops.decode_attention import decode_attention, num_parts

TOLERANCE = {torch.float64: 1e-12, torch.float32: 1e-6, torch.bfloat16: 6e-3, torch.float16: 1e-3}
"""Of outputs: bfloat16's own rounding is up to 2**-8."""


@pytest.fixture(autouse=True)
def _one_thread():
    torch.set_num_threads(1)


def drawn(
    batch: int, heads: int, key_heads: int, width: int, places: int, held: int,
    *, dtype: torch.dtype = torch.float64, device: str = "cpu",
) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """Query, keys, values, how many are held. All are slices; what lies behind those held is NaN: not to be read."""
    generator = torch.Generator().manual_seed(places + held)
    q = torch.randn(batch, heads + 2, width, generator=generator, dtype=torch.float64)[:, 1:-1]
    keys, values = torch.randn(2, batch, key_heads, places + 9, width, generator=generator, dtype=torch.float64)
    for cache in (keys, values):
        cache[:, :, held:] = torch.nan
    whole = (t.to(device=device, dtype=dtype) for t in (q, keys, values))
    q, keys, values = whole
    return q, keys[:, :, :places], values[:, :, :places], torch.tensor([held], device=device)


def by_softmax(q: Tensor, keys: Tensor, values: Tensor, held: Tensor) -> Tensor:
    count = int(held)
    sharing = q.shape[1] // keys.shape[1]
    k, v = (t[:, :, :count].double().repeat_interleave(sharing, dim=1) for t in (keys, values))
    scores = torch.einsum("bhk,bhmk->bhm", q.double(), k) / q.shape[2] ** 0.5
    return torch.einsum("bhm,bhmk->bhk", scores.softmax(dim=-1), v)


@pytest.mark.parametrize(("heads", "key_heads"), [(4, 4), (6, 2), (3, 1)])
@pytest.mark.parametrize("held", [1, 7, 50, 80])
@pytest.mark.parametrize("dtype", TOLERANCE)
def test_on_a_cpu_it_is_softmax_over_what_is_held(heads, key_heads, held, dtype):
    inputs = drawn(2, heads, key_heads, 12, 80, held, dtype=dtype)
    with observing(verify=True) as report:
        out = decode_attention(*inputs)
    assert out.dtype == dtype and relative_error(out, by_softmax(*inputs)) < TOLERANCE[dtype]
    assert report.backends == {"attention": "sdpa-held"}
    assert report.errors["attention"] < TOLERANCE[dtype]
    assert report.forward_flops == 4 * 2 * heads * 12 * held


@pytest.mark.parametrize(("heads", "key_heads"), [(4, 4), (6, 2)])
def test_more_than_the_cache_holds_means_all_of_it(heads, key_heads):
    q, keys, values, held = drawn(2, heads, key_heads, 12, 80, 80)
    whole = decode_attention(q, keys, values, held)
    assert torch.equal(decode_attention(q, keys, values, held + 1000), whole)


def test_the_check_sees_a_place_too_many_and_a_place_too_few():
    q, keys, values, held = drawn(2, 4, 2, 12, 80, 50)
    keys, values = keys.nan_to_num(0.5), values.nan_to_num(0.5)
    for wrong in (held - 1, held + 1):
        assert ops._slice_error(q, keys, values, held, decode_attention(q, keys, values, wrong)) > 1e-3


@pytest.mark.parametrize(("heads", "key_heads"), [(4, 4), (6, 2)])
@pytest.mark.parametrize("held", [1, 50, 80])
def test_the_mask_of_other_devices_gives_the_same(heads, key_heads, held):
    q, keys, values, held_1 = drawn(2, heads, key_heads, 12, 80, held)
    keys, values = keys.nan_to_num(), values.nan_to_num()
    masked = ops._grouped_sdpa(q, keys, values, (torch.arange(80) < held_1)[None])
    assert torch.allclose(masked, decode_attention(q, keys, values, held_1), atol=1e-12)


def test_gradients_flow_where_they_are_asked_for():
    q, keys, values, held = drawn(1, 2, 2, 8, 20, 13)
    q, keys = q.clone().requires_grad_(), keys.clone().requires_grad_()
    decode_attention(q, keys, values, held).sum().backward()
    assert bool(q.grad.any()) and bool(keys.grad[:, :, :13].any()) and not bool(keys.grad[:, :, 13:].any())


# --- steps --------------------------------------------------------------------------------------------------------


@torch.no_grad()
@pytest.mark.parametrize("positions", ["rope", "none", "absolute", "alibi", "xpos"])
@pytest.mark.parametrize("window", [None, 20])
def test_a_step_past_the_end_of_the_cache_raises_and_leaves_the_count(positions, window):
    attention = Attention(16, num_heads=2, positions=positions, window=window)
    state = attention.init_state(1, 5, device=torch.device("cpu"), dtype=torch.float32)
    for _ in range(5):
        attention.step(torch.ones(1, 16), state)
    with pytest.raises(IndexError):
        attention.step(torch.ones(1, 16), state)
    assert state["length"].item() == 5


@torch.no_grad()
@pytest.mark.parametrize(("window", "held"), [(None, list(range(1, 10))), (4, [1, 2, 3, 4, 4, 4, 4, 4, 4])])
def test_steps_read_what_is_held_and_count_it_once(window, held):
    attention = Attention(24, num_heads=6, num_kv_heads=2, window=window)
    state = attention.init_state(3, 9, device=torch.device("cpu"), dtype=torch.float32)
    counted = []
    for _ in range(9):
        with observing() as report:
            attention.step(torch.ones(3, 24), state)
        assert report.calls == {"attention": 1}
        counted.append(report.forward_flops / (4 * 3 * 24))
    assert counted == held


# --- predictions --------------------------------------------------------------------------------------------------


def step_cost(device: str, *, dtype: torch.dtype = torch.bfloat16, batch: int = 1) -> tuple[int, float, str]:
    """Peak bytes beside query and cache, operations in all, and the kernel, of a call over 4,096 places."""
    reports = []

    def build() -> Callable[[], object]:
        q = torch.zeros(batch, 4, 64, dtype=dtype)
        keys, values = (torch.zeros(batch, 2, 4096, 64, dtype=dtype) for _ in range(2))
        held = torch.zeros(1, dtype=torch.int64)

        def call() -> None:
            with observing() as report:
                decode_attention(q, keys, values, held)
            reports.append(report)

        return call

    with predicting(device):
        found = predict(build, device=device)
    kept = torch.empty(0, dtype=dtype).element_size() * batch * (4 * 64 + 2 * 2 * 4096 * 64) + 8
    return found.peak_bytes - kept, found.flops + reports[-1].forward_flops, reports[-1].backends["attention"]


@pytest.mark.parametrize(("batch", "parts"), [(1, 32), (16, 8), (1000, 1)])
def test_on_cuda_the_output_and_the_parts_are_predicted(batch, parts):
    assert num_parts(4 * batch, 4096, 132) == parts
    partial = 4 * 4 * batch * parts * (64 + 1) if parts > 1 else 0
    assert step_cost("cuda", batch=batch) == (
        2 * 4 * batch * 64 + partial,
        4 * batch * 4 * 64 * 4096,
        "predicted",
    )


@pytest.mark.parametrize(
    ("device", "dtype"), [("cpu", torch.bfloat16), ("cpu", torch.float32), ("cuda", torch.float64)]
)
def test_elsewhere_the_mask_is_predicted_and_operations_are_counted_once(device, dtype):
    beside, flops, name = step_cost(device, dtype=dtype)
    assert beside > torch.empty(0, dtype=dtype).element_size() * 4 * 64 + 4096  # a mask too
    assert flops == 4 * 4 * 64 * 4096 and name == "predicted"


@pytest.mark.parametrize("change", ["width", "stride", "gradient", "dtype", "mixed"])
def test_what_the_kernel_does_not_run_is_not_predicted_as_its(change):
    width = 288 if change == "width" else 64
    dtype = torch.float64 if change == "dtype" else torch.float32
    with FakeTensorMode(), predicting("cuda"):
        q, keys = torch.zeros(1, 2, width, dtype=dtype), torch.zeros(1, 2, 30, width, dtype=dtype)
        assert ops._has_kernel(torch.zeros(1, 2, 64), torch.zeros(1, 2, 30, 64), torch.zeros(1, 2, 30, 64))
        if change == "stride":
            keys = torch.zeros(1, 2, 64, 30).mT
        elif change == "gradient":
            keys.requires_grad_()
        elif change == "mixed":
            keys = keys.bfloat16()
        assert not ops._has_kernel(q, keys, keys)


@pytest.mark.parametrize("rows", [1, 16, 100, 528, 5000])
@pytest.mark.parametrize("max_len", [1, 255, 512, 2176, 2**20])
def test_parts_are_a_power_of_two_within_their_bounds(rows, max_len):
    parts = num_parts(rows, max_len, 132)
    assert parts & (parts - 1) == 0 and 1 <= parts <= 64
    assert parts == 1 or (max_len / parts >= 128 and rows * parts < 2 * 4 * 132)


# --- Triton's kernel ----------------------------------------------------------------------------------------------

in_interpreter = pytest.mark.skipif(
    os.environ.get("TRITON_INTERPRET") != "1", reason="run in a process of its own, where Triton interprets"
)


def test_the_kernel_is_right_in_tritons_interpreter():
    """Whether a kernel is interpreted is settled where Triton is imported: hence a process of its own."""
    pytest.importorskip("triton")
    command = [sys.executable, "-m", "pytest", "-x", "-k", "interpreted", __file__]
    ran = subprocess.run(command, env=os.environ | {"TRITON_INTERPRET": "1"}, capture_output=True, text=True)
    assert ran.returncode == 0 and " passed" in ran.stdout and "skipped" not in ran.stdout, ran.stdout + ran.stderr


@pytest.fixture
def attend(monkeypatch):
    from triton.runtime import interpreter

    patch_lang = interpreter._patch_lang_tensor

    def patch_index(tensor, scope):
        patch_lang(tensor, scope)
        # Triton 3.6 makes an index of an array of one element by int(), which numpy refuses from 2.4 on.
        scope.set_attr(tensor, "__index__", lambda self: self.handle.data.item())

    monkeypatch.setattr(interpreter, "_patch_lang_tensor", patch_index)
    from models.ops.decode_attention_kernel import attend

    return attend


KERNEL_SHAPES = {  # batch, heads, key heads, width, places
    "plain": (2, 2, 2, 64, 300),
    "wide, shared": (1, 4, 2, 128, 290),
    "no power of two": (1, 1, 1, 48, 700),
}


@in_interpreter
@pytest.mark.filterwarnings("ignore:divide by zero")  # the log-sum of a part without positions
@pytest.mark.parametrize("shape", KERNEL_SHAPES.values(), ids=KERNEL_SHAPES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("held", [1, 7, 256, None])
@pytest.mark.parametrize(("parts", "block"), [(1, None), (8, 32)])
def test_interpreted_the_kernel_is_softmax(attend, shape, dtype, held, parts, block):
    held = held or shape[-1]
    inputs = drawn(*shape, held, dtype=dtype)
    out = attend(*inputs, parts=parts, block=block)  # of 7 positions one part of 8 has them all
    assert out.dtype == dtype and relative_error(out, by_softmax(*inputs)) < TOLERANCE[dtype]


@in_interpreter
def test_interpreted_a_count_above_the_cache_means_all_of_it(attend):
    q, keys, values, held = drawn(1, 2, 2, 16, 80, 80, dtype=torch.float32)
    assert torch.equal(attend(q, keys, values, held + 7, parts=2), attend(q, keys, values, held, parts=2))


@in_interpreter
def test_interpreted_a_nan_that_is_held_is_not_lost(attend):
    q, keys, values, held = drawn(1, 2, 2, 16, 80, 40, dtype=torch.float32)
    assert bool(attend(q, keys, values, held + 1, parts=2).isnan().all())


needs_kernel = pytest.mark.skipif(
    not torch.cuda.is_available() or bool(why_missing("triton")) or os.environ.get("TRITON_INTERPRET") == "1",
    reason="needs CUDA and Triton",
)


@needs_kernel
@pytest.mark.parametrize("shape", KERNEL_SHAPES.values(), ids=KERNEL_SHAPES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("held", [1, 256, None])
def test_on_cuda_the_kernel_is_softmax(shape, dtype, held):
    held = held or shape[-1]
    inputs = drawn(*shape, held, dtype=dtype, device="cuda")
    with observing(verify=True) as report:
        out = decode_attention(*inputs)
    assert report.backends == {"attention": "decode-triton"}
    assert report.errors["attention"] < TOLERANCE[dtype]
    assert relative_error(out, by_softmax(*inputs)) < TOLERANCE[dtype]


@needs_kernel
def test_keys_beyond_32_bits_are_read():
    places, width = 2**24 + 64, 128
    q = torch.ones(1, 1, width, device="cuda", dtype=torch.bfloat16)
    keys = torch.zeros(1, 1, places, width, device="cuda", dtype=torch.bfloat16)
    keys[:, :, -1] = 10  # by far the highest score
    values = keys.clone()
    out = decode_attention(q, keys, values, torch.tensor([places], device="cuda"))
    torch.testing.assert_close(out, torch.full_like(out, 10))


@needs_kernel
def test_a_captured_call_reads_what_is_held_when_it_is_replayed():
    q, keys, values, held = drawn(2, 4, 2, 64, 2000, 2000, dtype=torch.float32, device="cuda")
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        decode_attention(q, keys, values, held)
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    held.fill_(1)
    with torch.cuda.graph(graph):
        out = decode_attention(q, keys, values, held)
    for count in (1, 2, 63, 700, 2000):
        held.fill_(count)
        graph.replay()
        assert relative_error(out, by_softmax(q, keys, values, held)) < TOLERANCE[torch.float32], count


@needs_kernel
@pytest.mark.parametrize("batch", [1, 1000])
def test_the_predicted_peak_is_the_gpus(batch):
    def work() -> object:
        q = torch.zeros(batch, 4, 64, dtype=torch.bfloat16, device="cuda")
        keys, values = (torch.zeros(batch, 2, 4096, 64, dtype=torch.bfloat16, device="cuda") for _ in range(2))
        held = torch.ones(1, dtype=torch.int64, device="cuda")
        return decode_attention(q, keys, values, held)

    work()  # compiles
    measured = memory_of(work, torch.device("cuda"))["peak_alloc_bytes"]
    kept = 2 * batch * (4 * 64 + 2 * 2 * 4096 * 64) + 8
    assert step_cost("cuda", batch=batch)[0] + kept == pytest.approx(measured, rel=0.02, abs=2**21)
