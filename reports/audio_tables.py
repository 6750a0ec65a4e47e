"""Raw audio in numbers: bits per sample beside the paper's, and the ablation's order beside the paper's."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import pandas as pd

from reports import style
from reports.audio_reference import SOURCE, Curve, Panel, ablation_panels, context_curves, row_names
from reports.audio_rows import AudioGroup, audio_groups, difference
from reports.document import Block, Heading, Paragraph, Table

EQUAL = 0.002
"""Bits. Curves that lie as close are read off the paper's figure with about this error: no order between them."""

RULE = (
    f"A step of the ablation helps if it lowers the bits by more than {EQUAL} (the error of reading the paper's "
    "figure), hurts if it raises them by more, and else is even. A length agrees if a step has the same effect here; "
    "with two or more seeds a step counts as even where its 95 % interval holds zero. Of one seed nothing says how far "
    "seeds lie apart: its agreement describes this run and is no evidence."
)


def audio_blocks(training: pd.DataFrame, scores: pd.DataFrame) -> list[Block]:
    """Per protocol: bits by length beside the paper's, and where it is the ablation the effect of each of its steps."""
    blocks: list[Block] = []
    for group in audio_groups(training, scores):
        blocks += [
            Heading(text=f"Raw audio: bits per sample {_where(group)}", level=3),
            Paragraph(text=f"{group.choices}. {_words()}"),
            Table(frame=beside_table(group)),
        ]
        steps = pd.concat([pd.DataFrame(), *(steps_table(group, panel) for panel in ablation_panels())])
        if len(steps):
            blocks += [
                Paragraph(text=f"What each step of the ablation changes: bits here (in the paper). {RULE}"),
                Table(frame=steps),
            ]
    return blocks


def _where(group: AudioGroup) -> str:
    return f"at {style.length(group.lengths[0])}" if len(group.lengths) == 1 else "against length"


def _words() -> str:
    return (
        f"The paper's ({SOURCE}, Figs 7 and 10, digitised) are of YouTubeMix after 100,000 or 200,000 steps: levels do "
        "not compare, differences between models do in their sign."
    )


def _papers_curves() -> dict[str, Curve]:
    """By the suite's model, in the paper's order; Mamba-S4 stands in both panels, the first one's is taken."""
    curves = dict(context_curves())
    for panel in ablation_panels():
        for model, curve in panel.rows.values():
            curves.setdefault(model, curve)
    return curves


def beside_table(group: AudioGroup) -> pd.DataFrame:
    """Two lines a model, the paper's and ours, a column a length."""
    papers, names, lines = _papers_curves(), row_names(), []
    known = [*papers, *sorted({*group.bits, *group.absent} - papers.keys())]
    models = [model for model in known if model in group.bits or model in group.absent]
    lengths = group.lengths
    for model in models:
        ours = {
            n: f"{bits.mean:.3f} [{bits.low:.3f}, {bits.high:.3f}]" for n, bits in group.bits.get(model, {}).items()
        }
        ours |= {n: reason.partition(":")[0] for n, reason in group.absent.get(model, {}).items()}
        num_seeds = max((len(bits.seeds) for bits in group.bits.get(model, {}).values()), default=0)
        theirs = {_nearest(n, lengths): f"{value:.3f}" for n, value in papers.get(model, {}).items()}
        for whose, figures in (("paper", theirs), (f"here ({num_seeds})", ours)):
            if figures:
                cells = {style.length(n): figures.get(n, style.NONE) for n in lengths}
                params = f"{group.params[model]:,.0f}" if model in group.params and whose != "paper" else ""
                name = names.get(model, style.NONE)
                lines.append(
                    {"Model": model, "In the paper": name, "Whose (seeds)": whose, "Parameters": params, **cells}
                )
    return pd.DataFrame(lines)


def _nearest(seq_len: int, lengths: Sequence[int]) -> int:
    """The paper's 958,464 samples stand under 1M; what is not within a tenth stays as it is, under no column."""
    near = min(lengths, key=lambda own: abs(own - seq_len))
    return near if abs(near - seq_len) <= 0.1 * near else seq_len


def steps_table(group: AudioGroup, panel: Panel) -> pd.DataFrame:
    """A line a step of the ablation: from one row of the panel to the next, and whether it does here what it did.

    At a single length there is room for the words.
    """
    lines = []
    for (_, (before, old)), (label, (after, new)) in pairwise(panel.rows.items()):
        cells, words, agreeing, compared = {}, {}, 0, 0
        for seq_len in sorted(group.bits.get(before, {}).keys() & group.bits.get(after, {}).keys()):
            mean, low, high = difference(group.bits[after][seq_len], group.bits[before][seq_len])
            text, words = f"{mean:+.3f}", {"Here": effect(mean, low, high)}
            if seq_len in old and seq_len in new:
                published = new[seq_len] - old[seq_len]
                text += f" ({published:+.3f})"
                compared += 1
                words["In the paper"] = effect(published)
                agreeing += words["Here"] == words["In the paper"]
            cells[style.length(seq_len)] = text
        if cells:
            agrees = f"{agreeing} of {compared}" if compared else style.NONE
            told = words if len(group.lengths) == 1 else {}
            lines.append({"Blocks": panel.title, "Step to": label, "Agrees": agrees, **told, **cells})
    return pd.DataFrame(lines).fillna(style.NONE)


def effect(change: float, low: float = float("nan"), high: float = float("nan")) -> str:
    """helps, hurts or even, by :data:`RULE`."""
    if abs(change) <= EQUAL or low <= 0 <= high:
        return "even"
    return "helps" if change < 0 else "hurts"
