"""What a name stands for: a family or ``MIXER.WIRING``, and a size, as in ``mamba-tiny`` or ``s6.h3-130m``.

Models of one size have the parameters of Mamba at that size (within 5 %, the embedding left out), so that
a comparison is one of mixers and not of capacity. Mamba, Mamba-2 and hybrids are stacks of their blocks
alone; all others alternate mixers with MLPs, whose hidden width fills up to that number. The inner
width of a wiring is the largest of a few that leaves the number within reach.

The sizes ``probe64`` and ``probe128`` are those of the paper's synthetic probes instead (App. E.1): two
blocks of any mixer at that width, without MLPs, whatever parameters they come to.

The size ``dna1m`` is that of the paper's DNA models of about 1.4 million parameters (App. E.3).

The sizes of raw audio are ``stack8``, eight blocks, and U-Nets (:mod:`models.unet`): ``unet3x16`` has three
blocks at each of its five stages and two poolings by 16. A block of Mamba stands against a mixer with an MLP
there, at each stage's width. ``OUTER+CENTRE-unet8x4`` has other blocks in the centre than around it.
"""

import functools
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import torch

from models.attention import Attention
from models.base import Mixer
from models.hyena import Hyena
from models.linear_attention import LinearAttention
from models.lstm import LSTM
from models.mamba2 import Mamba2
from models.mamba3 import Mamba3
from models.model import Block, SequenceModel
from models.ops.context import without_data
from models.retnet import RetNet
from models.s4d import S4D
from models.s6 import S6, SELECTABLE
from models.unet import UNet
from models.wirings import H3, Mamba, Plain

TOLERANCE = 0.05
"""How far the parameters of a size may lie apart."""
SMALL_WIDTH = 256
"""Up to it: the probes' models, with narrower heads, states and filters."""


