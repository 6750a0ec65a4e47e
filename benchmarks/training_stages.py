"""The stages of a training: a warm-up of the length, at one number of tokens a step, and the trial's own length."""

from dataclasses import dataclass

from harness import Trial


@dataclass(frozen=True, kw_only=True)
class Stage:
    """The steps ``first`` to ``end - 1``, on sequences of one length."""

    seq_len: int
    first: int
    end: int


def stages_of(trial: Trial) -> list[Stage]:
    """Of the warm-up of the length (``length_warmup``: pairs of a length and its steps), then of the trial's own."""
    stages: list[Stage] = []
    first = 0
    for seq_len, steps in trial.protocol.get("length_warmup", ()):
        stages.append(Stage(seq_len=seq_len, first=first, end=first + steps))
        first += steps
    return [*stages, Stage(seq_len=trial.seq_len, first=first, end=trial.protocol["steps"])]
