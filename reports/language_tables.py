"""Language pretraining in tables: what each model reached, what the same FLOPs give, every length, the paper beside."""

from __future__ import annotations

import math
from collections.abc import Sequence

import pandas as pd

from reports import style
from reports.document import Block, Heading, Paragraph, Table
from reports.language_reference import FAMILIES, SOURCE, on_line, paper_line, paper_points
from reports.language_rows import REFERENCE_FAMILY, LanguageGroup, LanguageRun, language_groups

TITLE = "Language pretraining"
PAPER_LEN = 2048
EQUAL_FLOPS = (
    "FLOPs are the model's own: forward, and twice as much backward, without what kernels compute again. On the line: "
    "Transformer++'s finished sizes, straight between neighbours in log-log, as the paper's Fig. 4 can be read; "
    "outside them (marked ~) the nearest piece goes on. On the way: the loss of each model of a size at the FLOPs that "
    "all of them spent; the learning rate is at its end there for the cheapest model alone, which favours it."
)
NOT_COMPARABLE = (
    "Perplexities of the paper are those of GPT-2's tokens on the Pile and of models of 125M parameters and more, and "
    "cannot be put beside ours. Only the loss over that of Transformer++ has no unit. A ratio of other text, sizes and "
    "budgets still need not be the same."
)


def language_blocks(training: pd.DataFrame) -> list[Block]:
    """The part of a page about language pretraining; empty where no trial is of it."""
    groups = language_groups(training)
    if not groups:
        return []
    blocks: list[Block] = [Heading(text=TITLE, level=3)]
    for group in groups:
        blocks += [
            Paragraph(text=_words(group)),
            Table(frame=models_table(group)),
            Table(frame=flops_table(group)),
            Paragraph(text="Bits per byte of the test text by length of the context, in tokens."),
            Table(frame=lengths_table(group)),
        ]
    blocks.append(Paragraph(text=EQUAL_FLOPS))
    beside = paper_table(groups)
    if len(beside):
        blocks += [Paragraph(text=NOT_COMPARABLE), Table(frame=beside)]
    return blocks


def _words(group: LanguageGroup) -> str:
    asked = sorted({run.steps_asked * run.tokens_per_step for run in group.runs if math.isfinite(run.steps_asked)})
    tokens = " or ".join(f"{style.rate(count)} tokens" for count in asked)
    per_token = group.bytes_per_token()
    bytes_text = f", {per_token:.2f} bytes each" if math.isfinite(per_token) and group.symbols != "bytes" else ""
    cut = [run for run in group.runs if not run.finished]
    short = f" Not finished: {', '.join(f'{run.model} ({_progress(run)})' for run in cut)}." if cut else ""
    return (
        f"Symbols: {group.symbols}{bytes_text}. Every model reads the same {tokens} of {group.about['source']}, at a "
        f"context of {style.length(group.train_len)} and batch {style.figure(group.about['batch'])}, in "
        f"{group.about['dtype']}.{short}"
    )


def _progress(run: LanguageRun) -> str:
    return f"last loss at step {run.steps:,.0f} of {run.steps_asked:,.0f}; {run.message or run.status}"


def models_table(group: LanguageGroup) -> pd.DataFrame:
    """A row a run: what it read and spent, its validation loss, and the test text at the training length."""
    rows = []
    for run in group.runs:
        score = run.scores.get(group.train_len)
        rows.append(
            {
                "Model": run.model,
                "Seed": style.figure(run.seed),
                "Parameters": f"{run.params:,.0f}" if math.isfinite(run.params) else style.NONE,
                "Tokens": style.rate(run.tokens),
                "FLOPs": _flops(run.flops),
                "Validation loss (bits per token)": _bits(run.loss) if run.finished else f"{_bits(run.loss)} (cut)",
                "Test, bits per byte": _with_interval(score.bits_per_byte, score.low, score.high)
                if score
                else style.NONE,
                "Test, perplexity a token": style.figure(2**score.bits_per_token, 4) if score else style.NONE,
                "Tokens/s": style.rate(run.tokens_per_s),
                "Minutes": style.figure(run.train_s / 60),
                "Status": run.status if run.status == "ok" else f"{run.status}: {run.message}",
            }
        )
    return pd.DataFrame(rows)


