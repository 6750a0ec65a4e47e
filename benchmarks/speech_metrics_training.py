"""Trains the classifier of :mod:`benchmarks.speech_metrics_classifier` on spoken digits, tested on other speakers.

Shape suffixes: N clips, L samples, M Mel bands, T frames.
"""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.speech_metrics_classifier import (
    ABOUT,
    NUM_BANDS,
    NUM_FEATURES,
    WEIGHTS,
    DigitClassifier,
    TrainedClassifier,
    hear,
    load_classifier,
    save_classifier,
)
from harness.generation_scores import moments
from harness.statistics import wilson
from tasks import Split, TaskError, make_task
from tasks.audio.clips import DIGITS, WordClips
from tasks.audio.digits import Digits
from tasks.audio.speech import speaker_of
from tasks.audio.waveform import SAMPLE_RATE_HZ, mu_law_decode
from tasks.base import SPLITS


@dataclass(frozen=True, kw_only=True)
class Protocol:
    """What a training depends on, besides its clips."""

    epochs: int = 40
    batch: int = 32
    lr: float = 3e-3
    """At its highest: one cycle, AdamW."""
    weight_decay: float = 0.01
    seed: int = 0


@dataclass(frozen=True, kw_only=True)
class Clips:
    """Real words as the network takes them."""

    heard_NL: Tensor
    labels_N: Tensor
    speakers: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.labels_N)


def read_digits(source: Path) -> Digits:
    """A folder or archive of spoken digits, in either layout of the task ``digits``."""
    task = make_task("digits", source=source)
    assert isinstance(task, Digits)
    return task


def clips_of(tasks: Sequence[WordClips], splits: Sequence[Split]) -> Clips:
    """All clips of some splits."""
    heard, labels, speakers = [], [], []
    for task in tasks:
        for split in splits:
            for clip in task.splits[split]:
                tokens_L = task.corpus.tokens_of(clip)[task.lead_len :]
                heard.append(torch.from_numpy(tokens_L.copy()))
                labels.append(task.label_of(clip))
                speakers.append(speaker_of(clip.name))
    return Clips(
        heard_NL=mu_law_decode(torch.stack(heard).long()), labels_N=torch.tensor(labels), speakers=tuple(speakers)
    )


def train_classifier(
    sources: Sequence[Path], folder: Path, protocol: Protocol, *, say: Callable[[str], None] = print
) -> TrainedClassifier:
    """Train on the speakers of train and validation, test on those of test, save.

    Nothing is selected: the number of epochs is given, so that validation's speakers are worth more in training.

    Raises:
        TaskError: no epoch, a source without digits, or one whose test speakers another source trains on.
    """
    _check_epochs(protocol)
    tasks = [read_digits(source) for source in sources]
    train, test = clips_of(tasks, ("train", "validation")), clips_of(tasks, ("test",))
    if shared := set(train.speakers) & set(test.speakers):
        raise TaskError(
            f"speaker(s) {', '.join(sorted(shared)[:5])} would be trained on and tested; "
            "give sources of three speakers or more, none of whom is in two of them"
        )
    network = _fit(train, protocol, say)
    network.scale.copy_(hear(network, train.heard_NL)[0].var(0).mean().sqrt())
    features_NF, log_probs_NK = (tensor.numpy() for tensor in hear(network, train.heard_NL))
    tested = [_accuracy(network, clips_of([task], ("test",))) for task in tasks]
    about: dict[str, Any] = {
        "what": "classifier of spoken digits on log-Mel spectrograms, for FID, IS, mIS and AM",
        "digits": list(DIGITS),
        "num_parameters": sum(parameter.numel() for parameter in network.parameters()),
        "num_features": NUM_FEATURES,
        "num_bands": NUM_BANDS,
        "protocol": asdict(protocol),
        "sources": [
            {
                "files": list(task.provenance.files),
                "sha256": task.provenance.sha256,
                "note": task.provenance.note,
                "test": result,
            }
            for task, result in zip(tasks, tested, strict=True)
        ],
        "train_clips": len(train),
        "train_speakers": len(set(train.speakers)),
        "train_accuracy": _accuracy(network, train)["accuracy"],
        "accuracy": _accuracy(network, test)["accuracy"],
        "test_speakers": len(set(test.speakers)),
    }
    trained = TrainedClassifier(network=network, reference=moments(features_NF, log_probs_NK), about=about)
    save_classifier(trained, folder)
    say(f"written: {folder / WEIGHTS} and {ABOUT}; accuracy on other speakers {about['accuracy']['value']:.3f}")
    return load_classifier(folder)


def _check_epochs(protocol: Protocol) -> None:
    if protocol.epochs < 1:
        raise TaskError(f"epochs={protocol.epochs} is below 1; the default is {Protocol.epochs}")


def commands_control(source: Path, protocol: Protocol, *, say: Callable[[str], None] = print) -> dict[str, Any]:
    """How far this network gets on the task ``commands``: what its clips can teach a model that is made for speech.

    It trains on the training split alone and hears what ``audio-commands`` hears: the same clips, whole, in mu-law.

    Raises:
        TaskError: no epoch, or more words than the network has answers.
    """
    _check_epochs(protocol)
    task = make_task("commands", source=source)
    assert isinstance(task, WordClips)
    if len(task.words) > len(DIGITS):
        raise TaskError(
            f"commands: the network has {len(DIGITS)} answers, {len(task.words)} words were found; "
            "give a source of fewer"
        )
    train, validation, test = (clips_of([task], (split,)) for split in SPLITS)
    network = _fit(train, protocol, say)
    return {
        "what": "the digits' log-Mel network on the task commands",
        "words": list(task.words),
        "num_parameters": sum(parameter.numel() for parameter in network.parameters()),
        "protocol": asdict(protocol),
        "source": {"sha256": task.provenance.sha256, "note": task.provenance.note},
        "clips": {"train": len(train), "validation": len(validation), "test": len(test)},
        "chance": task.chance,
        "accuracy": {
            name: _accuracy(network, clips)["accuracy"]
            for name, clips in {"train": train, "validation": validation, "test": test}.items()
        },
    }


