"""How models, statuses, lengths and units look, alike in every figure and table."""

from __future__ import annotations

import math
import re
import unicodedata
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

STAMP = "EMBEDDED SAMPLE DATA"
# Okabe and Ito's colours, which stay apart for the common forms of colour blindness, and in grey by their markers.
FAMILIES = {
    "mamba": ("#0072B2", "o"),
    "transformer": ("#D55E00", "s"),
    "s4d": ("#009E73", "^"),
    "mamba2": ("#CC79A7", "D"),
    "hyena": ("#E69F00", "v"),
    "mamba3": ("#56B4E9", "P"),
    "h3": ("#7B4FA3", "h"),
    "retnet": ("#8C6D31", "X"),
    "linear_attention": ("#5B5B5B", "p"),
    "lstm": ("#A8A800", "<"),
    "hybrid": ("#882255", "*"),
}
# None is close to those of the three baselines.
OTHERS = [("#662211", "d"), ("#9C3B66", ">"), ("#7A8C31", "8"), ("#4B4BA8", "H"), ("#B0741A", "P"), ("#334411", "X")]
# Lines of variants; never plain dashes, which are for predictions.
DASHDOT, DOTTED, DASHDOTDOT = (0, (6, 1.5, 1, 1.5)), (0, (1, 1)), (0, (6, 1.5, 1, 1.5, 1, 1.5))
# An operator that is timed on its own looks like the family that it is the core of: family, a shade of its colour,
# marker, line.
OPERATORS: dict[str, tuple[str, str, str, Any]] = {
    "selective_scan": ("mamba", "#0072B2", "o", "-"),
    "selective_scan_full": ("mamba", "#003B5C", "D", DASHDOT),
    "selective_scan_torch": ("mamba", "#4FA3DB", "v", DOTTED),
    "ssd": ("mamba2", "#CC79A7", "D", "-"),
    "ssd_torch": ("mamba2", "#7F3D63", "v", DOTTED),
    "fft_conv": ("s4d", "#009E73", "^", "-"),
    "attention": ("transformer", "#D55E00", "s", "-"),
    "attention_flash": ("transformer", "#8C2D04", "o", DASHDOT),
    "attention_cudnn": ("transformer", "#F28E2B", "v", DASHDOTDOT),
    "attention_efficient": ("transformer", "#4A1D05", "P", DOTTED),
    "attention_math": ("transformer", "#A98467", "X", DASHDOT),
}
ATTENTION = "transformer"
VARIANT_LINES = (DASHDOT, DOTTED, DASHDOTDOT)
# Toward black or white, and how far; a light dotted line is hard to see.
VARIANT_TONES = ((0, 0.4), (255, 0.3), (0, 0.65))
ATTENTION_PREFIXES = ("attention", "gpt", "pythia", "llama", "opt")
SIZES = [
    "tiny",
    "probe64",
    "probe128",
    "dna1m",
    "stack8",
    "unet1x4",
    "unet3x16",
    "unet8x4",
    "small",
    "base",
    "medium",
    "large",
    "xl",
]
SIZE = re.compile(r"\d+(\.\d+)?[mb]", re.IGNORECASE)
# One marker a status on the rail; hollow where nothing was started.
STATUSES = {
    "oom": "X",
    "timeout": ">",
    "killed": "P",
    "error": "*",
    "unsupported": "s",
    "wrong": r"$\neq$",
    "skipped": "D",
}
HOLLOW = ("unsupported", "skipped")
NONE = "\N{EN DASH}"


@dataclass(frozen=True, kw_only=True)
class ModelStyle:
    color: str
    marker: str
    line: Any = "-"


def family(model: str) -> str:
    """The part of a model's name before its size: mamba of mamba-tiny."""
    return str(model).rsplit("-", 1)[0] if size(model) else str(model)


def size(model: str) -> str | None:
    """tiny of mamba-tiny, 130m of mamba-130m; None where the name ends in no known size."""
    last = str(model).rsplit("-", 1)[-1]
    return last if (last in SIZES or SIZE.fullmatch(last)) and last != model else None


def kin(name: str) -> str:
    """The family of fixed looks that a model, a variant of it (transformer_alibi-tiny) or an operator belongs to."""
    if name in OPERATORS:
        return OPERATORS[name][0]
    own = family(name)
    if own in FAMILIES:
        return own
    if own.startswith(ATTENTION_PREFIXES):
        return ATTENTION
    parent = own.split("_", 1)[0]
    return parent if parent in FAMILIES else own


def is_attention(name: str) -> bool:
    """Whether a model or an operator attends to every pair of positions, and nothing else mixes them."""
    return kin(name) == ATTENTION and "window" not in name


def size_order(name: str) -> tuple[int, float]:
    """Sorts sizes: names from tiny to xl, then numbers of parameters."""
    last = size(name) or "tiny"
    if last in SIZES:
        return SIZES.index(last), 0.0
    return len(SIZES), float(last[:-1]) * (1e9 if last[-1] in "bB" else 1e6)


