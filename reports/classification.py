"""Classified DNA as tables: Matthews correlation of each model on each data set, over seeds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd

from reports import style
from reports.classification_pairs import PAIRED, models_table, ways_table
from reports.classification_rows import FIGURES, TITLES, choices_of, place_of, scored_at_training_length, why_not
from reports.document import Block, Heading, Paragraph, Table

WORDS = (
    "Matthews correlation on the test split: 1 is all right, 0 is no better than chance. With several seeds the mean "
    "and the standard deviation over them, with one seed the bootstrap's 95 % interval over items; the spread over "
    "seeds says nothing of other items. Majority is the accuracy of naming the training split's most frequent class. "
    "No published row stands beside these: the reference tables hold none of these tasks, and the models here are "
    "smaller, trained on less, and asked at their last position."
)


def classification_blocks(training: pd.DataFrame) -> list[Block]:
    """A table for every protocol of the tasks that classify whole sequences; none where none was run."""
    trials = training[training["task"].isin(TITLES)]
    if trials.empty:
        return []
    blocks: list[Block] = []
    for (task, choices), mine in trials.groupby([trials["task"], trials.apply(choices_of, axis=1)], sort=True):
        blocks += [
            Heading(text=f"{TITLES[str(task)]}: Matthews correlation", level=3),
            Paragraph(text=f"{choices}. {WORDS}"),
            Table(frame=classification_table(mine)),
        ]
        if len(ways := ways_table(mine)):
            blocks += [Paragraph(text=PAIRED), Table(frame=ways)]
        if len(models := models_table(mine)):
            blocks.append(Table(frame=models, folded=f"{len(models)} differences between models, paired likewise"))
    return blocks


def classification_table(trials: pd.DataFrame) -> pd.DataFrame:
    """A line a data set, model, start, rate and kind of answers."""
    places = pd.Series([place_of(trial) for trial in trials.to_dict("records")], index=trials.index)
    lines = []
    for place in sorted(set(places)):
        mine = trials[places == place]
        found = [scored for scored in map(scored_at_training_length, mine.to_dict("records")) if scored]
        cells = {name: _over_seeds([scored[name] for scored in found]) for name in FIGURES}
        chance = mine["chance"].dropna()
        items = sorted({f"{scored['mcc']['mcc_n']:.0f}" for scored in found})
        lines.append(
            {
                "Data set": place.dataset,
                "Model": place.model,
                "Start": place.start,
                "Rate": style.figure(place.rate),
                "Answers among": place.answers,
                "Length": style.length(place.seq_len),
                "MCC": cells["mcc"] if found else why_not(mine),
                "Balanced accuracy": cells["balanced_accuracy"],
                "Accuracy": cells["accuracy"],
                "Majority": style.percent(float(chance.iloc[0])) if len(chance) else style.NONE,
                "Seeds": f"{len(found)} of {len(mine)}",
                "Items": ", ".join(items) or style.NONE,
            }
        )
    return pd.DataFrame(lines)


def _over_seeds(found: Sequence[Mapping[str, float]]) -> str:
    """Mean and standard deviation of several, of one its interval."""
    if not found:
        return style.NONE
    name = next(iter(found[0]))
    values = [figure[name] for figure in found]
    if len(values) == 1:
        return f"{values[0]:.3f} [{found[0][f'{name}_low']:.3f}, {found[0][f'{name}_high']:.3f}]"
    return f"{np.mean(values):.3f} ± {np.std(values, ddof=1):.3f}"
