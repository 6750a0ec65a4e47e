"""Records to tidy data frames: one row a trial, a scored length, a bin of positions or a point of a loss curve.

What was not measured is NaN (numbers) or None (text) here, never 0. Only comparable rows share a group, and a figure
draws exactly one group: the same environment and device, and the same protocol where a protocol was varied.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from reports import style

Record = Mapping[str, Any]
Environments = Mapping[str, Mapping[str, Any]]

# Two environments that differ only in these are the same section: a trial's id already holds the version of the code
# that it uses, and clocks and dates are readings, not settings.
VOLATILE = frozenset({"commit", "dirty", "clocks", "date", "started_at", "created_at", "env_id"})
# Which of a machine's like GPUs it was, how much memory the host has besides, and a package that measures nothing.
VOLATILE |= {"flags.variables.CUDA_VISIBLE_DEVICES", "cpu.memory_bytes", "packages.lm-eval"}
# One of the host's threads issues a GPU's work, whatever threads and cores there are; a record's backend names them.
VOLATILE_ON = {"cuda": frozenset({"threads", "cpu.cores", "flags.variables.OMP_NUM_THREADS"})}
UNFINISHED = "CutShort"
"""The error of a trial that the end of its run cut: that says nothing of the trial, and the same command goes on."""
# mode: a constant batch, or a constant number of tokens a batch; scale: an operator's shapes, or a model's size.
SPEED_GROUP = ["section", "level", "direction", "dtype", "mode", "scale", "variant"]
BATCH_GROUP = ["section", "scale", "seq_len", "dtype", "variant"]
TRAINING_GROUP = ["section", "task", "train_len", "direction", "dtype", "batch", "source", "variant"]
MIN_BATCHES = 3
ALLOCATOR, RSS = "allocator peak", "peak RSS above the process's baseline"
NUMBERS = [
    "tokens_per_s",
    "peak_alloc_bytes",
    "peak_reserved_bytes",
    "peak_rss_bytes",
    "baseline_rss_bytes",
    "state_bytes",
    "params",
    "flops",
    "predicted_peak_bytes",
    "predicted_latency_ms",
    "first_call_ms",
    "max_relative_error",
    "train_s",
    "train_tokens",
    "model_flops_per_step",
    "steps_to_threshold",
    "seeds_together",
    "chance",
    "rate",
    "decode_tokens_per_s",
    "largest_batch",
    "capture_ms",
]
SAMPLES = ("host_ms", "replay_ms", "prefill_ms", "decode_ms")
COSTS = ("bytes", "flops", "exps")
# What a group or a curve already says; the rest of a protocol may be varied within one group.
GROUPED = ("level", "source", "tokens", "width", "d_state", "head_dim", "loop", "new_tokens")
# How a trial is run, which changes no result.
AS_RUN = ("seeds_together",)
START = "init_from"
# What usually follows from the number of steps: named only where nothing else tells two protocols apart.
FOLLOWING = ("warmup_steps", "curve_every", "validation_examples")
INTERVALS = ("accuracy", "bits_per_token")
CURVES = ("loss_curve", "validation_curve", "validation_loss_curve")
SCORE_COLUMNS = [
    "scored_len", "score_status", "reason", "latency_ms", "tokens_per_s", "predicted_latency_ms", "few_examples",
]  # fmt: skip


def number(value: Any) -> float:
    """A finite float, or NaN for what is absent or is no number."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return float("nan")
    return float(value) if np.isfinite(value) else float("nan")


def samples(value: Any) -> tuple[float, ...]:
    """The finite positive samples of a list (a single figure counts as one sample); empty where absent."""
    values = value if isinstance(value, list | tuple) else [value]
    return tuple(x for x in map(number, values) if x > 0)


def interval(value: Any, name: str) -> dict[str, float]:
    """{value, low, high, n} as flat columns."""
    parts = value if isinstance(value, Mapping) else {"value": value}
    ends = {f"{name}_{key}": number(parts.get(key)) for key in ("low", "high", "n")}
    return {name: number(parts.get("value")), **ends}


