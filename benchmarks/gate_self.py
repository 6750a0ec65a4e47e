"""``gate --self``: how often the gate cries wolf on this machine, and how often it sees a slowdown that is there.

Blocks of one commit, checked out twice, are collected once, in the gate's own order. In every block each benchmark is
also run with injected slowdowns (:func:`benchmarks.gate_block.sample_ms`), whose samples take turns with the plain
ones. Comparisons are then formed from these blocks: each deals quads of neighbouring blocks (two pairs, so that what
drifts within a quad drifts as in a gate's run) in an order of its own and without repetition to the gate's own
decision, by the same stages; in every second one the two checkouts swap sides. Comparisons share blocks, and so are
not independent.
"""

import json
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.gate_blocks import ORDER, BlockRunner, sides_of, timing_core
from benchmarks.gate_rivals import RIVALS
from benchmarks.gate_trees import Tree, TreeError
from harness.gate_decision import MIN_PAIRS, TimingDecision
from harness.statistics import wilson

FACTORS = (1.0, 1.05, 1.1)
INJECTED = "scan"
"""The benchmark whose injected slowdowns the last line is about."""
GATE = "this gate"
_PAIRS_OF_QUAD = 2
_MIN_QUADS = 2 * MIN_PAIRS // _PAIRS_OF_QUAD
"""Both stages at their shortest."""

Pairs = dict[str, dict[float, np.ndarray]]
"""By benchmark and factor: samples in ms, (pairs, sides, samples)."""


@dataclass(kw_only=True)
class Tally:
    """How often one rule called a candidate slower, by benchmark and injected factor."""

    calls: dict[tuple[str, float], int] = field(default_factory=dict)
    runs_with_alarm: int = 0
    """Comparisons in which at least one benchmark without a slowdown was called slower."""

    def count(self, name: str, factor: float, called: bool) -> None:
        self.calls[name, factor] = self.calls.get((name, factor), 0) + called


def collect(
    trees: tuple[Tree, Tree], num_blocks: int, path: Path, say: Callable[[str], None] = lambda _: None
) -> dict[str, Any]:
    """Run the blocks and write them to ``path`` as they come. Returns what is in the file."""
    from harness.environment import fingerprint

    _need_blocks(num_blocks)
    _, environment = fingerprint(trees[0].path, device="cpu", num_threads=1)
    before, after = sides_of(*trees)
    runner = BlockRunner(core=timing_core(), factors=FACTORS)
    runner.first_block(before)
    runner.first_block(after)
    names = [name for name in before.trials if name not in before.failed and name not in after.failed]
    if not names:
        raise TreeError(f"no benchmark runs here: {before.failed | after.failed}")
    began, blocks = time.monotonic(), []
    found: dict[str, Any] = {}
    for index in range(num_blocks):
        side = ORDER[index % len(ORDER)]
        samples = runner.block({"base": before, "candidate": after}[side], names)
        if missing := [name for name in names if name not in samples]:
            raise TreeError(f"block {index + 1} lost {', '.join(missing)}: {before.failed | after.failed}")
        blocks.append({"side": side, "samples": samples})
        found = {
            "label": trees[0].label, "core": runner.core, "calls": runner.calls, "blocks": blocks,
            "environment": environment, "blocks_s": round(time.monotonic() - began, 1),
        }  # fmt: skip
        if (index + 1) % len(ORDER) == 0 or index + 1 == num_blocks:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(json.dumps(found))
            say(f"{index + 1} of {num_blocks} blocks in {found['blocks_s']:.0f} s")
    return found


def pairs_of(collected: Mapping[str, Any]) -> Pairs:
    """Neighbouring blocks as pairs of a base and a candidate block. Raises ValueError where they are too few."""
    blocks: Sequence[Mapping[str, Any]] = collected["blocks"]
    num_quads = len(blocks) // (2 * _PAIRS_OF_QUAD)
    _need_blocks(len(blocks))
    found: Pairs = {}
    for name, series in blocks[0]["samples"].items():
        found[name] = {}
        for factor in map(float, series):
            rows = []
            for first, second in zip(blocks[0::2], blocks[1::2], strict=False):
                by_side = {block["side"]: block["samples"][name][str(factor)] for block in (first, second)}
                rows.append([by_side["base"], by_side["candidate"]])
            found[name][factor] = np.array(rows[: num_quads * _PAIRS_OF_QUAD])
    return found


