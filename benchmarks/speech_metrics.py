"""Scores of generated speech: FID, IS, mIS and AM by a classifier of spoken digits that is trained here.

``python -m benchmarks.speech_metrics train`` trains the classifier, ``table`` writes what real digits, noise and
silence score, and ``score FOLDER`` scores a folder of recordings. From Python: :func:`score_clips`. ``commands`` trains
the same network on the words of the task ``commands`` instead, a control of what they can teach.

Shape suffixes: N clips, L samples.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmarks.csv_files import write_csv
from benchmarks.speech_metrics_classifier import (
    DEFAULT_FOLDER,
    ROOT,
    TrainedClassifier,
    as_heard,
    hear,
    load_classifier,
)
from benchmarks.speech_metrics_training import Protocol, clips_of, commands_control, read_digits, train_classifier
from harness.generation_scores import (
    Moments,
    am_score,
    frechet_distance,
    inception_score,
    modified_inception_score,
    moments,
)
from tasks import TaskError
from tasks.archive import read_members
from tasks.audio.clips import CLIP_LEN
from tasks.audio.music import AUDIO_SUFFIXES
from tasks.audio.waveform import SAMPLE_RATE_HZ, read_waveform, resample
from tasks.cache import write_atomically

DEFAULT_TABLE = ROOT / "results" / "cpu" / "speech_metrics.csv"
DEFAULT_CONTROL = ROOT / "results" / "cpu" / "commands_control.json"
COLUMNS = ("clips_of", "against", "clips", "fid", "inception_score", "modified_inception_score", "am_score")
DRAWN, DRAWS = 64, 200
"""Clips that audio-generation asks of a model, and how often so many real ones are drawn."""
_NOISE_RMS = 0.1
"""Of white noise in the table: about as loud as the recorded digits."""


def score_clips(waveforms: Tensor, sample_rate: int, *, folder: Path = DEFAULT_FOLDER) -> dict[str, Any]:
    """FID, IS, mIS and AM of clips against the real ones that the classifier was trained on.

    Args:
        waveforms: ``(N, L)``, floats in [-1, 1], at most a second each; a shorter clip gets silence in front.
        sample_rate: in Hz; 16,000.
        folder: of the classifier.

    Returns ``fid``, ``inception_score``, ``modified_inception_score``, ``am_score``, ``clips``, and of the classifier
    ``classifier_sha256`` and ``classifier_accuracy``.

    Raises ValueError: see :func:`~benchmarks.speech_metrics_classifier.as_heard`, and fewer than 33 clips.
    """
    trained = _classifier(folder)
    scores = score_against(trained, as_heard(waveforms, sample_rate), trained.reference)
    return scores | {
        "classifier_sha256": trained.about["weights_sha256"],
        "classifier_accuracy": trained.about["accuracy"],
    }


def score_against(trained: TrainedClassifier, heard_NL: Tensor, reference: Moments) -> dict[str, Any]:
    """The four scores of clips as the classifier takes them, against any real clips' moments."""
    return _scores(*_heard(trained, heard_NL), reference)


def _heard(trained: TrainedClassifier, heard_NL: Tensor) -> tuple[np.ndarray, np.ndarray]:
    features_NF, log_probs_NK = hear(trained.network, heard_NL)
    return features_NF.numpy(), log_probs_NK.numpy()


def _scores(features_NF: np.ndarray, log_probs_NK: np.ndarray, reference: Moments) -> dict[str, Any]:
    return {
        "fid": frechet_distance(moments(features_NF, log_probs_NK), reference),
        "inception_score": inception_score(log_probs_NK),
        "modified_inception_score": modified_inception_score(log_probs_NK),
        "am_score": am_score(log_probs_NK, reference.marginal_K),
        "clips": len(features_NF),
    }


@cache
def _classifier(folder: Path) -> TrainedClassifier:
    return load_classifier(folder)


def table_rows(trained: TrainedClassifier, sources: Sequence[Path]) -> list[dict[str, Any]]:
    """What the scores say of clips that are known: real ones against others, white noise, silence, one clip repeated.

    Every set but the last speakers' is as large as half of the training clips, since FID falls with their number. As
    few clips as a model is asked for, drawn again and again, say what so small a set scores.
    """
    tasks = [read_digits(source) for source in sources]
    train, test = clips_of(tasks, ("train", "validation")), clips_of(tasks, ("test",))
    rng = torch.Generator().manual_seed(0)
    order_N = torch.randperm(len(train), generator=rng)
    first_NL, second_NL = (train.heard_NL[half_N] for half_N in order_N.chunk(2))
    second = moments(*_heard(trained, second_NL))
    size = len(first_NL)
    noise_NL = (_NOISE_RMS * torch.randn(size, CLIP_LEN, generator=rng)).clamp(-1, 1)
    known = [
        ("half of the training clips", "the other half", first_NL, second),
        ("half of the training clips", "all training clips", first_NL, trained.reference),
        ("test speakers", "all training clips", test.heard_NL, trained.reference),
        ("white noise", "all training clips", as_heard(noise_NL, SAMPLE_RATE_HZ), trained.reference),
        ("silence", "all training clips", as_heard(torch.zeros(size, CLIP_LEN), SAMPLE_RATE_HZ), trained.reference),
        ("one training clip, repeated", "all training clips", first_NL[:1].expand(size, -1), trained.reference),
    ]
    rows = [
        {"clips_of": what, "against": against} | score_against(trained, heard_NL, reference)
        for what, against, heard_NL, reference in known
    ]
    rows += [
        {"clips_of": f"{of}, {what} of {DRAWS} draws", "against": "all training clips"} | row
        for of, clips in (("training clips", train), ("test speakers", test))
        for what, row in _drawn(*_heard(trained, clips.heard_NL), trained.reference).items()
    ]
    return rows


