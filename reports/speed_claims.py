"""The known claims about speed and memory, each judged from records by a rule that is stated beside its verdict.

Operators are judged at the published protocol's shapes (width and state of an operator that was timed on its own),
models at the size they were measured at. Nothing is selected: each comparison that a claim allows is a finding, and
one that does not show makes the claim not shown.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd

from reports import fits, published, style
from reports.comparisons import (
    BEST,
    Curves,
    best_attention,
    crossover_text,
    crossovers,
    curves,
    device_alone,
    reference_for,
    slope_points,
)
from reports.contrasts import LINEAR, NOT_LINEAR, Contrast, Finding, Verdict, meets_slope
from reports.frames import BATCH_GROUP, SPEED_GROUP, batch_sweeps
from reports.generation import GENERATION_GROUP, comparisons, speedup, subject
from reports.published import training_memory
from reports.speed_figures import compares_with_published_memory
from reports.speed_tables import ratio_text
from reports.tables import measured_on

CROSSOVER, CROSSOVER_FACTOR = 2048, 2.0
TORCH_SCAN, TORCH_SCAN_FROM = 20.0, 2048
GENERATION, ROUNDED = 5.0, 4.5
HUNDRED, HUNDRED_AT, MILLION = 100.0, 128 * 1024, 2**20
SEVEN, SEVEN_AT = 7.0, 32 * 1024
MEMORY_FACTOR = 1.25
SCAN, MATERIALISED = "selective_scan", "attention_math"
INTERVAL = "(95 % bootstrap interval over the samples)"
_ALONE = ", the device alone"
_REPLAYED = "; short calls as CUDA graphs replay them, without the host's time for launching them"


def judge_speed_claims(speed: pd.DataFrame, generated: pd.DataFrame) -> list[Contrast]:
    """Every known claim about speed and memory, judged within one section (one environment and device)."""
    operators = [rows for rows in _groups(speed, "operator") if rows["width"].notna().all()]
    models = _groups(speed, "model")
    alone = [rows for group in operators if len(rows := device_alone(group))]
    found = [_operator_crossover(operators), _operator_crossover(alone, is_alone=True)]
    found += [_model_crossover(models), _torch_scan(operators), _torch_scan(alone, is_alone=True), _seven(operators)]
    found += [_linear(operators, "operator", direction) for direction in ("forward", "train")]
    found += [_linear(models, "model", direction) for direction in ("forward", "train")]
    for direction in ("forward", "train"):
        found += [_hundred(operators, direction, kernel) for kernel in (BEST, MATERIALISED)]
    for loop in ("cuda_graph", "transformers"):
        found += [_generates(generated, loop, at_best) for at_best in (False, True)]
    return [*found, _training_memory(speed)]


def _claim(
    id: str, statement: str, rule: str, findings: Sequence[Finding], missing: str, more: Sequence[str] = ()
) -> Contrast:
    verdict: Verdict = "not measured" if not findings else "shown" if all(ok for ok, _ in findings) else "not shown"
    evidence = "; ".join([*(text for _, text in findings), *more] if findings else [f"needs {missing}", *more])
    return Contrast(id=id, statement=statement, rule=rule, verdict=verdict, evidence=evidence)


def _groups(speed: pd.DataFrame, level: str) -> list[pd.DataFrame]:
    """The groups of a level at a constant batch: at constant tokens a call's time does not show how it grows."""
    mine = speed[(speed["level"] == level) & speed["tokens"].isna()]
    return [rows for _, rows in mine.groupby(SPEED_GROUP, dropna=False)]


def _of(groups: Sequence[pd.DataFrame], direction: str) -> list[pd.DataFrame]:
    return [rows for rows in groups if rows["direction"].iloc[0] == direction]


def _operator_crossover(groups: Sequence[pd.DataFrame], is_alone: bool = False) -> Contrast:
    findings: list[Finding] = []
    more = []
    for rows in _of(groups, "forward"):
        for reference, model, cross in crossovers(rows, every_pair=True):
            if model != SCAN:
                continue
            text = f"{measured_on(rows.iloc[0])}: {crossover_text(cross, reference, model)}"
            if reference != (reference_for(model, curves(rows)) or ("",))[0]:
                more.append(crossover_text(cross, reference, model))
                continue
            near = cross.low <= CROSSOVER * CROSSOVER_FACTOR and cross.high >= CROSSOVER / CROSSOVER_FACTOR
            findings.append((cross.length is not None and cross.after == model and near, text))
    return _claim(
        f"scan-crosses-attention-near-2k{'-device' if is_alone else ''}",
        "The selective scan is faster than attention beyond about 2K tokens (operator, forward"
        f"{_ALONE if is_alone else ''}).",
        f"against the attention kernel that is fastest at each length, the last crossing has a 95 % interval that "
        f"meets {style.length(CROSSOVER / CROSSOVER_FACTOR)}..{style.length(CROSSOVER * CROSSOVER_FACTOR)}, and the "
        f"scan is the faster one from there on{_REPLAYED if is_alone else ''}",
        findings,
        f"{SCAN} and an attention kernel timed forward at shared lengths{', replayed' if is_alone else ''}",
        more,
    )