def model_styles(models: Iterable[str]) -> dict[str, ModelStyle]:
    """A colour and marker for each family, a shade for each of its sizes; families that are not fixed take turns.

    A variant has a line of its own, and a tone of its own beside its family or another variant.
    """
    names = sorted(set(models))
    others = sorted({kin(name) for name in names} - set(FAMILIES))
    looks = FAMILIES | {name: OTHERS[index % len(OTHERS)] for index, name in enumerate(others)}
    styles = {}
    for name in names:
        color, marker = looks[kin(name)]
        if name in OPERATORS:
            _, color, marker, line = OPERATORS[name]
            styles[name] = ModelStyle(color=color, marker=marker, line=line)
            continue
        sizes = sorted({size_order(other) for other in names if family(other) == family(name)})
        families = {family(other) for other in names if kin(other) == kin(name) and other not in OPERATORS}
        variants = sorted(families - {kin(name)})
        line = "-" if family(name) == kin(name) else VARIANT_LINES[variants.index(family(name)) % len(VARIANT_LINES)]
        order = sorted(families, key=lambda own: (own in variants, own)).index(family(name))
        if order:
            color = _toward(color, *VARIANT_TONES[(order - 1) % len(VARIANT_TONES)])
        styles[name] = ModelStyle(color=_shade(color, sizes.index(size_order(name))), marker=marker, line=line)
    return styles


def _shade(color: str, order: int) -> str:
    """The colour itself for the smallest size, then alternately darker and lighter."""
    toward, amount = (0, 0.35) if order % 2 else (255, 0.4)
    return _toward(color, toward, 0.0 if order == 0 else min(amount + 0.1 * (order // 2), 0.7))


def _toward(color: str, end: int, weight: float) -> str:
    """A share of the way to black (0) or white (255)."""
    parts = (int(color[i : i + 2], 16) for i in (1, 3, 5))
    return "#" + "".join(f"{round(part + (end - part) * weight):02X}" for part in parts)


def printable(text: str) -> str:
    """Text without control characters and lone surrogates, which a message from a crash may hold."""
    return "\n".join(line if line.isprintable() else _blanked(line) for line in text.split("\n"))


def _blanked(line: str) -> str:
    return "".join(char if char == "\t" or unicodedata.category(char)[0] != "C" else " " for char in line)


def clean(value: Any) -> Any:
    """A JSON value with all of its text printable."""
    if isinstance(value, str):
        return printable(value)
    if isinstance(value, Mapping):
        return {clean(key): clean(part) for key, part in value.items()}
    return [clean(part) for part in value] if isinstance(value, list | tuple) else value


def length(value: float | None) -> str:
    """1024 as 1K, 2^20 as 1M, 3174 as 3.1K, 96 as 96."""
    if value is None or not math.isfinite(value):
        return NONE
    for unit, name in ((2**20, "M"), (2**10, "K")):
        if value >= unit:
            scaled = value / unit
            return f"{scaled:.0f}{name}" if scaled >= 100 or scaled == int(scaled) else f"{scaled:.2g}{name}"
    return f"{value:.0f}"


def num_bytes(value: float | None) -> str:
    """2^20 as 1 MiB."""
    if value is None or not math.isfinite(value):
        return NONE
    for unit, name in ((2**40, "TiB"), (2**30, "GiB"), (2**20, "MiB"), (2**10, "KiB")):
        if value >= unit:
            return f"{figure(value / unit)} {name}"
    return f"{figure(value)} B"


def milliseconds(value: float | None) -> str:
    """0.5 as 0.5 ms, 1500 as 1.5 s, 7200000 as 2 h."""
    if value is None or not math.isfinite(value):
        return NONE
    for unit, name in ((3.6e6, "h"), (6e4, "min"), (1e3, "s")):
        if value >= unit:
            return f"{figure(value / unit)} {name}"
    return f"{figure(value)} ms" if value >= 1e-3 else f"{figure(value * 1e3)} µs"


def tick_milliseconds(value: float) -> str:
    """Powers of ten of a millisecond as an axis shows them: 0.1 ms, 10 s, 1,000 s; never 16.7 min."""
    return f"{value / 1e3:,g} s" if value >= 1e3 else f"{value:g} ms" if value >= 1e-3 else f"{value * 1e3:g} µs"


def rate(value: float | None) -> str:
    """12500 as 12.5 K (K is 1,000 here), 3.2e6 as 3.2 M, 4e12 as 4 T."""
    if value is None or not math.isfinite(value):
        return NONE
    for unit, name in ((1e15, "P"), (1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "K")):
        if value >= unit:
            return f"{figure(value / unit)} {name}"
    return figure(value)


def share(value: float) -> str:
    """0.01 as 1 %, as an axis shows it."""
    return f"{100 * value:g}\N{NO-BREAK SPACE}%"


def figure(value: float | None, digits: int = 3) -> str:
    """Three significant digits without an exponent where that stays short."""
    if value is None or not math.isfinite(value):
        return NONE
    if value and abs(value) < 1e-4:
        return f"{value:.{digits - 1}e}"
    if abs(value) >= 10**digits:
        return f"{value:,.0f}"
    return f"{value:.{digits}g}"


def times(value: float) -> str:
    """2.5 as 2.5x."""
    return f"{figure(value)}x"


def percent(value: float | None) -> str:
    """0.957 as 95.7 %."""
    return NONE if value is None or not math.isfinite(value) else f"{100 * value:.1f}\N{NO-BREAK SPACE}%"


def span(low: float, high: float, form: str = "length") -> str:
    """An interval in brackets; an end beyond what was measured says so."""
    show = {"length": length, "percent": percent, "figure": figure}[form]
    below = "below range" if low == 0 and form == "length" else show(low)
    above = "beyond range" if math.isinf(high) else show(high)
    return f"[{below}, {above}]"
