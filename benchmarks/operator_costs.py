"""What an operator must move and compute at the least: the counts behind every share of a limit.

A call reads its inputs once and writes its output once; a train call then reads the inputs and the output's gradient,
and writes the inputs' gradients. Operations are those of the cheapest known algorithm, each multiply and each add one;
exponentials (and softplus's logarithm) run on a unit of their own and are counted apart. Implementations move and
compute more: that is what a share below 100 % says.

Symbols: B batch, L sequence length, D channels, N states, H heads, P head width (D / H), G groups, e bytes of a number
in the trial's dtype. Decays and convolution kernels are float32 at least.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

from models.ops.fft_conv import fast_fft_len


@dataclass(frozen=True, kw_only=True)
class Shape:
    """The sizes of one call."""

    batch: int
    seq_len: int
    width: int
    """Channels D."""
    d_state: int = 16
    head_dim: int = 64
    num_groups: int = 1
    element_bytes: int = 4

    @property
    def num_heads(self) -> int:
        return self.width // self.head_dim

    @property
    def tokens(self) -> int:
        return self.batch * self.seq_len

    @property
    def wide_bytes(self) -> int:
        """Of a number that stays in float32 at least."""
        return max(4, self.element_bytes)


@dataclass(frozen=True, kw_only=True)
class Cost:
    """Of one call."""

    bytes: float
    flops: float
    exps: float

    def as_dict(self) -> dict[str, float]:
        return {"bytes": self.bytes, "flops": self.flops, "exps": self.exps}


CostForm = Callable[[Shape, bool], Cost]
"""Shape, and whether the call is a train step (forward and backward with all gradients), to cost."""


def _moved(inputs: float, outputs: float, *, train: bool) -> float:
    """Forward: inputs + outputs. Backward: inputs and the output's gradient read, the inputs' gradients written."""
    return inputs + outputs + (2 * inputs + outputs if train else 0.0)


def selective_scan_cost(shape: Shape, train: bool) -> Cost:
    """``h = exp(dt A) h + (dt x) B``, ``y = C h``, for each of B L D N states.

    Forward, a state: dt A 1, a h + u B 3, C h summed 2; a channel: dt x 1. One exponential a state.
    Backward, a state: states again 4; g = C dy + a g' 3; dC, dB and du 2 each; the exponent's gradient g a h 2, into
    ddt and dA 2 each; a channel: dt x, dx and ddt 4. One exponential a state again.
    """
    channels, states = shape.tokens * shape.width, shape.tokens * shape.width * shape.d_state
    inputs = (2 * channels + 2 * shape.tokens * shape.d_state) * shape.element_bytes
    inputs += shape.width * shape.d_state * shape.wide_bytes  # A
    forward, backward = 6.0 * states + channels, 19.0 * states + 4.0 * channels
    return Cost(
        bytes=_moved(inputs, channels * shape.element_bytes, train=train),
        flops=forward + train * backward,
        exps=float(states * (2 if train else 1)),
    )


def selective_scan_full_cost(shape: Shape, train: bool) -> Cost:
    """The scan of ``softplus(dt + bias)``, then ``(y + D x) silu(z)``: z is read too, bias and D a channel.

    Forward, a channel: bias and softplus 2, D x 2, silu 2, gate 1; three exponentials (softplus's exp and log, silu's).
    Backward, a channel: these 7 and three exponentials again, and 12: dz 6, dy 1, D's part of dx 2, dD 2, d softplus 1.
    """
    scan, channels = selective_scan_cost(shape, train), shape.tokens * shape.width
    more = channels * shape.element_bytes + 2 * shape.width * shape.wide_bytes
    return Cost(
        bytes=scan.bytes + _moved(more, 0.0, train=train),
        flops=scan.flops + 7.0 * channels + train * 19.0 * channels,
        exps=scan.exps + 3.0 * channels * (2 if train else 1),
    )


def ssd_cost(shape: Shape, train: bool) -> Cost:
    """``h = exp(dt A) h + (dt x) B``, ``y = h C`` with one decay a head; as a recurrence, which no chunking undercuts.

    Forward, each of L D N states: a h + u B 3, C h summed 2; a channel: dt x 1. One exponential a head and step.
    Backward, a state: states again 3; g 3; dC, dB and du 2 each; the decay's gradient 2; a channel: 4.
    """
    channels, heads = shape.tokens * shape.width, shape.tokens * shape.num_heads
    states = channels * shape.d_state
    inputs = (channels + 2 * shape.tokens * shape.num_groups * shape.d_state) * shape.element_bytes
    inputs += (heads + shape.num_heads) * shape.wide_bytes  # dt, A
    return Cost(
        bytes=_moved(inputs, channels * shape.element_bytes, train=train),
        flops=5.0 * states + channels + train * (14.0 * states + 4.0 * channels),
        exps=float(heads * (2 if train else 1)),
    )


def fft_conv_cost(shape: Shape, train: bool) -> Cost:
    """Real transforms of length n = 2 L or just above, 2.5 n log2 n each, and products of spectra, 6 a frequency.

    Forward: one transform a kernel, two a sequence. Backward: one of dy, one back to dx; dk is summed over the batch
    as a spectrum first: one back a kernel. Spectra of x and kernel are kept.
    """
    n = fast_fft_len(2 * shape.seq_len)
    transforms = shape.width * (2 * shape.batch + 1) * 2.5 * n * math.log2(n)
    products = shape.width * shape.batch * 6.0 * (n / 2 + 1)
    inputs = shape.tokens * shape.width * shape.element_bytes + shape.seq_len * shape.width * shape.wide_bytes
    return Cost(
        bytes=_moved(inputs, shape.tokens * shape.width * shape.element_bytes, train=train),
        flops=transforms + products + train * (transforms + 2 * products),
        exps=0.0,
    )


def attention_cost(shape: Shape, train: bool) -> Cost:
    """q k^T and p v over the L (L + 1) / 2 pairs that see each other: 4 P a pair and head, and one exponential.

    Backward: dv, dp, dq, dk, and the scores again, never kept: 2.5 times the products, the exponentials again.
    """
    return _attention_cost(shape, train, recomputes=True)


def materialised_attention_cost(shape: Shape, train: bool) -> Cost:
    """As :func:`attention_cost`, but the probabilities are kept: twice the products in the backward, no exponentials.

    The square of scores is the implementation's own: it counts in no limit, and what it costs shows in the share.
    """
    return _attention_cost(shape, train, recomputes=False)


def _attention_cost(shape: Shape, train: bool, *, recomputes: bool) -> Cost:
    tensor = shape.tokens * shape.width * shape.element_bytes
    pairs = shape.batch * shape.num_heads * shape.seq_len * (shape.seq_len + 1) / 2
    again = train and recomputes
    return Cost(
        # The output is read in the backward, too: the softmax's gradient needs its product with dy.
        bytes=_moved(3 * tensor, tensor, train=train) + train * tensor,
        flops=4.0 * shape.head_dim * pairs * (1 + (2.5 if again else 2.0) * train),
        exps=pairs * (2 if again else 1),
    )