def _model_crossover(groups: Sequence[pd.DataFrame]) -> Contrast:
    findings: list[Finding] = []
    for rows in _of(groups, "train"):
        by_model = curves(rows)
        for model in (name for name in sorted(by_model) if style.family(name) == "mamba"):
            compared = reference_for(model, by_model)
            at = [x for x in (2048, 8192) if compared and x in compared[1] and x in by_model[model]]
            if compared is None or len(at) < 2:
                continue
            ratios = [fits.ratio_interval(compared[1][x], by_model[model][x]) for x in at]
            (_, _, high_2k), (_, low_8k, _) = ratios
            texts = [f"{ratio_text(ratio)} at {style.length(x)}" for x, ratio in zip(at, ratios, strict=True)]
            crossing = [crossover_text(c, ref, m) for ref, m, c in crossovers(rows) if m == model]
            label = f"{measured_on(rows.iloc[0])}: {model} over {compared[0]} {' and '.join(texts)}"
            findings.append((high_2k < 1 < low_8k, "; ".join([label, *crossing])))
    return _claim(
        "mamba-trains-slower-at-2k-faster-at-8k",
        "Trained end to end, Mamba is slower than a Transformer of its size at 2K and faster at 8K (an author's "
        "remark).",
        f"speedup over attention of a training step: upper end below 1 at 2K, lower end above 1 at 8K {INTERVAL}",
        findings,
        "mamba and transformer models of one size trained at 2K and 8K, constant batch",
    )


def _torch_scan(groups: Sequence[pd.DataFrame], is_alone: bool = False) -> Contrast:
    findings = []
    for rows in groups:
        by_model = curves(rows)
        shared = sorted(set(by_model.get(SCAN, {})) & set(by_model.get("selective_scan_torch", {})))
        lengths = [x for x in shared if x >= TORCH_SCAN_FROM]
        if not lengths:
            continue
        ratios = {x: fits.ratio_interval(by_model["selective_scan_torch"][x], by_model[SCAN][x]) for x in lengths}
        least, most = (choose(ratios, key=lambda x: ratios[x][0]) for choose in (min, max))
        text = (
            f"{measured_on(rows.iloc[0])}: {ratio_text(ratios[least])} at {style.length(least)} to "
            f"{ratio_text(ratios[most])} at {style.length(most)}, {len(lengths)} lengths"
        )
        findings.append((all(low >= TORCH_SCAN for _, low, _ in ratios.values()), text))
    return _claim(
        f"fused-scan-20-times-a-torch-scan{'-device' if is_alone else ''}",
        f"The fused selective scan is at least 20 times faster than a scan in PyTorch{_ALONE if is_alone else ''} "
        "(published: 20 to 40 times).",
        f"ratio of medians at every shared length from {style.length(TORCH_SCAN_FROM)} on, each direction: lower end "
        f"at least {TORCH_SCAN:.0f} {INTERVAL}; the published one compares with an unfused parallel scan, this with "
        f"the project's chunked scan{_REPLAYED if is_alone else ''}",
        findings,
        f"{SCAN} and selective_scan_torch timed at shared lengths from {style.length(TORCH_SCAN_FROM)} on"
        f"{', replayed' if is_alone else ''}",
    )


def _seven(groups: Sequence[pd.DataFrame]) -> Contrast:
    findings = []
    for rows in _of(groups, "forward"):
        ratio = _ratio(curves(rows), BEST, SEVEN_AT)
        if ratio:
            findings.append((ratio[1] >= SEVEN, f"{measured_on(rows.iloc[0])}: {ratio_text(ratio)}"))
    return _claim(
        "scan-7-times-attention-at-32k",
        "The selective scan is 7 times faster than attention at 32K (operator, forward).",
        f"ratio of medians against the fastest attention kernel at 32K: lower end at least {SEVEN:.0f} {INTERVAL}",
        findings,
        f"{SCAN} and an attention kernel timed forward at 32K",
    )