def _drawn(features_NF: np.ndarray, log_probs_NK: np.ndarray, reference: Moments) -> dict[str, dict[str, Any]]:
    """What 95 % of the draws of :data:`DRAWN` clips span, each score for itself."""
    rng = np.random.default_rng(0)
    picked = [rng.choice(len(features_NF), DRAWN, replace=False) for _ in range(DRAWS)]
    scores = [_scores(features_NF[at], log_probs_NK[at], reference) for at in picked]
    ends = {"2.5 %": 2.5, "median": 50.0, "97.5 %": 97.5}
    return {
        what: {name: float(np.percentile([s[name] for s in scores], end)) for name in scores[0]} | {"clips": DRAWN}
        for what, end in ends.items()
    }


def read_folder(folder: Path) -> Tensor:
    """Recordings of at most a second as ``(N, 16000)``, at 16 kHz, silence in front of shorter ones.

    Raises:
        TaskError: no recording there, one that cannot be read, or one longer than a second.
    """
    paths = sorted(path for path in folder.rglob("*") if path.suffix.lower() in AUDIO_SUFFIXES)
    if not paths:
        raise TaskError(f"{folder}: no recording ({' '.join(AUDIO_SUFFIXES)}); name the folder of the generated clips")
    clips = []
    for path in paths:
        for member in read_members(path, path.name, AUDIO_SUFFIXES):
            waveform_L = resample(*read_waveform(member)).clamp(-1, 1)
            if not 0 < len(waveform_L) <= CLIP_LEN:
                raise TaskError(
                    f"{member.place}: {len(waveform_L)} samples at {SAMPLE_RATE_HZ} Hz are not 1 to {CLIP_LEN}; "
                    "cut it to a second, or leave it out"
                )
            clips.append(torch.nn.functional.pad(waveform_L, (CLIP_LEN - len(waveform_L), 0)))
    return torch.stack(clips)


def main(words: Sequence[str] | None = None) -> int:
    """The command line; 2 for what cannot be."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.speech_metrics", description=__doc__.splitlines()[0])
    commands = parser.add_subparsers(dest="command", required=True)
    train = commands.add_parser("train", help="train the classifier on spoken digits")
    table = commands.add_parser("table", help="score real digits, noise and silence")
    score = commands.add_parser("score", help="score a folder of recordings")
    control = commands.add_parser("commands", help="train the classifier's network on command words, a control")
    for command in (train, table):
        command.add_argument("--source", type=Path, action="append", required=True, help="digits; may be repeated")
    for command in (train, table, score):
        command.add_argument("--classifier", type=Path, default=DEFAULT_FOLDER, help="its folder (%(default)s)")
    control.add_argument("--source", type=Path, required=True, help="clips of up to ten words")
    control.add_argument("--out", type=Path, default=DEFAULT_CONTROL, help="the JSON file (%(default)s)")
    for command in (train, control):
        command.add_argument("--epochs", type=int, default=Protocol.epochs, help="(%(default)s)")
        command.add_argument("--seed", type=int, default=Protocol.seed, help="(%(default)s)")
    table.add_argument("--out", type=Path, default=DEFAULT_TABLE, help="the CSV (%(default)s)")
    score.add_argument("folder", type=Path)
    asked = parser.parse_args(words)
    try:
        if asked.command in ("train", "commands"):
            protocol = Protocol(epochs=asked.epochs, seed=asked.seed)
            say = partial(print, flush=True)
            if asked.command == "train":
                train_classifier(asked.source, asked.classifier, protocol, say=say)
            else:
                found = commands_control(asked.source, protocol, say=say)
                write_atomically(asked.out, (json.dumps(found, indent=1) + "\n").encode())
                say(f"written: {asked.out}; accuracy on test {found['accuracy']['test']['value']:.3f}")
        elif asked.command == "table":
            rows = table_rows(load_classifier(asked.classifier), asked.source)
            write_csv(({**row, **_rounded(row)} for row in rows), COLUMNS, asked.out)
            print(asked.out.read_text(), end="")
        else:
            print(json.dumps(score_clips(read_folder(asked.folder), SAMPLE_RATE_HZ, folder=asked.classifier), indent=2))
    except ValueError as error:  # TaskError is one
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


def _rounded(row: dict[str, Any]) -> dict[str, Any]:
    return {name: float(f"{value:.5g}") for name, value in row.items() if isinstance(value, float)}


if __name__ == "__main__":
    sys.exit(main())