def wanted_examples(protocol: Mapping[str, Any], seq_len: float) -> float:
    """How many examples of a generated task a suite asks for at a length; NaN where the protocol does not say.

    Scoring may end before, when its time is up.
    """
    least, most, tokens = (number(protocol.get(key)) for key in ("min_examples", "max_examples", "score_tokens"))
    return float(np.maximum(least, np.minimum(most, tokens // seq_len)))


def section_key(environment: Mapping[str, Any], env_id: str, device: str) -> str:
    """What must be equal for two trials' figures to be compared: environment, less what is volatile, and device."""
    stable = _stable(environment, VOLATILE | VOLATILE_ON.get(device, frozenset()))
    return json.dumps([stable or env_id, device], sort_keys=True, default=str)


def _stable(environment: Mapping[str, Any], volatile: frozenset[str], within: str = "") -> dict[str, Any]:
    """What is not volatile, at any depth."""
    return {
        key: _stable(value, volatile, f"{within}{key}.") if isinstance(value, Mapping) else value
        for key, value in environment.items()
        if within + key not in volatile
    }


def section_label(environment: Mapping[str, Any], env_id: str, device: str) -> str:
    """A short name for people: machine, processor, device, torch."""
    gpu, cpu = environment.get("gpu"), environment.get("cpu")
    chip = gpu if device == "cuda" and gpu else cpu
    if isinstance(chip, Mapping):
        chip = chip.get("model") or chip.get("name")
    packages = environment.get("packages")
    torch = packages.get("torch") if isinstance(packages, Mapping) else None
    parts = [environment.get("machine"), chip, device, f"torch {torch}" if torch else None]
    return ", ".join(str(part) for part in parts if part) if environment else f"environment {env_id[:8]}, {device}"


def latest(records: Sequence[Record], environments: Environments | None = None) -> tuple[list[Record], int]:
    """The newest record of every trial in every section, and how many older ones it replaces."""
    newest: dict[tuple[str, str], Record] = {}
    for record in records:
        trial = record.get("trial") or {}
        env_id = str(record.get("env_id"))
        section = section_key((environments or {}).get(env_id, {}), env_id, str(trial.get("device")))
        key = (section, json.dumps(trial, sort_keys=True, default=str))
        if key not in newest or str(record.get("started_at")) >= str(newest[key].get("started_at")):
            newest[key] = record
    return list(newest.values()), len(records) - len(newest)


def trials_frame(records: Iterable[Record], environments: Environments | None = None) -> pd.DataFrame:
    """One row a trial, of every kind and status."""
    known = style.clean(environments or {})
    kept, _ = latest(style.clean(list(records)), known)
    frame = pd.DataFrame([_trial_row(record, known) for record in kept], columns=_trial_columns())
    frame["section"] = _distinct_labels(frame)
    frame["variant"] = _variants(frame)
    order = ["section", "kind", "task", "level", "direction", "model", "seq_len", "batch", "dtype", "seed", "trial_id"]
    return frame.sort_values(order, kind="stable", na_position="first", ignore_index=True)


def speed_frame(trials: pd.DataFrame) -> pd.DataFrame:
    """The speed trials but the ceilings and those :data:`UNFINISHED`, with the memory that is compared.

    That is the allocator's peak where every trial of a group has it, else the RSS above the baseline.
    """
    wanted = (trials["kind"] == "speed") & (trials["level"] != "ceiling") & (trials["error_type"] != UNFINISHED)
    frame = trials[wanted].copy()
    frame["memory_bytes"], frame["memory_basis"] = np.nan, None
    frame["memory_basis"] = frame["memory_basis"].astype(object)
    for _, rows in frame.groupby(SPEED_GROUP, dropna=False):
        ok = rows[rows["status"] == "ok"]
        allocator = bool(len(ok)) and bool(ok["peak_alloc_bytes"].notna().all())
        above = ok["peak_rss_bytes"] - ok["baseline_rss_bytes"]
        memory = ok["peak_alloc_bytes"] if allocator else above
        # A peak that does not rise above the baseline is below what this method resolves: absent, not 0.
        frame.loc[ok.index, "memory_bytes"] = memory.where(memory > 0)
        frame.loc[rows.index, "memory_basis"] = ALLOCATOR if allocator else RSS
    return frame.reset_index(drop=True)


def ceilings_frame(trials: pd.DataFrame) -> pd.DataFrame:
    """The ceilings that were measured beside the trials: what this device can move and compute at best."""
    return trials[(trials["kind"] == "speed") & (trials["level"] == "ceiling")].reset_index(drop=True)


def generation_frame(trials: pd.DataFrame) -> pd.DataFrame:
    """The generation trials; `points_batch` is the batch of the figures, of a search the largest that fits."""
    frame = trials[(trials["kind"] == "generation") & (trials["error_type"] != UNFINISHED)].copy()
    frame["points_batch"] = frame["batch"].where(frame["batch"] > 0, frame["largest_batch"])
    return frame.reset_index(drop=True)


def has_speed_suite(trials: pd.DataFrame) -> bool:
    """Whether speed was measured for its own sake, beyond the few figures that go with a run of tasks."""
    speed = trials[trials["kind"] == "speed"]
    beyond = speed["level"].isin(["block", "ceiling"]) | speed["width"].notna() | speed["tokens"].notna()
    return bool(beyond.any() or (trials["kind"] == "generation").any() or len(batch_sweeps(speed)))


def batch_sweeps(speed: pd.DataFrame) -> pd.DataFrame:
    """The trials of models that were trained at one length with three batches or more (memory against batch)."""
    trained = speed[(speed["level"] == "model") & (speed["direction"] == "train") & speed["tokens"].isna()]
    point = ["section", "model", "seq_len", "dtype", "variant"]
    num_batches = trained.groupby(point, dropna=False)["batch"].transform("nunique")
    return trained[num_batches >= MIN_BATCHES]


def length_groups(speed: pd.DataFrame) -> list[pd.DataFrame]:
    """The groups of comparable trials whose figures run along the length; not a single length of a sweep of batches."""
    swept = set(batch_sweeps(speed)["trial_id"])
    groups = [rows for _, rows in speed.groupby(SPEED_GROUP, dropna=False, sort=True)]
    return [rows for rows in groups if rows["seq_len"].nunique() > 1 or not set(rows["trial_id"]) <= swept]


def training_frame(trials: pd.DataFrame) -> pd.DataFrame:
    """The training trials."""
    frame = trials[trials["kind"] == "training"].copy()
    frame["train_len"] = frame["seq_len"]
    return frame.reset_index(drop=True)


def scores_frame(training: pd.DataFrame) -> pd.DataFrame:
    """One row a training trial and scored length; `score_status` says how scoring that length ended."""
    rows: list[dict[str, Any]] = []
    for trial in training.to_dict("records"):
        scored = [score for score in trial["scores"] if isinstance(score, Mapping)]
        at_training_length = {name: trial["intervals"].get(name) for name in INTERVALS}
        if trial["status"] != "ok":
            rows.append(
                _score_row(
                    trial,
                    {
                        "seq_len": trial["train_len"],
                        "status": trial["status"],
                        "reason": f"training: {trial['error_message'] or trial['status']}",
                    },
                )
            )
        elif trial["train_len"] not in [score.get("seq_len") for score in scored] and any(at_training_length.values()):
            rows.append(_score_row(trial, {"seq_len": trial["train_len"], "status": "ok", **at_training_length}))
        rows.extend(_score_row(trial, score) for score in scored)
    columns = ["trial_id", "model", "seed", *TRAINING_GROUP, "embedded", "chance", *SCORE_COLUMNS, "bits_by_position"]
    frame = pd.DataFrame(rows, columns=columns + [key for name in INTERVALS for key in interval(None, name)])
    return frame.sort_values([*TRAINING_GROUP, "model", "scored_len", "seed"], kind="stable", ignore_index=True)


def positions_frame(scores: pd.DataFrame) -> pd.DataFrame:
    """One row a bin of positions of each scored length: bits per token there, and of how many independent units."""
    keys = ["trial_id", "model", "seed", *TRAINING_GROUP, "embedded", "scored_len"]
    rows = [
        {key: score[key] for key in keys}
        | {key: number(piece.get(key)) for key in ("start", "stop", "value", "low", "high", "n")}
        for score in scores.to_dict("records")
        if score["score_status"] == "ok"
        for piece in score["bits_by_position"]
        if isinstance(piece, Mapping)
    ]
    frame = pd.DataFrame(rows, columns=[*keys, "start", "stop", "value", "low", "high", "n"])
    return frame.dropna(subset=["start", "stop", "value"]).reset_index(drop=True)


def losses_frame(training: pd.DataFrame) -> pd.DataFrame:
    """One row a logged step of each training trial; points that are not finite (a diverged run) are left out."""
    return _logged_frame(training, "loss_curve", "loss")


def validation_frame(training: pd.DataFrame) -> pd.DataFrame:
    """One row a step of each training trial at which a probe was asked its validation examples."""
    return _logged_frame(training, "validation_curve", "accuracy")


def validation_losses_frame(training: pd.DataFrame) -> pd.DataFrame:
    """One row a step of each training trial at which it was asked the loss on its validation examples."""
    return _logged_frame(training, "validation_loss_curve", "loss")


def _logged_frame(training: pd.DataFrame, curve: str, name: str) -> pd.DataFrame:
    keys = ["trial_id", "model", "seed", *TRAINING_GROUP, "embedded", "chance"]
    rows = [
        {key: trial[key] for key in keys} | {"step": number(step), name: number(value)}
        for trial in training.to_dict("records")
        for step, value in trial[curve]
    ]
    frame = pd.DataFrame(rows, columns=[*keys, "step", name])
    return frame.dropna(subset=["step", name]).reset_index(drop=True)


def _trial_columns() -> list[str]:
    return list(_trial_row({}, {}))


def _trial_row(record: Record, environments: Environments) -> dict[str, Any]:
    trial, metrics = record.get("trial") or {}, record.get("metrics") or {}
    error, backend = record.get("error") or {}, record.get("backend") or {}
    protocol = trial.get("protocol") or {}
    named = protocol.get("source")
    source: Mapping[str, Any] = named if isinstance(named, Mapping) else {}
    env_id, device = str(record.get("env_id") or "unknown"), str(trial.get("device") or "unknown")
    environment = environments.get(env_id, {})
    latency = samples(metrics.get("latency_ms"))
    q1, median, q3 = np.percentile(latency, [25, 50, 75]) if latency else (np.nan,) * 3
    return {
        "trial_id": str(record.get("trial_id") or ""),
        "status": str(record.get("status") or "error"),
        **{key: trial.get(key) for key in ("kind", "model", "task", "dtype", "direction")},
        "device": device,
        **{key: number(trial.get(key)) for key in ("seq_len", "batch", "seed")},
        "level": protocol.get("level"),
        **{key: number(protocol.get(key)) for key in ("tokens", "width", "d_state", "head_dim", "new_tokens")},
        "loop": protocol.get("loop"),
        "mode": _mode(trial, protocol),
        "scale": _scale(trial, protocol),
        "protocol": dict(protocol),
        "section": section_label(environment, env_id, device),
        "section_key": section_key(environment, env_id, device),
        "env_id": env_id,
        "started_at": record.get("started_at"),
        "wall_s": number(record.get("wall_s")),
        "overhead_s": _overhead_s(record),
        "error_type": error.get("type"),
        "error_message": error.get("message"),
        "error_tail": error.get("tail"),
        "latency_ms": latency,
        "latency_median_ms": median,
        "latency_q1_ms": q1,
        "latency_q3_ms": q3,
        "latency_n": float(len(latency)) if latency else np.nan,
        **{key: number(metrics.get(key)) for key in NUMBERS},
        # A guess before anything like it was measured is no figure to draw.
        **({"predicted_latency_ms": np.nan} if metrics.get("predicted_from") == "default rate" else {}),
        **{key: samples(metrics.get(key)) for key in SAMPLES},
        **{f"cost_{key}": number((metrics.get("cost") or {}).get(key)) for key in COSTS},
        "rate_unit": metrics.get("rate_unit"),
        "launch_bound": metrics.get("launch_bound") is True,
        "resumed": bool(metrics.get("resumed_at")),
        "few_samples": bool(metrics.get("few_samples")) and bool(latency or samples(metrics.get("decode_ms"))),
        "l2_policy": metrics.get("l2_policy"),
        "warm_up_calls": metrics.get("warm_up_calls"),
        "gpu_clocks": metrics.get("gpu_clocks"),
        **{key: value for name in INTERVALS for key, value in interval(metrics.get(name), name).items()},
        "intervals": {name: metrics.get(name) for name in INTERVALS},
        "scores": metrics.get("scores") or [],
        **{key: _points(metrics.get(key)) for key in CURVES},
        "zero_shot": dict(metrics) if trial.get("kind") == "eval" else {},
        "backend": dict(backend),
        "source": _source_name(source),
        "source_kind": source.get("kind"),
        "source_sha256": source.get("sha256"),
        "source_note": source.get("note"),
        "embedded": source.get("kind") == "embedded",
        "variant": "",
    }


def _overhead_s(record: Record) -> float:
    """Wall time beside a trial's phases: what the harness took. NaN where phases were not measured."""
    phases = (record.get("metrics") or {}).get("phases_s") or {}
    spent = sum(map(number, phases.values())) if phases else float("nan")
    return max(0.0, number(record.get("wall_s")) - spent) if np.isfinite(spent) else spent


def _points(value: Any) -> list[Any]:
    """The (step, figure) pairs of a logged curve."""
    return [point for point in value or [] if isinstance(point, list | tuple) and len(point) == 2]


def _mode(trial: Mapping[str, Any], protocol: Mapping[str, Any]) -> str:
    """Batch 8, or 64K tokens a batch."""
    tokens = number(protocol.get("tokens"))
    if not np.isnan(tokens):
        return f"{style.length(tokens)} tokens a batch"
    return f"batch {style.figure(number(trial.get('batch')))}"


def _scale(trial: Mapping[str, Any], protocol: Mapping[str, Any]) -> str:
    """Shapes of an operator that was timed on its own, or the size that a model's name ends in."""
    width = number(protocol.get("width"))
    if np.isnan(width):
        return style.size(str(trial.get("model"))) or ""
    names = (("d_state", "state"), ("head_dim", "heads of"))
    parts = [f"{name} {number(protocol.get(key)):.0f}" for key, name in names if protocol.get(key)]
    return ", ".join([f"width {width:.0f}", *parts])


def _source_name(source: Mapping[str, Any]) -> str | None:
    """The data's name; stand-in data never shares a group with the data set that it stands in for."""
    name = source.get("name")
    return f"{name or 'sample'} (embedded)" if source.get("kind") == "embedded" else name


def _score_row(trial: Mapping[Any, Any], score: Mapping[str, Any]) -> dict[str, Any]:
    keep = ["trial_id", "model", "seed", *TRAINING_GROUP, "embedded"]
    chance = number(score.get("chance"))
    accuracy = interval(score.get("accuracy"), "accuracy")
    examples = number(score.get("examples", accuracy["accuracy_n"]))
    return {
        **{key: trial[key] for key in keep},
        "chance": trial["chance"] if np.isnan(chance) else chance,
        "scored_len": number(score.get("seq_len")),
        "score_status": str(score.get("status") or "ok"),
        "reason": score.get("reason"),
        "few_examples": examples < wanted_examples(trial["protocol"], number(score.get("seq_len"))),
        "latency_ms": samples(score.get("latency_ms")),
        **{key: number(score.get(key)) for key in ("tokens_per_s", "predicted_latency_ms")},
        **{key: value for name in INTERVALS for key, value in interval(score.get(name), name).items()},
        "bits_by_position": score.get("bits_by_position") or [],
    }


def _distinct_labels(frame: pd.DataFrame) -> pd.Series:
    """Section labels, told apart by the environment's id where two sections would read alike."""
    ambiguous = frame.groupby("section")["section_key"].transform("nunique") > 1
    first_id = frame.groupby("section_key")["env_id"].transform("min").str[:8]
    return frame["section"].where(~ambiguous, frame["section"] + " (" + first_id + ")")


def _variants(frame: pd.DataFrame) -> pd.Series:
    """The protocol's varied part: keys for which one model has two values at one and the same point.

    A key that only differs between models (a learning rate) or between lengths (a number of samples) is how the one
    protocol treats them, and stays on one figure; data are told apart by their sha256.
    """
    variants = pd.Series("", index=frame.index, dtype=object)
    point = ["section", "kind", "model", "task", "seq_len", "level", "direction", "dtype", "batch", "seed"]
    point += ["mode", "scale"]
    for _, rows in frame.groupby(["kind", "task"], dropna=False):
        flat = pd.DataFrame([_flat(protocol) for protocol in rows["protocol"]], index=rows.index).astype(object)
        joined = rows[point].join(flat.add_prefix("protocol "))
        varied: list[str] = []
        for key in sorted(map(str, flat.columns), key=lambda key: (key in FOLLOWING, key)):
            # Models that go on from a checkpoint have rates of their own: that they do says it all.
            alike = [*point, f"protocol {START}"] if START in flat and key != START else point
            counts = joined.groupby(alike, dropna=False)[f"protocol {key}"].nunique(dropna=False)
            if not (counts > 1).any() or (key in FOLLOWING and not _tells_apart(flat, varied, key)):
                continue
            varied.append(key)
        for key in list(varied):
            if _parts_models(flat.assign(model=rows["model"]), [other for other in varied if other != key], key):
                varied.remove(key)
        for key in varied:
            text = flat[key].map(lambda value, key=key: f"{key} {value}" if isinstance(value, str) else "")
            variants.loc[rows.index] = (variants.loc[rows.index] + ", " + text).str.strip(", ")
    return variants


def _parts_models(flat: pd.DataFrame, others: list[str], key: str) -> bool:
    """Whether a key tells models apart, and of each model nothing that the other keys do not tell: its rates, say."""
    if not others:
        return False
    follows = (flat.groupby([*others, "model"], dropna=False)[key].nunique(dropna=False) == 1).all()
    return bool(follows and (flat.groupby(others, dropna=False)[key].nunique(dropna=False) > 1).any())


def _tells_apart(flat: pd.DataFrame, known: Sequence[str], key: str) -> bool:
    """Whether protocols that have all the known keys alike differ in this one."""
    if not known:
        return True
    return bool((flat.groupby(list(known), dropna=False)[key].nunique(dropna=False) > 1).any())


def _flat(protocol: Mapping[str, Any]) -> dict[str, str]:
    """A protocol's keys as text, a task's options among them; of the source only what identifies it."""
    options = protocol.get("task_options")
    options = options if isinstance(options, Mapping) else {}
    named = {f"task {key}" if key in protocol else str(key): value for key, value in options.items()}
    flat = {
        key: json.dumps(value, sort_keys=True, default=str).strip('"')
        for key, value in {**protocol, **named}.items()
        if key not in (*GROUPED, *AS_RUN, "task_options")
    }
    if START in flat:  # another checkpoint at every length and seed, but one protocol
        flat[START] = "a checkpoint"
    source = protocol.get("source")
    if isinstance(source, Mapping):
        flat["data"] = f"{source.get('name')} {str(source.get('sha256'))[:8]}"
    return flat
