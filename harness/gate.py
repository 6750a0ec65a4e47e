"""Verdicts on two sets of records, trial by trial: records in, comparisons out. No I/O.

Three tiers, from what holds on any machine to what holds on one: exact (ends of trials, counts, peaks of memory),
accuracy (differences over paired seeds, or disjoint intervals of single ones), and timing, on one machine only and no
more than a suspicion, since two runs cannot tell drift from change. :mod:`harness.gate_decision` can.
"""

import hashlib
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from harness.gate_accuracy import compare_over_seeds, paired_groups
from harness.gate_rules import (
    LATENCY,
    Comparison,
    Environments,
    Record,
    Tolerance,
    Verdict,
    compare_kernels,
    compare_numbers,
    compare_scores,
    compare_status,
    in_words,
    no_timing,
    unlike_machines,
)
from harness.gate_timing import MIN_SAMPLES, judge_timing, samples_of, timing_notes
from harness.trials import canonical_json, format_length


@dataclass(frozen=True, kw_only=True)
class GateResult:
    """All comparisons, in the order of the trials, and what a reader must know about them."""

    comparisons: tuple[Comparison, ...]
    notes: tuple[str, ...]
    num_matched: int

    @property
    def exit_code(self) -> int:
        """0 pass, 1 regressed, 2 nothing comparable, or not what was asked for."""
        verdicts = {c.verdict for c in self.comparisons}
        if not self.num_matched:
            return 2
        return 1 if "regressed" in verdicts else 2 if "not comparable" in verdicts else 0

    @property
    def counts(self) -> dict[Verdict, int]:
        return dict(Counter(c.verdict for c in self.comparisons))


def compare(
    base: Iterable[Record],
    candidate: Iterable[Record],
    environments: Environments,
    tolerances: Mapping[str, Tolerance],
    *,
    exact_only: bool = False,
    timing_fails: bool = False,
) -> GateResult:
    """Compare trial by trial; trials match by their specification, whatever the version of the code.

    Args:
        environments: by ``env_id``, for both sides; a record without one has an unknown machine.
        tolerances: one for each of :data:`METRICS`.
        exact_only: leave timing out.
        timing_fails: call a slowdown ``regressed`` rather than ``suspect``.
    """
    befores, afters = by_specification(base), by_specification(candidate)
    everything = befores | afters
    labels = _labels(everything)
    found, grouped = _compare_groups(befores, afters, tolerances)
    left_out: Counter[str] = Counter()
    unlike_timing: Counter[str] = Counter()
    for key in sorted(everything, key=lambda key: order_of(everything[key])):
        before, after = befores.get(key), afters.get(key)
        names = {"key": key, "trial": labels[key]}
        found.append(compare_status(before, after, names, environments))
        if before is None or after is None:
            continue
        unlike = unlike_machines(before, after, environments)
        found += compare_kernels(before, after, names)
        found += compare_numbers(before, after, names, tolerances, unlike, left_out)
        scores = compare_scores(before, after, names, tolerances)
        found += [row for row in scores if row.candidate is None or (key, row.metric) not in grouped]
        if exact_only:
            continue
        if unlike and min(len(samples_of(before)), len(samples_of(after))) >= MIN_SAMPLES:
            unlike_timing[in_words(unlike)] += 1
        else:
            found += _compare_times(before, after, names, tolerances[LATENCY], unlike, left_out, timing_fails)
    found += [_not_comparable(why, count) for why, count in unlike_timing.items()]
    notes = [f"{reason} ({count} trial{'s' * (count > 1)})" for reason, count in left_out.items()]
    notes += timing_notes(sum(c.metric == LATENCY for c in found), timing_fails)
    moved = {c.metric.partition(" at ")[0] for c in found if c.verdict in ("regressed", "suspect")}
    notes += [f"tolerance of {m}, {t.limit:g}: {t.reason}" for m, t in tolerances.items() if m in moved]
    return GateResult(comparisons=tuple(found), notes=tuple(notes), num_matched=len(befores.keys() & afters.keys()))


