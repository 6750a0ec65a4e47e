"""The report: reads records, judges, draws and writes index.html, report.md and the figures with their data."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from reports import conditions, frames, style, tables
from reports.audio_generation import audio_generation_blocks
from reports.audio_tables import audio_blocks
from reports.classification import classification_blocks
from reports.contrasts import Contrast, Verdict, judge_contrasts
from reports.document import Block, Bullets, Heading, Paragraph, Table, to_html, to_markdown
from reports.gate_self import gate_self_blocks
from reports.language_tables import language_blocks
from reports.probe_tables import probe_blocks
from reports.speed_claims import judge_speed_claims
from reports.speed_summary import speed_blocks, summary_blocks
from reports.zeroshot import zeroshot_blocks

TITLE = "What sequence models get right, and what length costs"
WHAT_TO_RUN = "run `seqbench run quick` first, or name a records.jsonl or a folder that holds one"


@dataclass(frozen=True, kw_only=True)
class Section:
    """What was measured in one environment on one device, and what it says.

    claims: about speed; empty where speed was not measured for its own sake.
    """

    label: str
    environment: Mapping[str, Any]
    trials: pd.DataFrame
    speed: pd.DataFrame
    training: pd.DataFrame
    scores: pd.DataFrame
    contrasts: list[Contrast]
    claims: list[Contrast]


def write_report(records_paths: Sequence[Path], out_dir: Path) -> Path:
    """Writes the report of the records at these paths into out_dir and returns the path of its page.

    The same records give the same bytes: dates are the records', not today's.
    """
    paths = [Path(path) for path in records_paths]
    records, environments, warnings = read(paths)
    command = "seqbench report " + " ".join(map(str, paths))
    return write_pages(records, environments, warnings, Path(out_dir), command)


def write_pages(
    records: Sequence[frames.Record],
    environments: frames.Environments,
    warnings: Sequence[str],
    out_dir: Path,
    command: str,
) -> Path:
    """write_report, of records that have been read."""
    if not records:
        raise ValueError(f"no records: {WHAT_TO_RUN}")
    sections = sections_of(records, environments)
    notes = [*warnings, *_notes(records, environments, sections)]
    (out_dir / "figures").mkdir(parents=True, exist_ok=True)
    blocks = _opening(sections, notes)
    for index, section in enumerate(sections):
        blocks += _section_blocks(
            section,
            out_dir / "figures",
            f"s{index + 1}-" if len(sections) > 1 else "",
            with_contrasts=len(sections) > 1,
        )
    blocks += audio_generation_blocks(records, environments, out_dir)
    blocks += gate_self_blocks(records)
    blocks += _footer(records, environments, command)
    (out_dir / "report.md").write_text(to_markdown(blocks), encoding="utf-8")
    page = out_dir / "index.html"
    page.write_text(to_html(TITLE, blocks), encoding="utf-8")
    return page


def sections_of(records: Sequence[frames.Record], environments: frames.Environments) -> list[Section]:
    """The records' sections: one an environment and device, because only these compare."""
    found = []
    for label, trials in frames.trials_frame(records, environments).groupby("section", sort=True):
        speed, training = frames.speed_frame(trials), frames.training_frame(trials)
        scores = frames.scores_frame(training)
        found.append(
            Section(
                label=str(label),
                environment=environments.get(str(trials["env_id"].iloc[0]), {}),
                trials=trials,
                speed=speed,
                training=training,
                scores=scores,
                contrasts=judge_contrasts(speed, scores),
                claims=judge_speed_claims(speed, frames.generation_frame(trials))
                if frames.has_speed_suite(trials)
                else [],
            )
        )
    return found