def _fit(train: Clips, protocol: Protocol, say: Callable[[str], None]) -> DigitClassifier:
    rng = torch.Generator().manual_seed(protocol.seed)
    with torch.random.fork_rng(devices=[]):  # initialisation and dropout draw from the global generator
        torch.manual_seed(protocol.seed)
        network = DigitClassifier()
        optimizer = torch.optim.AdamW(network.parameters(), lr=protocol.lr, weight_decay=protocol.weight_decay)
        steps_per_epoch = -(-len(train) // protocol.batch)
        schedule = torch.optim.lr_scheduler.OneCycleLR(
            optimizer, protocol.lr, total_steps=protocol.epochs * steps_per_epoch
        )
        weights_N = _source_weights(train)
        network.train()
        for epoch in range(protocol.epochs):
            total = 0.0
            order_N = torch.multinomial(weights_N, steps_per_epoch * protocol.batch, replacement=True, generator=rng)
            for chosen in order_N.split(protocol.batch):
                spectrogram_NMT = network.spectrogram(disturb(train.heard_NL[chosen], rng))
                _, logits_NK = network(mask(spectrogram_NMT, rng))
                loss = F.cross_entropy(logits_NK, train.labels_N[chosen])
                optimizer.zero_grad(set_to_none=True)
                loss.backward()
                optimizer.step()
                schedule.step()
                total += float(loss.detach())
            say(f"epoch {epoch + 1}/{protocol.epochs}: loss {total / steps_per_epoch:.3f}")
    return network.eval()


def _source_weights(train: Clips) -> Tensor:
    """Clips are drawn so that a speaker counts by the root of how many clips he has: few have hundreds."""
    counts = {speaker: train.speakers.count(speaker) for speaker in set(train.speakers)}
    return torch.tensor([counts[speaker] ** -0.5 for speaker in train.speakers])


def disturb(heard_NL: Tensor, rng: torch.Generator) -> Tensor:
    """Another speed and pitch by up to a fifth, place, loudness and noise for every clip."""
    num_clips, num_samples = heard_NL.shape
    speed_N1 = 0.8 + 0.4 * torch.rand(num_clips, 1, generator=rng)
    # A clip's end is kept, since silence stands in front; then it moves by up to a quarter of a second either way.
    shift_N1 = (torch.rand(num_clips, 1, generator=rng) - 0.5) * SAMPLE_RATE_HZ / 2
    places_NL = (torch.arange(num_samples) - (num_samples - 1) + shift_N1) * speed_N1 + (num_samples - 1)
    below_NL = places_NL.floor().clamp(0, num_samples - 2).long()
    share_NL = places_NL - below_NL
    moved_NL = torch.lerp(heard_NL.gather(1, below_NL), heard_NL.gather(1, below_NL + 1), share_NL.clamp(0, 1))
    moved_NL = moved_NL * ((places_NL >= 0) & (places_NL <= num_samples - 1))
    gain_N1 = 10 ** (1.2 * torch.rand(num_clips, 1, generator=rng) - 0.8)
    loud_NL = moved_NL * gain_N1
    level_N1 = loud_NL.square().mean(1, keepdim=True).sqrt() * 10 ** (-3 * torch.rand(num_clips, 1, generator=rng))
    return (loud_NL + level_N1 * torch.randn(heard_NL.shape, generator=rng)).clamp(-1, 1)


def mask(spectrogram_NMT: Tensor, rng: torch.Generator) -> Tensor:
    """SpecAugment's masks (Park et al. 2019), one in time and one in frequency; half of the clips lose what lies
    above 4 kHz, as recordings at 8 kHz have it."""
    num_clips, num_bands, num_frames = spectrogram_NMT.shape
    kept_NMT = _stripe(num_clips, num_frames, 20, rng)[:, None] & _stripe(num_clips, num_bands, 6, rng)[:, :, None]
    narrow_N = torch.rand(num_clips, generator=rng) < 0.5
    high_M = torch.arange(num_bands) >= round(0.75 * num_bands)  # 4 kHz on the Mel scale to 8 kHz
    return spectrogram_NMT * (kept_NMT & ~(narrow_N[:, None] & high_M)[:, :, None])


def _stripe(num_clips: int, length: int, most: int, rng: torch.Generator) -> Tensor:
    """False in one stretch of up to ``most`` places of every row."""
    width_N1 = torch.randint(0, most + 1, (num_clips, 1), generator=rng)
    start_N1 = (torch.rand(num_clips, 1, generator=rng) * (length - width_N1 + 1)).long()
    places = torch.arange(length)
    return (places < start_N1) | (places >= start_N1 + width_N1)


def _accuracy(network: DigitClassifier, clips: Clips) -> dict[str, Any]:
    """Share of right answers with Wilson's interval over clips, which holds for these speakers alone."""
    _, log_probs_NK = hear(network, clips.heard_NL)
    correct_N = (log_probs_NK.argmax(1) == clips.labels_N).numpy()
    speakers = np.array(clips.speakers)
    return {
        "accuracy": wilson(int(correct_N.sum()), len(clips)).as_dict(),
        "by_speaker": {name: round(float(correct_N[speakers == name].mean()), 4) for name in sorted({*clips.speakers})},
    }