def _need_blocks(count: int) -> None:
    fewest = 2 * _PAIRS_OF_QUAD * _MIN_QUADS
    if count < fewest:
        raise ValueError(f"{count} blocks: a comparison may need {fewest} of them; raise --blocks")


def simulate(pairs: Pairs, num_comparisons: int, tolerance: float) -> tuple[dict[str, Tally], dict[str, list[float]]]:
    """Tallies by rule, and the smallest effects that the gate stated, by benchmark."""
    tallies = {rule: Tally() for rule in (GATE, *RIVALS)}
    effects: dict[str, list[float]] = {name: [] for name in pairs}
    for index in range(num_comparisons):
        alarmed = set()
        for name, by_factor in pairs.items():
            plain = by_factor[1.0]
            rng = np.random.default_rng(index)  # the same blocks for every benchmark and factor, as in a run
            dealt = _dealt(rng, len(plain))
            base_side = index % 2
            base = plain[dealt, base_side]
            for factor, samples in by_factor.items():
                candidate = samples[dealt, 1 - base_side]
                decision = _decide(base, candidate, tolerance, seed=index)
                called = {GATE: decision.verdict == "regressed"}
                called |= {rule: judge(base[:MIN_PAIRS], candidate[:MIN_PAIRS]) for rule, judge in RIVALS.items()}
                for rule, slower in called.items():
                    tallies[rule].count(name, factor, slower)
                    if slower and factor == 1.0:
                        alarmed.add(rule)
                if factor == 1.0 and decision.smallest_effect is not None:
                    effects[name].append(decision.smallest_effect)
        for rule in alarmed:
            tallies[rule].runs_with_alarm += 1
    return tallies, effects


