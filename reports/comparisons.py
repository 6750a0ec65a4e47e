"""Curves from records, what each model or operator is compared with, and where the faster of two changes."""

from __future__ import annotations

import pandas as pd

from reports import fits, style

BEST = "the fastest attention"
Curves = dict[str, dict[float, tuple[float, ...]]]


def curves(frame: pd.DataFrame) -> Curves:
    """model -> length -> latency samples of all seeds, of the trials that ended well."""
    found: Curves = {}
    for row in frame.loc[frame["status"] == "ok", ["model", "seq_len", "latency_ms"]].to_dict("records"):
        if row["latency_ms"]:
            lengths = found.setdefault(row["model"], {})
            lengths[row["seq_len"]] = lengths.get(row["seq_len"], ()) + row["latency_ms"]
    return found


def device_alone(speed: pd.DataFrame) -> pd.DataFrame:
    """Trials by the device's own time: of calls without their launches where those were timed, and none where the host
    decides and they were not. Empty where no trial of them has any."""
    replayed = speed["replay_ms"].map(bool)
    if not replayed.any():
        return speed.iloc[:0]
    known = speed[replayed | ~speed["launch_bound"]].copy()
    known["latency_ms"] = known["replay_ms"].where(known["replay_ms"].map(bool), known["latency_ms"])
    known["launch_bound"] = False
    return known


def memory_points(frame: pd.DataFrame) -> dict[str, dict[float, float]]:
    """model -> length -> peak bytes, the largest of the seeds'."""
    known = frame[(frame["status"] == "ok") & frame["memory_bytes"].notna()]
    found: dict[str, dict[float, float]] = {}
    for row in known.to_dict("records"):
        lengths = found.setdefault(row["model"], {})
        lengths[row["seq_len"]] = max(row["memory_bytes"], lengths.get(row["seq_len"], 0.0))
    return found


def slope_points(frame: pd.DataFrame, model: str) -> dict[float, float]:
    """Length to median time, without launch-bound points: their time is the host's, whatever the length."""
    mine = frame[(frame["model"] == model) & ~frame["launch_bound"]]
    return fits.medians(curves(mine).get(model, {}))


def attention_for(model: str, models: list[str]) -> str | None:
    """The attention model that a model is compared with: the one of its size, else the only one."""
    if style.is_attention(model):
        return None
    attention = [name for name in models if style.is_attention(name) and name not in style.OPERATORS]
    plain = [name for name in attention if style.family(name) == style.ATTENTION] or attention
    same = [name for name in plain if style.size(name) == style.size(model)]
    return same[0] if same else plain[0] if len(plain) == 1 else None


def best_attention(by_model: Curves) -> dict[float, tuple[float, ...]]:
    """Length -> samples of the attention kernel that is fastest there (by the median)."""
    found: dict[float, tuple[float, ...]] = {}
    for model in sorted(by_model):
        if model in style.OPERATORS and style.is_attention(model):
            for seq_len, latency in by_model[model].items():
                if seq_len not in found or pd.Series(latency).median() < pd.Series(found[seq_len]).median():
                    found[seq_len] = latency
    return found


def reference_for(model: str, by_model: Curves) -> tuple[str, dict[float, tuple[float, ...]]] | None:
    """What a model or operator is compared with: attention of its size, or at each length the fastest kernel."""
    if style.is_attention(model):
        return None
    if model in style.OPERATORS:
        kernels = [name for name in by_model if name in style.OPERATORS and style.is_attention(name)]
        if len(kernels) == 1:
            return kernels[0], by_model[kernels[0]]
        return (BEST, best_attention(by_model)) if kernels else None
    name = attention_for(model, sorted(by_model))
    return (name, by_model[name]) if name else None


def references_for(model: str, by_model: Curves) -> list[tuple[str, dict[float, tuple[float, ...]]]]:
    """Everything that attends and that a model or operator may be compared with, the reference first."""
    first = reference_for(model, by_model)
    if first is None:
        return []
    others = [
        (name, by_model[name])
        for name in sorted(by_model)
        if style.is_attention(name) and (name in style.OPERATORS) == (model in style.OPERATORS) and name != first[0]
    ]
    return [first, *others]


def crossovers(frame: pd.DataFrame, every_pair: bool = False) -> list[tuple[str, str, fits.Crossover]]:
    """(attention, model, crossover) of each model that shares at least two lengths with its reference.

    With every_pair, with each attention model or kernel of the group.
    """
    by_model = curves(frame)
    found = []
    for model in sorted(by_model):
        first = reference_for(model, by_model)
        for name, samples in references_for(model, by_model) if every_pair else [first] if first else []:
            if cross := fits.crossover(samples, by_model[model], (name, model)):
                found.append((name, model, cross))
    return found


def crossover_text(cross: fits.Crossover, reference: str, model: str) -> str:
    """In words; with its interval, or who is always faster."""
    if cross.length is None:
        other = model if cross.after == reference else reference
        return (
            f"{cross.after} faster than {other} at every shared length "
            f"({style.length(cross.start)}..{style.length(cross.stop)})"
        )
    return (
        f"{cross.after} faster than {cross.before} from {style.length(cross.length)} "
        f"{style.span(cross.low, cross.high)}"
    )