def flops_table(group: LanguageGroup) -> pd.DataFrame:
    """Losses at equal FLOPs: on Transformer++'s line through its sizes, and on the way of each training."""
    line = group.reference_line()
    rows = []
    for run in (run for run in group.runs if run.finished):
        same_tokens = group.reference_loss(run.model)
        at_equal, outside = on_line(line, run.flops) if len(line) > 1 else (math.nan, False)
        size = style.size(run.model)
        common = group.common_flops(size)
        rows.append(
            {
                "Model": run.model,
                "FLOPs": _flops(run.flops),
                "Loss": _bits(run.loss),
                "Transformer++, equal tokens": _bits(same_tokens),
                "Difference": _signed(run.loss - same_tokens),
                "Transformer++, equal FLOPs (on the line)": ("~" if outside else "") + _bits(at_equal),
                "Difference at equal FLOPs": _signed(run.loss - at_equal),
                f"On the way, at what all of {size} spent": f"{_bits(run.loss_at(common))} at {_flops(common)}",
            }
        )
    # A column for each size, of which a row has one.
    return pd.DataFrame(rows).fillna(style.NONE)


def lengths_table(group: LanguageGroup) -> pd.DataFrame:
    """Bits per byte, a column a scored length; the training length is marked."""
    rows = []
    for run in group.runs:
        cells = {}
        for seq_len in group.lengths:
            name = style.length(seq_len) + (" (trained)" if seq_len == group.train_len else "")
            score = run.scores.get(seq_len)
            cells[name] = _with_interval(score.bits_per_byte, score.low, score.high) if score else style.NONE
        rows.append({"Model": run.model, "Seed": style.figure(run.seed), **cells})
    return pd.DataFrame(rows)


def paper_table(groups: Sequence[LanguageGroup]) -> pd.DataFrame:
    """Loss over Transformer++'s at equal tokens: the paper's smallest size at 2K, and each of ours."""
    points = [point for point in paper_points() if point.seq_len == PAPER_LEN]
    if not points:
        return pd.DataFrame()
    smallest = min(points, key=lambda point: point.flops).params
    paper = {point.model: point for point in points if point.params == smallest}
    reference = paper[FAMILIES[REFERENCE_FAMILY]]
    rows = []
    for family, name in FAMILIES.items():
        if name not in paper:
            continue
        point = paper[name]
        line = paper_line(reference.model, PAPER_LEN)
        ours = {}
        for group in groups:
            for model in sorted({run.model for run in group.runs if style.family(run.model) == family}):
                ratio = group.mean_loss(model) / group.reference_loss(model)
                ours[f"Here, {group.symbols}, {style.size(model)}"] = _bits(ratio)
        rows.append(
            {
                "Family": family,
                f"In the paper ({SOURCE})": name,
                f"Perplexity, {smallest}, {style.length(PAPER_LEN)}": f"{point.perplexity:.2f}",
                "Transformer++ at its FLOPs": f"{on_line(line, point.flops)[0]:.2f}",
                "Loss over Transformer++'s": f"{point.nats / reference.nats:.3f}",
                **ours,
            }
        )
    return pd.DataFrame(rows).fillna(style.NONE)


def _bits(value: float) -> str:
    return f"{value:.3f}" if math.isfinite(value) else style.NONE


def _signed(value: float) -> str:
    return f"{value:+.3f}" if math.isfinite(value) else style.NONE


def _with_interval(value: float, low: float, high: float) -> str:
    if not (math.isfinite(low) and math.isfinite(high)):
        return _bits(value)
    return f"{value:.3f} [{low:.3f}, {high:.3f}]"


def _flops(value: float) -> str:
    return f"{value:.2e}" if math.isfinite(value) and value > 0 else style.NONE