def _linear(groups: Sequence[pd.DataFrame], level: str, direction: str) -> Contrast:
    findings: list[Finding] = []
    for rows in _of(groups, direction):
        mine = [n for n in rows["model"].unique() if n == SCAN or (level == "model" and style.family(n) == "mamba")]
        for model in sorted(mine):
            tried = rows[(rows["model"] == model) & (rows["seq_len"] >= MILLION)]
            slope = fits.fit_slope(slope_points(rows, model))
            if tried.empty or slope is None:
                continue
            where = f"{style.length(slope.start)}..{style.length(slope.stop)}"
            ends = sorted(set(tried["status"]) - {"ok"})
            text = f"{measured_on(rows.iloc[0])}: {model} slope {slope} over {where}"
            text += f", {' and '.join(ends)} at {style.length(MILLION)}" if ends and slope.stop < MILLION else ""
            tells = not any(meets_slope(slope, (other, other)) for other in NOT_LINEAR)
            linear = meets_slope(slope, LINEAR) and tells
            findings.append((linear and slope.stop >= MILLION, text))
    return _claim(
        f"mamba-linear-to-1m-{level}-{direction}",
        f"Mamba's time grows linearly up to a million tokens ({level}, {direction}).",
        f"a trial at 1M ended well, and the slope of median time (log-log, the longest four measured lengths, 95 % t "
        f"interval) meets {LINEAR[0]}..{LINEAR[1]} and excludes {' and '.join(map(str, NOT_LINEAR))}",
        findings,
        f"{'a mamba model' if level == 'model' else SCAN} timed ({level}, {direction}) up to 1M",
    )


def _ratio(by_model: Curves, reference: str, seq_len: float) -> tuple[float, float, float] | None:
    slow = best_attention(by_model) if reference == BEST else by_model.get(reference, {})
    fast = by_model.get(SCAN, {})
    return fits.ratio_interval(slow[seq_len], fast[seq_len]) if seq_len in slow and seq_len in fast else None


def _hundred(groups: Sequence[pd.DataFrame], direction: str, reference: str) -> Contrast:
    findings: list[Finding] = []
    more = []
    for rows in _of(groups, direction):
        by_model = curves(rows)
        slow = best_attention(by_model) if reference == BEST else by_model.get(reference, {})
        ratio = _ratio(by_model, reference, HUNDRED_AT)
        where = _reaches(fits.medians(slow), fits.medians(by_model.get(SCAN, {})), HUNDRED)
        if ratio:
            text = f"{measured_on(rows.iloc[0])}: {ratio_text(ratio)} at {style.length(HUNDRED_AT)}; {where}"
            findings.append((ratio[1] >= HUNDRED, text))
        elif reference == BEST and slow and SCAN in by_model:
            more.append(f"{measured_on(rows.iloc[0])}: {where}")
        elif reference in set(rows["model"]) and SCAN in by_model:
            failed = rows[(rows["model"] == reference) & (rows["seq_len"] == HUNDRED_AT)]
            ends = ", ".join(sorted(set(failed["status"])))
            more.append(f"{reference} at {style.length(HUNDRED_AT)}: {ends or 'not tried'}; {where}")
    name = "the fastest kernel" if reference == BEST else "materialised scores"
    a100 = [published.operator_time(curve, HUNDRED_AT) for curve in ("FlashAttention-2", "Scan (ours)")]
    if direction == "forward" and reference == BEST and a100[0] and a100[1]:
        more.append(f"published, A100 (digitised): {style.times(a100[0] / a100[1])} over FlashAttention-2")
    return _claim(
        f"scan-100-times-attention-at-128k-{'best' if reference == BEST else 'materialised'}-{direction}",
        f"The selective scan is 100 times faster than attention at 128K (operator, {direction}, against {name}).",
        f"ratio of medians at 128K: lower end at least {HUNDRED:.0f} {INTERVAL}; the sentence's origin is unknown",
        findings,
        f"{SCAN} and {'an attention kernel' if reference == BEST else MATERIALISED} timed ({direction}) at 128K",
        more,
    )


def _reaches(slow: dict[float, float], fast: dict[float, float], target: float) -> str:
    """At which length a ratio of medians first reaches a target, interpolated in log-log between measured lengths."""
    lengths = sorted(set(slow) & set(fast))
    if not lengths:
        return "no shared length"
    logs = [float(np.log(slow[x] / fast[x] / target)) for x in lengths]
    for index, gap in enumerate(logs):
        if gap >= 0:
            if index == 0:
                return f"{target:.0f}x at {style.length(lengths[0])} already"
            before, share = lengths[index - 1], -logs[index - 1] / (gap - logs[index - 1])
            return f"{target:.0f}x reached at {style.length(before * (lengths[index] / before) ** share)}"
    most = max(range(len(lengths)), key=lambda index: logs[index])
    return (
        f"{target:.0f}x not reached up to {style.length(lengths[-1])} (most {style.times(target * np.exp(logs[most]))} "
        f"at {style.length(lengths[most])})"
    )


