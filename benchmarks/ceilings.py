"""What the machine can do at best: the limits that other figures of the same run are a share of.

==========  =================================================================  ==========================
``copy``    ``to.copy_(from)``; seq_len elements                               byte/s, read and written
``matmul``  a square product of seq_len rows in the trial's dtype              flop/s, 2 seq_len^3
``exp``     exponentials of seq_len numbers                                    exp/s
==========  =================================================================  ==========================

Sizes are the suite's: a copy must not fit the last cache, a product must saturate the device. Exponentials must not
wait for memory: on a GPU each number goes through a chain of :data:`CHAIN` exponentials in registers (``x += exp(-x)``,
compiled at the first call; the hardware's own ``__expf``, as fused scans use), so that the figure is the special
function unit's rate. On a CPU it is such a chain of the compiled scan's own ``exp2v``, faster than any that PyTorch
has. Where neither can be compiled, it is ``torch.exp`` on a tensor that should fit a cache, and the backend says so.
"""

import ctypes
import subprocess
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from models.ops import scan_kernel
from models.ops.context import is_fake, observe, relative_error

CHAIN = 64
_NUM_CHECKED = 1024
_GPU_CHAIN = f"""
template <typename T> T exp_chain(T x) {{
  for (int i = 0; i < {CHAIN}; ++i) x += __expf(-x);
  return x;
}}
"""
_SIDE = 8
# So many vectors side by side hide the latency of one chain.
_CPU_CHAIN = f"""
#include "{scan_kernel.SOURCE}"
extern "C" void exp_chain(const float* from, float* to, int64_t size, int threads) {{
  constexpr int64_t W = Simd<float>::W, R = {_SIDE} * W;
  #pragma omp parallel for num_threads(threads)
  for (int64_t i = 0; i < size; i += R) {{
    Vec<float> x[{_SIDE}];
    for (int k = 0; k < {_SIDE}; ++k) x[k] = load(from + i + k * W);
    for (int s = 0; s < {CHAIN}; ++s)
      for (int k = 0; k < {_SIDE}; ++k) x[k] += exp2v(Vec<float>(-x[k]));
    for (int k = 0; k < {_SIDE}; ++k) store(to + i + k * W, x[k]);
  }}
}}
"""
_MULTIPLE = 16 * _SIDE
"""What sizes of the CPU's chain are a multiple of: the widest vector's floats, side by side."""


@dataclass(frozen=True, kw_only=True)
class Ceiling:
    """A call, and how much it does."""

    call: Callable[[], object]
    amount: float
    """Of one call, in the unit without its ``/s``."""
    unit: str


def copy_ceiling(size: int, device: torch.device, dtype: torch.dtype, generator: torch.Generator | None) -> Ceiling:
    """Copy bandwidth within one device."""
    source = torch.rand(size, device=device, dtype=dtype, generator=generator)
    target = torch.zeros_like(source)

    def call() -> Tensor:
        target.copy_(source)
        observe("copy", "Tensor.copy_", check=lambda: relative_error(_sample(target), _sample(source)))
        return target

    return Ceiling(call=call, amount=2.0 * size * dtype.itemsize, unit="byte/s")


def matmul_ceiling(size: int, device: torch.device, dtype: torch.dtype, generator: torch.Generator | None) -> Ceiling:
    """Matrix products of random numbers: zeros would draw less power and run at higher clocks."""
    a, b = (torch.randn(size, size, device=device, dtype=dtype, generator=generator) for _ in range(2))
    product = torch.empty_like(a)

    def call() -> Tensor:
        torch.matmul(a, b, out=product)
        observe("matmul", "torch.matmul", check=lambda: relative_error(product[-8:], a[-8:].double() @ b.double()))
        return product

    return Ceiling(call=call, amount=2.0 * size**3, unit="flop/s")


def exp_ceiling(size: int, device: torch.device, dtype: torch.dtype, generator: torch.Generator | None) -> Ceiling:
    """Rate of exponentials.

    Raises:
        ValueError: a size that the CPU's chain does not divide into whole vectors.
    """
    x = torch.rand(size, device=device, dtype=dtype, generator=generator)
    if is_fake(x):
        return _single_exps(x, "torch.exp")
    if device.type == "cpu" and dtype == torch.float32 and size % _MULTIPLE:
        raise ValueError(f"seq_len={size} of the exp ceiling is no multiple of {_MULTIPLE}; choose one that is")
    try:
        chain, name, base = _gpu_chain(x) if device.type == "cuda" else _cpu_chain(x)
    except (OSError, RuntimeError, AttributeError, subprocess.SubprocessError) as error:
        reason = str(error).partition("\n")[0]
        return _single_exps(x, f"torch.exp (no chain: {reason:.80})")

    def call() -> Tensor:
        y = chain()
        observe("exp", name, check=lambda: relative_error(_sample(y), _chained(_sample(x), base)))
        return y

    return Ceiling(call=call, amount=float(size * CHAIN), unit="exp/s")


Chain = tuple[Callable[[], Tensor], str, Callable[[Tensor], Tensor]]
"""The call, its name, and the exponential that it chains."""


def _gpu_chain(x: Tensor) -> Chain:
    chain = torch.cuda.jiterator._create_jit_fn(_GPU_CHAIN)
    chain(x[:1])  # compiles, or raises
    return lambda: chain(x), f"chain of {CHAIN} __expf", torch.exp


def _cpu_chain(x: Tensor) -> Chain:
    """Compiled for this very CPU, as the scan is. Raises where that, or the dtype, does not work."""
    if x.dtype != torch.float32:
        raise RuntimeError(f"it is of float32, not {x.dtype}")
    if why := scan_kernel.ensure_built():
        raise RuntimeError(why)
    with tempfile.TemporaryDirectory(prefix="seqbench-exp-") as folder:
        source, library = Path(folder) / "chain.cpp", Path(folder) / "chain.so"
        source.write_text(_CPU_CHAIN)
        command = ["c++", *scan_kernel.FLAGS, str(source), "-o", str(library)]
        subprocess.run(command, check=True, capture_output=True, timeout=scan_kernel.BUILD_TIMEOUT_S)
        function = ctypes.CDLL(str(library)).exp_chain
    function.argtypes, function.restype = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int64, ctypes.c_int], None
    y, threads = torch.empty_like(x), torch.get_num_threads()

    def call() -> Tensor:
        function(x.data_ptr(), y.data_ptr(), x.numel(), threads)
        return y

    return call, f"chain of {CHAIN} of the scan kernel's exp2v", torch.exp2


def _single_exps(x: Tensor, backend: str) -> Ceiling:
    y = torch.empty_like(x)

    def call() -> Tensor:
        torch.exp(x, out=y)
        observe("exp", backend, check=lambda: relative_error(_sample(y), _sample(x).double().exp()))
        return y

    return Ceiling(call=call, amount=float(x.numel()), unit="exp/s")


def _sample(x: Tensor) -> Tensor:
    return x[:: max(1, x.numel() // _NUM_CHECKED)]


def _chained(x: Tensor, base: Callable[[Tensor], Tensor]) -> Tensor:
    x = x.double()
    for _ in range(CHAIN):
        x = x + base(-x)
    return x


CEILINGS = {"copy": copy_ceiling, "matmul": matmul_ceiling, "exp": exp_ceiling}