def read(paths: Sequence[Path]) -> tuple[list[dict[str, Any]], dict[str, dict[str, Any]], list[str]]:
    """Records, the environments that they name, and warnings.

    Files are read one at a time: read_records keeps the last record of a trial, and the same trial run on two machines
    is two measurements. Raises ValueError where there is no path or no record.
    """
    from harness.records import read_environment, read_records

    absent = [str(path) for path in paths if not path.exists()]
    if not paths or absent:
        raise ValueError(f"no records at {', '.join(absent) or 'no path'}: {WHAT_TO_RUN}")
    files = {file for path in paths for file in ([path] if path.is_file() else path.rglob("records.jsonl"))}
    records: list[dict[str, Any]] = []
    environments: dict[str, dict[str, Any]] = {}
    warnings: list[str] = []
    for file in sorted(files):
        new, torn = read_records([file])
        records += new
        warnings += torn
        for env_id in sorted({str(record.get("env_id")) for record in new} - set(environments)):
            if environment := read_environment(file, env_id):
                environments[env_id] = environment
    if not records:
        where = ", ".join(map(str, paths))
        raise ValueError(f"no records in {where}: {WHAT_TO_RUN}" + "".join(f" ({warning})" for warning in warnings))
    missing = sorted({str(record.get("env_id")) for record in records} - set(environments))
    return (
        records,
        environments,
        warnings
        + [f"environment {env_id} is not described: no env/{env_id}.json beside its records" for env_id in missing],
    )


def _opening(sections: Sequence[Section], notes: Sequence[str]) -> list[Block]:
    trials = pd.concat([section.trials for section in sections])
    counts = ", ".join(f"{count} {status}" for status, count in trials["status"].value_counts().items())
    dates = sorted(date[:10] for date in trials["started_at"].dropna().astype(str))
    when = f", recorded {dates[0]}" + (f" to {dates[-1]}" if dates[-1] != dates[0] else "") if dates else ""
    blocks: list[Block] = [
        Heading(text=TITLE, level=1),
        Paragraph(text=f"{len(trials)} trials ({counts}){when}. " + "; ".join(s.label for s in sections) + "."),
    ]
    if notes:
        blocks.append(Bullets(items=notes, warning=True))
    blocks.append(Heading(text="Known contrasts"))
    if len(sections) == 1:
        return blocks + _contrast_blocks(sections[0].contrasts)
    table = pd.DataFrame(
        [
            {"Contrast": row[0].statement} | {s.label: c.verdict for s, c in zip(sections, row, strict=True)}
            for row in zip(*(section.contrasts for section in sections), strict=True)
        ]
    )
    return [*blocks, Paragraph(text="Evidence and rules stand in each environment's section."), Table(frame=table)]


def _contrast_blocks(contrasts: Sequence[Contrast]) -> list[Block]:
    verdicts = [contrast.verdict for contrast in contrasts]
    known: tuple[Verdict, ...] = ("shown", "not shown", "not measured")
    counts = ", ".join(f"{verdicts.count(name)} {name}" for name in known)
    # What was measured stands first; within a verdict the order is the contrasts' own.
    ordered = sorted(contrasts, key=lambda contrast: known.index(contrast.verdict))
    return [
        Paragraph(
            text=f"{counts}. Each is decided from the records by the rule beside it; a contrast that does "
            "not show here is said not to show."
        ),
        Table(frame=tables.contrasts_table(ordered)),
    ]


def _section_blocks(section: Section, folder: Path, prefix: str, with_contrasts: bool) -> list[Block]:
    from reports.figures import figure_jobs
    from reports.saving import save_figures

    blocks: list[Block] = [Heading(text=section.label)]
    if with_contrasts:
        blocks += [Heading(text="Known contrasts", level=3), *_contrast_blocks(section.contrasts)]
    if section.claims:
        blocks += [Heading(text="Claims about speed and memory", level=3), *_contrast_blocks(section.claims)]
    with_models = section.trials[section.trials["level"] != "ceiling"]
    blocks += [Heading(text="Models", level=3), Table(frame=tables.models_table(with_models))]
    timed = conditions.conditions_table(section.trials, section.environment)
    if len(timed):
        blocks += [Heading(text="Conditions of the timings", level=3), Table(frame=timed)]
    for title, frame in (
        ("What length costs, in numbers", tables.scaling_table(section.speed)),
        ("Data", tables.data_table(section.training)),
    ):
        if len(frame):
            blocks += [Heading(text=title, level=3), Table(frame=frame)]
    blocks += probe_blocks(section.training)
    blocks += language_blocks(section.training)
    blocks += audio_blocks(section.training, section.scores)
    blocks += classification_blocks(section.training)
    blocks += zeroshot_blocks(section.trials)
    if section.claims:
        blocks += speed_blocks(section.speed, section.trials)
    pictures = save_figures(
        figure_jobs(section.speed, section.training, section.scores, section.trials), folder, prefix
    )
    if pictures:
        blocks.append(Heading(text="Figures", level=3))
    blocks += pictures
    skipped = tables.skipped_table(section.trials, section.scores)
    if len(skipped):
        blocks += [Heading(text="What has no figure, and why", level=3), Table(frame=skipped)]
    blocks += [
        Heading(text="Every trial", level=3),
        Paragraph(text=tables.MEMORY_NOTE),
        Table(frame=tables.trials_table(section.trials), folded=f"All {len(section.trials)} trials"),
    ]
    if len(section.scores):
        blocks.append(
            Table(frame=tables.scores_table(section.scores), folded=f"All {len(section.scores)} scored lengths")
        )
    return blocks