def _dealt(rng: np.random.Generator, num_pairs: int) -> np.ndarray:
    """Indices of pairs, quad by quad in random order."""
    quads = rng.permutation(num_pairs // _PAIRS_OF_QUAD)
    return (quads[:, None] * _PAIRS_OF_QUAD + np.arange(_PAIRS_OF_QUAD)).ravel()


def _decide(base_PS: np.ndarray, candidate_PS: np.ndarray, tolerance: float, *, seed: int) -> TimingDecision:
    """The gate's own stages on these pairs, a round at a time, until it is decided or they are used up."""
    decision, step = TimingDecision(tolerance, seed=seed), 2 * _PAIRS_OF_QUAD
    for start in range(0, len(base_PS) - step + 1, step):
        if not decision.is_open:
            break
        decision.add(base_PS[start : start + step], candidate_PS[start : start + step])
    return decision


def summary(collected: Mapping[str, Any], num_comparisons: int, tolerance: float) -> dict[str, Any]:
    """The figures of a machine, as they are written to ``gate_self.json``."""
    pairs, environment = pairs_of(collected), collected["environment"]
    tallies, effects = simulate(pairs, num_comparisons, tolerance)
    focus = INJECTED if INJECTED in pairs else next(iter(pairs))
    bound = wilson(tallies[GATE].runs_with_alarm, num_comparisons).high
    return {
        "commit": environment.get("commit"), "dirty": environment.get("dirty"), "machine": environment.get("machine"),
        "cpu": environment.get("cpu", {}).get("model"), "cores": environment.get("cpu", {}).get("cores"),
        "tree": collected["label"], "core": collected["core"], "tolerance": tolerance,
        "num_blocks": len(collected["blocks"]), "blocks_s": collected["blocks_s"],
        "comparisons": num_comparisons, "runs_with_false_alarm": tallies[GATE].runs_with_alarm,
        "false_alarms_percent": _percent(tallies[GATE].runs_with_alarm, num_comparisons),
        "false_alarms_upper_percent": round(100 * bound, 2),
        "injected": focus, "detected_percent": _detected(tallies[GATE], focus, pairs, num_comparisons),
        "method": " ".join((__doc__ or "").split("\n\n", 1)[1].split()),
        "benchmarks": {
            name: {
                "false_alarms_percent": _percent(tallies[GATE].calls[name, 1.0], num_comparisons),
                "detected_percent": _detected(tallies[GATE], name, pairs, num_comparisons),
                "smallest_effect_percent": round(100 * statistics.median(effects[name]), 2) if effects[name] else None,
                "checkouts_apart_percent": round(100 * _apart(pairs[name][1.0]), 2),
                "latency_ms": round(float(np.quantile(pairs[name][1.0], 0.25)), 4),
            }
            for name in pairs
        },
        "rules": {
            rule: {
                "runs_with_false_alarm_percent": _percent(tally.runs_with_alarm, num_comparisons),
                "false_alarms_percent": _percent(sum(tally.calls[n, 1.0] for n in pairs), num_comparisons * len(pairs)),
                "detected_percent": _detected(tally, focus, pairs, num_comparisons),
            }
            for rule, tally in tallies.items()
        },
    }  # fmt: skip


def _percent(count: int, of: int) -> float:
    return round(100 * count / of, 2)


def _detected(tally: Tally, name: str, pairs: Pairs, num_comparisons: int) -> dict[str, float]:
    """Shares by injected slowdown, in percent of both."""
    factors = [factor for factor in pairs[name] if factor != 1.0]
    return {f"{100 * (f - 1):.0f}": _percent(tally.calls[name, f], num_comparisons) for f in factors}


def _apart(pairs_P2S: np.ndarray) -> float:
    """By how much two checkouts of one commit differ: the floor under every tolerance."""
    base, candidate = (float(np.quantile(pairs_P2S[:, side], 0.25)) for side in (0, 1))
    return candidate / base - 1


def last_line(found: Mapping[str, Any]) -> str:
    """The gate's own rates in one line."""
    detected = found["detected_percent"].get("10", 0.0)
    return f"false alarms {found['false_alarms_percent']:g} % of {found['comparisons']}; detected +10 % {detected:g} %"


def tables(found: Mapping[str, Any]) -> str:
    """Both tables and the last line."""
    from benchmarks.listing import aligned

    slowdowns = list(found["detected_percent"])
    head = ["benchmark", "ms", "false alarms", *(f"+{s} % seen" for s in slowdowns), "smallest effect", "a to b"]
    rows = [
        [
            name, f"{row['latency_ms']:.3f}", f"{row['false_alarms_percent']:g} %",
            *(f"{row['detected_percent'][s]:g} %" for s in slowdowns),
            f"+{row['smallest_effect_percent']} %", f"{row['checkouts_apart_percent']:+.2f} %",
        ]
        for name, row in found["benchmarks"].items()
    ]  # fmt: skip
    rule_head = ["rule", "runs with a false alarm", "false alarms", *(f"+{s} % seen" for s in slowdowns)]
    rule_rows = [
        [
            rule, f"{row['runs_with_false_alarm_percent']:g} %", f"{row['false_alarms_percent']:g} %",
            *(f"{row['detected_percent'][s]:g} %" for s in slowdowns),
        ]
        for rule, row in found["rules"].items()
    ]  # fmt: skip
    return "\n".join(
        [
            f"{found['tree']} against itself: {found['num_blocks']} blocks in {found['blocks_s']:.0f} s, "
            f"{found['comparisons']} comparisons formed from them",
            aligned([head, *rows]),
            "",
            f"Rules on the same samples (slowdowns in {found['injected']}):",
            aligned([rule_head, *rule_rows]),
            "",
            f"A false alarm is a run in which any benchmark is called slower; with {found['comparisons']} independent "
            f"ones the rate would lie below {found['false_alarms_upper_percent']:g} %.",
            last_line(found),
        ]
    )


def run_self(
    trees: tuple[Tree, Tree] | None,
    *,
    num_blocks: int,
    num_comparisons: int,
    tolerance: float,
    samples: Path,
    out: Path,
) -> dict[str, Any]:
    """Collect (``trees``) or read the blocks of ``samples``, form comparisons, write ``out``."""
    if trees is not None:
        collected = collect(trees, num_blocks, samples, lambda text: print(text, file=sys.stderr))
    else:
        collected = json.loads(samples.read_text())
    found = summary(collected, num_comparisons, tolerance)
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps(found, indent=1, ensure_ascii=False) + "\n")
    return found