def _generates(generated: pd.DataFrame, loop: str, at_best: bool) -> Contrast:
    findings = []
    for _, rows in generated.groupby(GENERATION_GROUP, dropna=False):
        found = [
            (where, fast, slow)
            for where, fast, slow in comparisons(rows)
            if slow.loop == loop and (where == "best") == at_best and style.family(fast.model) == "mamba"
        ]
        for pair in sorted({(fast.model, slow.model) for _, fast, slow in found}):
            mine = [item for item in found if (item[1].model, item[2].model) == pair]
            ratios = [(where, fast, slow, speedup(fast, slow)) for where, fast, slow in mine]
            texts = [
                f"{ratio_text(ratio)} at "
                + (f"batch {fast.batch:.0f} against {slow.batch:.0f}" if where == "best" else where)
                for where, fast, slow, ratio in ratios
            ]
            names = f"{subject(pair[0], mine[0][1].loop)} over {subject(pair[1], loop)}"
            protocol = f"prompt {style.length(float(rows['seq_len'].iloc[0]))}, {rows['dtype'].iloc[0]}"
            # At equal batch the claim is read as its best batch: the largest ratio counts.
            findings.append(
                (max(ratio[0] for *_, ratio in ratios) >= ROUNDED, f"{names} ({protocol}): {', '.join(texts)}")
            )
    against = "a static cache under CUDA graphs" if loop == "cuda_graph" else "plain transformers generate"
    batches = "each one's best batch" if at_best else "equal batch"
    which = "at each one's best batch" if at_best else "at the equal batch where it is largest"
    return _claim(
        f"mamba-generates-5-times-{'static-cache' if loop == 'cuda_graph' else loop}-{'best' if at_best else 'equal'}",
        f"Mamba generates {GENERATION:.0f} times as many tokens a second as attention ({against}, {batches}).",
        f"ratio of tokens a second, prefill included, {which}: at least {ROUNDED}, which rounds to {GENERATION:.0f}; "
        "published (A100, plain transformers): 4.98 at best batches, at most 3.97 at equal batch",
        findings,
        f"mamba and attention of one size generating, attention with {against}",
    )


def _training_memory(speed: pd.DataFrame) -> Contrast:
    findings: list[Finding] = []
    for _, rows in batch_sweeps(speed).groupby(BATCH_GROUP, dropna=False):
        ok = rows[rows["memory_bytes"] > 0]
        peaks = {(str(row["model"]), float(row["batch"])): float(row["memory_bytes"]) for row in ok.to_dict("records")}
        attention = [name for name in sorted(ok["model"].unique()) if style.family(name) == style.ATTENTION]
        known = {
            kind: {point.x: point.value for point in training_memory() if kind in point.curve.lower()}
            for kind in ("mamba", "transformer")
        }
        for model in (name for name in sorted(ok["model"].unique()) if style.family(name) == "mamba"):
            for reference in attention:
                shared = sorted(
                    {b for name, b in peaks if name == model} & {b for name, b in peaks if name == reference}
                )
                ratios = {batch: peaks[model, batch] / peaks[reference, batch] for batch in shared}
                if not ratios:
                    continue
                texts = [f"{style.times(ratio)} at batch {batch:.0f}" for batch, ratio in ratios.items()]
                text = f"{model} over {reference}, length {style.length(float(rows['seq_len'].iloc[0]))}, "
                text += f"{rows['dtype'].iloc[0]} ({rows['memory_basis'].iloc[0]}): {', '.join(texts)}"
                if compares_with_published_memory(rows):
                    old = [known["mamba"][b] / known["transformer"][b] for b in shared if b in known["mamba"]]
                    text += f"; published {style.times(min(old))} to {style.times(max(old))}" if old else ""
                findings.append((all(1 / MEMORY_FACTOR <= r <= MEMORY_FACTOR for r in ratios.values()), text))
    return _claim(
        "mamba-trains-in-attentions-memory",
        "Training Mamba takes about as much memory as training a Transformer of its size.",
        f"ratio of peaks within {1 / MEMORY_FACTOR:.2g} to {MEMORY_FACTOR} at every shared batch",
        findings,
        "mamba and transformer models of one size trained at one length with three batches or more",
    )