def _notes(
    records: Sequence[frames.Record],
    environments: frames.Environments,
    sections: Sequence[Section],
) -> list[str]:
    notes = []
    _, replaced = frames.latest(records, environments)
    if replaced:
        notes.append(f"{replaced} older records were replaced by newer ones of the same trial")
    embedded = sorted({str(task) for s in sections for task in s.training.loc[s.training["embedded"], "task"]})
    if embedded:
        notes.append(
            f"{style.STAMP}: {', '.join(embedded)} used the project's own stand-in data, not the published "
            "data sets; its figures are stamped, and they compare models with each other only"
        )
    dirty = sorted(env_id[:8] for env_id, environment in environments.items() if environment.get("dirty"))
    if dirty:
        notes.append(f"recorded from a working tree with uncommitted changes (environments {', '.join(dirty)})")
    if len(sections) > 1:
        notes.append(f"{len(sections)} environments or devices: each has its own section, and no figure mixes them")
    return notes


def _footer(records: Sequence[frames.Record], environments: frames.Environments, command: str) -> list[Block]:
    used = sorted({str(record.get("env_id")) for record in records})
    rows = [
        {"Environment": env_id[:12], "Key": key, "Value": tables.text(value)}
        for env_id in used
        for key, value in _flat(environments.get(env_id, {}))
    ]
    blocks: list[Block] = [Heading(text="How this was made"), Paragraph(text=f"Made by: {command}")]
    return [*blocks, Table(frame=pd.DataFrame(rows))] if rows else blocks


def _flat(environment: Mapping[str, Any]) -> list[tuple[str, str]]:
    """An environment's keys in a stated order, nested ones in a line."""
    first = [
        "machine",
        "cpu",
        "gpu",
        "driver",
        "clocks",
        "os",
        "python",
        "packages",
        "threads",
        "flags",
        "commit",
        "dirty",
    ]
    keys = [key for key in first if key in environment] + sorted(set(environment) - set(first))
    return [
        (
            key,
            ", ".join(f"{name} {_plain(part)}" for name, part in value.items())
            if isinstance(value, Mapping)
            else _plain(value),
        )
        for key in keys
        for value in [environment[key]]
    ]


def _plain(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, default=str)


def judge(paths: Sequence[Path]) -> list[tuple[str, Contrast]]:
    """Every contrast and every claim about speed, of every section of the records: ``(section, contrast)``.

    Unlike the page, claims are listed where no suite of speed was run as well: then they are not measured.
    """
    records, environments, _ = read(paths)
    found = []
    for section in sections_of(records, environments):
        claims = section.claims or judge_speed_claims(section.speed, frames.generation_frame(section.trials))
        found += [(section.label, judged) for judged in (*section.contrasts, *claims)]
    return found


def speed_markdown(paths: Sequence[Path]) -> str:
    """The speed suite's compact tables and the zero-shot tables of every section that has them, as Markdown.

    Raises ValueError where no section has either.
    """
    records, environments, _ = read(paths)
    blocks: list[Block] = []
    for section in sections_of(records, environments):
        found = zeroshot_blocks(section.trials)
        if frames.has_speed_suite(section.trials):
            timed = conditions.conditions_table(section.trials, section.environment)
            found = [Table(frame=timed), *summary_blocks(section.speed, section.trials), *found]
        if found:
            blocks += [Heading(text=section.label), *found]
    if not blocks:
        where = ", ".join(map(str, paths))
        raise ValueError(
            f"no record of the speed suite and none of zero-shot tasks in {where}: run `seqbench run speed` or "
            "`seqbench eval` first"
        )
    return to_markdown(blocks)