def _compare_groups(
    befores: Mapping[str, Record], afters: Mapping[str, Record], tolerances: Mapping[str, Tolerance]
) -> tuple[list[Comparison], set[tuple[str, str]]]:
    """Verdicts over paired seeds, and the scores (key of a trial, metric) that need none of their own for that."""
    found: list[Comparison] = []
    grouped: set[tuple[str, str]] = set()
    shared = sorted(befores.keys() & afters.keys(), key=lambda key: order_of(befores[key]))
    for group in paired_groups((befores[key], afters[key]) for key in shared).values():
        seeds = ",".join(str(before["trial"].get("seed")) for before, _ in group)
        keys = [specification_key(before["trial"]) for before, _ in group]
        label = f"{trial_label({**group[0][0]['trial'], 'seed': 0})} seeds={seeds}"
        rows = compare_over_seeds(group, {"key": keys[0], "trial": label}, tolerances)
        found += rows
        grouped |= {(key, row.metric) for key in keys for row in rows}
    return found, grouped


def _not_comparable(why: str, count: int) -> Comparison:
    return Comparison(
        key="timing", trial=f"{count} timed trial{'s' * (count > 1)}", metric=LATENCY, verdict="not comparable",
        detail=f"{why}; measure both sides on one machine, or compare no times with --exact-only",
    )  # fmt: skip


def _compare_times(
    before: Record,
    after: Record,
    names: Mapping[str, str],
    tolerance: Tolerance,
    unlike: Mapping[str, str],
    left_out: Counter[str],
    timing_fails: bool,
) -> Iterator[Comparison]:
    if why_not := no_timing(before, after, unlike):
        left_out[f"timing not compared: {why_not}"] += 1
        return
    seed = int(names["key"][:16], 16)  # the trial's own, so that its verdict depends on no other trial
    judged, fields = judge_timing(samples_of(before), samples_of(after), tolerance.limit, seed=seed)
    verdict: Verdict = "suspect" if judged == "regressed" and not timing_fails else judged
    yield Comparison(metric=LATENCY, verdict=verdict, **names, **fields)


def specification_key(trial: Mapping[str, Any]) -> str:
    """64 hex digits of the specification alone: a trial's identity without the version of its code."""
    return hashlib.sha256(canonical_json(trial).encode()).hexdigest()


def by_specification(records: Iterable[Record]) -> dict[str, Record]:
    """The newest record of every trial, by :func:`specification_key`."""
    newest: dict[str, Record] = {}
    for record in records:
        key = specification_key(record["trial"])
        if key not in newest or str(record.get("started_at")) >= str(newest[key].get("started_at")):
            newest[key] = record
    return newest


def order_of(record: Record) -> tuple[str, str, int, str]:
    """By model, task and length; the rest of the specification breaks ties."""
    trial = record["trial"]
    return str(trial.get("model")), trial.get("task") or "", trial.get("seq_len") or 0, canonical_json(trial)


def trial_label(trial: Mapping[str, Any]) -> str:
    """A short name for people: what is usual (batch 1, float32, CPU, seed 0) is left out."""
    protocol = trial.get("protocol") or {}
    what = trial.get("task") or f"{protocol.get('level', '')} {trial.get('direction', '')}".strip()
    parts = [trial.get("kind"), trial.get("model"), what, f"L={format_length(int(trial.get('seq_len') or 0))}"]
    usual = {"batch": 1, "dtype": "float32", "device": "cpu", "seed": 0}
    parts += [f"{name}={trial[name]}" for name, value in usual.items() if trial.get(name, value) != value]
    return " ".join(str(part) for part in parts if part)


def _labels(records: Mapping[str, Record]) -> dict[str, str]:
    """Labels by key, told apart where two trials differ only in what a label leaves out (their protocol)."""
    labels = {key: trial_label(record["trial"]) for key, record in records.items()}
    uses = Counter(labels.values())
    return {key: f"{label} [{key[:6]}]" if uses[label] > 1 else label for key, label in labels.items()}