@dataclass(frozen=True, kw_only=True)
class Size:
    """Width and depth of Mamba at a size; two of its blocks are one layer of a Transformer."""

    d_model: int
    num_layers: int
    attention_every: int = 8
    """Of a hybrid's blocks, every so-manieth is attention (one in eight: Lieber et al., arXiv 2403.19887)."""
    hyena_period: int = 8192
    """Of a Hyena filter's slowest feature, in positions; see :class:`models.hyena.Hyena`."""
    hyena_shortest: int | None = None
    equal_params: bool = True
    """Whether MLPs and inner widths are fitted to Mamba's parameters."""
    paired: bool = True
    """Whether two blocks of Mamba stand against one mixer with its MLP; else one does."""
    pooling: int = 0
    """Factor of a U-Net's two poolings; ``num_layers`` are then those of a stage, ``d_model`` is the outer width."""

    @property
    def is_small(self) -> bool:
        return self.d_model <= SMALL_WIDTH

    @property
    def head_dim(self) -> int:
        return 16 if self.is_small else 64

    @property
    def dt_rank(self) -> int:
        return math.ceil(self.d_model / 16)

    @property
    def num_mixers(self) -> int:
        """Of a model that alternates mixers and MLPs. One layer cannot form an induction head: at least two."""
        return max(2, self.num_layers // 2) if self.paired else self.num_layers


SIZES: dict[str, Size] = {
    # The width and depth of the paper's synthetic probes (App. E.1).
    "tiny": Size(d_model=64, num_layers=2, attention_every=2),
    # The published checkpoints (mamba-ssm's README).
    "130m": Size(d_model=768, num_layers=24),
    "370m": Size(d_model=1024, num_layers=48),
    "790m": Size(d_model=1536, num_layers=48),
    "1.4b": Size(d_model=2048, num_layers=48),
    "2.8b": Size(d_model=2560, num_layers=64),
    # Language that trains in minutes: half and two thirds of the smallest published width.
    "10m": Size(d_model=384, num_layers=10),
    "25m": Size(d_model=512, num_layers=14),
    # The probes themselves: blocks of mixers alone, as the published 137K parameters of attention say.
    "probe64": Size(d_model=64, num_layers=2, attention_every=2, equal_params=False),
    "probe128": Size(d_model=128, num_layers=2, attention_every=2, equal_params=False),
    # DNA (App. E.3): six blocks of a Transformer of width 128, about 1.4M; Hyena's filters reach over a million bases.
    "dna1m": Size(d_model=128, num_layers=12, hyena_period=2**20, hyena_shortest=256),
    # Raw audio: eight blocks without a U-Net; the paper's Fig. 7; its 6M models (App. E.4); one for a CPU.
    "stack8": Size(d_model=64, num_layers=8, paired=False),
    "unet3x16": Size(d_model=64, num_layers=3, attention_every=3, paired=False, pooling=16),
    "unet8x4": Size(d_model=64, num_layers=8, paired=False, pooling=4),
    "unet1x4": Size(d_model=32, num_layers=1, attention_every=1, paired=False, pooling=4),
}

PROBE_MODELS = (
    # Table 11 of the paper (induction heads), then what it does not have.
    "mamba-probe64", "transformer-probe128", "transformer_xpos-probe128", "transformer_absolute-probe128",
    "h3-probe128", "hyena-probe128", "s4d-probe128", "mamba2-probe64",
    # Table 1 (selective copying): wirings plain, H3 and Mamba of S4D, S6 and Hyena; then what it does not have.
    "s6.plain-probe64", "s6.h3-probe64", "s4d-probe64", "h3-probe64", "s4d.mamba-probe64", "hyena-probe64",
    "hyena.mamba-probe64", "transformer-probe64",
)  # fmt: skip
"""The rows of the paper's two tables of probes, which the suites ``paper-*`` train."""

_MAMBA_S4 = "s6_complex_lti.mamba"
ABLATED = ("mamba", "mamba_complex", "s6_complex_dt.mamba", _MAMBA_S4)
"""Rows of the paper's ablation on audio (Fig. 10), each with one change more: S6, complex, B and C and at last Δ
not selective, which it calls Mamba-S4."""
AUDIO_MODELS = (
    "s4d-unet3x16", "mamba_complex-unet3x16", "s4d-stack8", "mamba_complex-stack8",
    "s4d-unet8x4", *(f"{row}-unet8x4" for row in ABLATED), *(f"{_MAMBA_S4}+{row}-unet8x4" for row in ABLATED[:-1]),
    "mamba_complex-unet1x4",
)  # fmt: skip
"""What the suites ``audio-*`` train, and a small one."""

MixerBuilder = Callable[[int, Size], Mixer]


def _s6(width: int, size: Size, *, select: Sequence[str] = SELECTABLE, is_complex: bool = False) -> Mixer:
    return S6(width, dt_rank=size.dt_rank, select=select, is_complex=is_complex)


def _s4d(width: int, size: Size, *, is_complex: bool = True) -> Mixer:
    # S4's own 64 states of a channel; where a wiring widens the channels, as many as Mamba has there.
    return S4D(width, d_state=64 if width <= size.d_model else 16, is_complex=is_complex)


def _hyena(width: int, size: Size) -> Mixer:
    filter_width = 32 if size.is_small else 64
    return Hyena(width, filter_width=filter_width, max_period=size.hyena_period, shortest_window=size.hyena_shortest)


def _attention(width: int, size: Size, *, positions: str = "rope", window: int | None = None) -> Mixer:
    return Attention(width, num_heads=width // size.head_dim, positions=positions, window=window)


def _selections() -> Iterator[tuple[str, MixerBuilder]]:
    """Table 7: selectivity of dt, B and C one by one; ``s6_lti`` has none, ``s6`` all."""
    for chosen in range(2 ** len(SELECTABLE) - 1):
        select = [name for i, name in enumerate(SELECTABLE) if chosen >> i & 1]
        yield "_".join(["s6", *(select or ["lti"])]).lower(), functools.partial(_s6, select=select)


MIXERS: dict[str, MixerBuilder] = {
    "s6": _s6,
    "s6_complex": functools.partial(_s6, is_complex=True),
    "s6_complex_dt": functools.partial(_s6, is_complex=True, select=("dt",)),
    "s6_complex_lti": functools.partial(_s6, is_complex=True, select=()),
    **dict(_selections()),
    "s4d": _s4d,
    "s4d_real": functools.partial(_s4d, is_complex=False),
    "hyena": _hyena,
    "attention": _attention,
    "attention_absolute": functools.partial(_attention, positions="absolute"),
    "attention_xpos": functools.partial(_attention, positions="xpos"),
    "attention_alibi": functools.partial(_attention, positions="alibi"),
    "attention_nope": functools.partial(_attention, positions="none"),
    "attention_window": functools.partial(_attention, window=256),
    "linear_attention": lambda width, size: LinearAttention(width, num_heads=width // size.head_dim),
    "retnet": lambda width, size: RetNet(width, num_heads=width // size.head_dim),
    "lstm": lambda width, size: LSTM(width),  # noqa: ARG005 (one signature for all)
    # As many states as give the small one the parameters of Mamba's block.
    "mamba2": lambda width, size: Mamba2(
        width, d_state=48 if size.is_small else 128, head_dim=32 if size.is_small else 64
    ),
    # Its kernels want powers of two: of those, the nearest to the parameters of Mamba's block.
    "mamba3": lambda width, size: Mamba3(
        width, d_state=32 if size.is_small else 64 if width <= 512 else 128, head_dim=size.head_dim
    ),
}
WIRINGS = ("plain", "h3", "mamba")
WHOLE_BLOCKS = ("mamba2", "mamba3")
"""Published as blocks with a wiring of their own; they take no other."""

FAMILIES: dict[str, tuple[str, str]] = {
    "mamba": ("s6", "mamba"),
    "mamba_complex": ("s6_complex", "mamba"),
    "mamba2": ("mamba2", "plain"),
    "mamba3": ("mamba3", "plain"),
    "transformer": ("attention", "plain"),
    "transformer_absolute": ("attention_absolute", "plain"),
    "transformer_xpos": ("attention_xpos", "plain"),
    "transformer_alibi": ("attention_alibi", "plain"),
    "transformer_nope": ("attention_nope", "plain"),
    "transformer_window": ("attention_window", "plain"),
    "s4d": ("s4d", "plain"),
    "s4d_real": ("s4d_real", "plain"),
    "h3": ("s4d", "h3"),
    "hyena": ("hyena", "h3"),
    "linear_attention": ("linear_attention", "plain"),
    "retnet": ("retnet", "plain"),
    "lstm": ("lstm", "plain"),
    "hybrid": ("hybrid", "mamba"),
}


Combination = tuple[str, str]
"""A mixer and a wiring."""


def parse(name: str) -> tuple[Combination, Size, Combination] | None:
    """What the blocks are, the size, and what a U-Net's centre is; None where a name is not of this grammar."""
    families, _, size = name.partition("-")
    outer, plus, centre = families.partition("+")
    found = [_combination(family) for family in ((outer, centre) if plus else (outer, outer))]
    if None in found or size not in SIZES or (plus and not SIZES[size].pooling):
        return None
    return found[0], SIZES[size], found[1]  # type: ignore[return-value]


def _combination(family: str) -> Combination | None:
    mixer, _, wiring = family.partition(".")
    if family in FAMILIES:
        return FAMILIES[family]
    if mixer not in MIXERS or wiring not in WIRINGS or (mixer in WHOLE_BLOCKS and wiring != "plain"):
        return None
    return mixer, wiring


def build(
    mixer: str, wiring: str, size: Size, *, vocab_size: int, centre: Combination | None = None
) -> SequenceModel | UNet:
    """The model of a parsed name, uninitialised. ``centre`` is for U-Nets: as the other stages if not given."""
    if size.pooling:
        return _build_unet((mixer, wiring), centre or (mixer, wiring), size, vocab_size=vocab_size)
    d_inner, d_mlp = _fitted(mixer, wiring, size)
    return _assemble(mixer, wiring, size, vocab_size=vocab_size, d_inner=d_inner, d_mlp=d_mlp)


def _build_unet(outer: Combination, centre: Combination, size: Size, *, vocab_size: int) -> UNet:
    stages = []
    for depth in (0, 1, 2, 1, 0):
        combination = centre if depth == 2 else outer
        stage = replace(size, d_model=size.d_model * 2**depth, pooling=0)
        mixers, widths = _mixers_and_mlps(*combination, stage, *_fitted(*combination, stage))
        stages.append([Block(stage.d_model, *block) for block in zip(mixers, widths, strict=True)])
    return UNet(vocab_size=vocab_size, d_model=size.d_model, stages=stages, factor=size.pooling)


def _assemble(mixer: str, wiring: str, size: Size, *, vocab_size: int, d_inner: int, d_mlp: int) -> SequenceModel:
    mixers, widths = _mixers_and_mlps(mixer, wiring, size, d_inner, d_mlp)
    return SequenceModel(vocab_size=vocab_size, d_model=size.d_model, mixers=mixers, d_mlp=widths)


def _mixers_and_mlps(mixer: str, wiring: str, size: Size, d_inner: int, d_mlp: int) -> tuple[list[Mixer], list[int]]:
    """The mixer of each block, and the hidden width of its MLP."""
    if mixer == "hybrid":
        is_attention = [(i + 1) % size.attention_every == 0 for i in range(size.num_layers)]
        mixers = [
            _block_mixer("attention" if a else "s6", "plain" if a else "mamba", size, size.d_model * (1 if a else 2))
            for a in is_attention
        ]
        return mixers, [d_mlp if a else 0 for a in is_attention]
    count = size.num_layers if _is_stack_of_mixers(mixer, wiring) else size.num_mixers
    return [_block_mixer(mixer, wiring, size, d_inner) for _ in range(count)], [d_mlp] * count


def _is_stack_of_mixers(mixer: str, wiring: str) -> bool:
    return wiring == "mamba" or mixer in WHOLE_BLOCKS


def _block_mixer(mixer: str, wiring: str, size: Size, d_inner: int) -> Mixer:
    inner = MIXERS[mixer](d_inner, size)
    if wiring == "mamba":
        return Mamba(size.d_model, inner, d_inner=d_inner)
    if wiring == "h3":
        return H3(size.d_model, inner, d_inner=d_inner, convolve_all=isinstance(inner, Hyena))
    return inner if inner.mixes_channels else Plain(size.d_model, inner)


@functools.cache
def _fitted(mixer: str, wiring: str, size: Size) -> tuple[int, int]:
    """Inner width of the wiring, and hidden width of the MLPs, that give Mamba's number of parameters."""
    if not size.equal_params:
        return (2 if wiring == "mamba" else 1) * size.d_model, 0
    if (mixer, wiring) == ("s6", "mamba") or mixer in WHOLE_BLOCKS:
        return (2 if mixer == "s6" else 1) * size.d_model, 0
    wanted = _num_params("s6", "mamba", size, 2 * size.d_model, 0)
    for d_inner in _inner_widths(mixer, wiring, size):
        missing = wanted - _num_params(mixer, wiring, size, d_inner, 0)
        # A sliver of an MLP would cost more time than it adds.
        if abs(missing) <= TOLERANCE * 0.8 * wanted:
            return d_inner, 0
        if missing > 0:
            return d_inner, _mlp_width(mixer, wiring, size, missing)
    raise ValueError(
        f"no width of {mixer!r} in wiring {wiring!r} has as few parameters as Mamba at this size "
        f"({wanted:,}); use another wiring"
    )


def _inner_widths(mixer: str, wiring: str, size: Size) -> list[int]:
    if wiring == "plain" or mixer == "hybrid":
        return [size.d_model]
    channelwise = mixer.startswith(("s6", "s4d", "hyena"))
    if wiring == "mamba" and channelwise:
        return [2 * size.d_model, size.d_model]
    # Down to a quarter, in whole pairs of heads.
    step = 2 * size.head_dim
    return [width for width in range(size.d_model, size.d_model // 4 - 1, -step) if width % step == 0]


def _mlp_width(mixer: str, wiring: str, size: Size, missing: int) -> int:
    if mixer == "hybrid":
        count = size.num_layers // size.attention_every
    else:
        count = size.num_layers if _is_stack_of_mixers(mixer, wiring) else size.num_mixers
    multiple = 4 if size.is_small else 8
    # Three matrices and the norm before them.
    width = (missing / count - size.d_model) / (3 * size.d_model)
    return max(0, multiple * round(width / multiple))


def _num_params(mixer: str, wiring: str, size: Size, d_inner: int, d_mlp: int) -> int:
    """Without the embedding."""
    # The planner's fake tensors would be counted as well, but slowly, and would be kept in the cache.
    with torch._C._DisableTorchDispatch(), without_data():
        model = _assemble(mixer, wiring, size, vocab_size=1, d_inner=d_inner, d_mlp=d_mlp)
        return model.num_params - size.d_model
