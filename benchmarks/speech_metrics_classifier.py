"""The classifier of spoken digits behind the scores of generated speech: a small CNN on log-Mel spectrograms.

It hears what the models of the task ``digits`` hear: one second at 16 kHz through 8-bit mu-law, silence in front of a
shorter clip. Its weights are committed with what it takes to train them again (``classifier.json`` beside them).

Shape suffixes: N clips, L samples, M Mel bands, T frames, C channels, F features, K classes.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from harness.generation_scores import Moments
from tasks.audio.clips import CLIP_LEN, DIGITS
from tasks.audio.torchaudio_import import import_torchaudio
from tasks.audio.waveform import SAMPLE_RATE_HZ, mu_law_decode, mu_law_encode
from tasks.cache import file_sha256

ROOT = Path(__file__).parent.parent
DEFAULT_FOLDER = ROOT / "results" / "cpu" / "speech_classifier"
WEIGHTS, ABOUT = "weights.pt", "classifier.json"

NUM_FEATURES = 32
"""Few, so that a few dozen clips have a covariance of them."""
NUM_BANDS = 40
_FFT_LEN, _HOP_LEN = 512, 160
_CHANNELS = (24, 48, 64, 64)
_FLOOR = 1e-5
"""Energy of a Mel band that counts as silence: 8-bit mu-law has noise of about this size."""
_BATCH = 64


class DigitClassifier(nn.Module):
    """Four convolutions over time and frequency, their mean and maximum over time, ``NUM_FEATURES``, ten digits."""

    scale: Tensor
    """Of the features: root of their mean variance over the training clips, the unit that FID is then in."""

    def __init__(self) -> None:
        super().__init__()
        banks_BM = import_torchaudio().functional.melscale_fbanks(
            _FFT_LEN // 2 + 1, 20.0, SAMPLE_RATE_HZ / 2, NUM_BANDS, SAMPLE_RATE_HZ
        )
        self.register_buffer("banks", banks_BM, persistent=False)
        self.register_buffer("window", torch.hann_window(_FFT_LEN), persistent=False)
        blocks: list[nn.Module] = []
        width = 1
        for channels in _CHANNELS:
            blocks += [nn.Conv2d(width, channels, 3, padding=1, bias=False), nn.BatchNorm2d(channels), nn.ReLU()]
            blocks.append(nn.MaxPool2d(2))
            width = channels
        self.convolutions = nn.Sequential(*blocks)
        self.to_features = nn.Linear(2 * width * (NUM_BANDS // 2 ** len(_CHANNELS)), NUM_FEATURES)
        self.dropout = nn.Dropout(0.3)
        self.register_buffer("scale", torch.ones(()))
        self.to_digits = nn.Linear(NUM_FEATURES, len(DIGITS))

    def spectrogram(self, waveform_NL: Tensor) -> Tensor:
        """Log-Mel energies ``(N, M, T)``, 0 for silence, about 1 for speech."""
        stft_NBT = torch.stft(waveform_NL, _FFT_LEN, _HOP_LEN, window=self.window, return_complex=True)  # type: ignore[arg-type]
        power_NBT = stft_NBT.abs().square() / _FFT_LEN
        energy_NMT = torch.einsum("nbt,bm->nmt", power_NBT, self.banks)
        return torch.log1p(energy_NMT / _FLOOR) / 10

    def forward(self, spectrogram_NMT: Tensor) -> tuple[Tensor, Tensor]:
        """Features ``(N, F)`` and logits ``(N, K)``."""
        hidden_NCMT = self.convolutions(spectrogram_NMT[:, None])
        pooled = torch.cat([hidden_NCMT.mean(-1), hidden_NCMT.amax(-1)], 1).flatten(1)
        features_NF = F.relu(self.to_features(pooled))
        return features_NF / self.scale, self.to_digits(self.dropout(features_NF))


@dataclass(frozen=True, kw_only=True)
class TrainedClassifier:
    """The network, the moments of the real clips that it was trained on, and what is known of it."""

    network: DigitClassifier
    reference: Moments
    about: Mapping[str, Any]


def hear(classifier: DigitClassifier, waveform_NL: Tensor) -> tuple[Tensor, Tensor]:
    """Features ``(N, F)`` and logarithms of the answers ``(N, K)``, in float64, of clips of one second."""
    classifier.eval()
    features, log_probs = [], []
    with torch.inference_mode():
        for part_NL in waveform_NL.split(_BATCH):
            features_NF, logits_NK = classifier(classifier.spectrogram(part_NL))
            features.append(features_NF.double())
            log_probs.append(F.log_softmax(logits_NK.double(), -1))
    return torch.cat(features), torch.cat(log_probs)


def as_heard(waveforms_NL: Tensor, sample_rate_hz: int) -> Tensor:
    """Clips as the classifier takes them: one second in float32, through 8-bit mu-law.

    Raises:
        ValueError: not ``(clips, samples)``, another rate than 16 kHz, longer than a second, samples that are not
            finite or beyond [-1, 1].
    """
    if sample_rate_hz != SAMPLE_RATE_HZ:
        raise ValueError(f"sample_rate={sample_rate_hz} Hz: clips are scored at {SAMPLE_RATE_HZ} Hz; resample them")
    if waveforms_NL.dim() != 2 or 0 in waveforms_NL.shape:
        raise ValueError(f"waveforms of shape {tuple(waveforms_NL.shape)} are not (clips, samples) with one of each")
    num_samples = waveforms_NL.shape[1]
    if num_samples > CLIP_LEN:
        raise ValueError(f"clips of {num_samples} samples are longer than a second ({CLIP_LEN}); cut them")
    waveforms_NL = waveforms_NL.detach().cpu().float()
    if not bool(torch.isfinite(waveforms_NL).all()):
        clip, sample = torch.nonzero(~torch.isfinite(waveforms_NL))[0].tolist()
        raise ValueError(f"clip {clip}: sample {sample} is not a finite number")
    if (peak := float(waveforms_NL.abs().max())) > 1:
        clip = int(waveforms_NL.abs().amax(1).argmax())
        raise ValueError(f"clip {clip}: a sample of size {peak:g} is beyond [-1, 1]; scale the clips")
    padded_NL = F.pad(waveforms_NL, (CLIP_LEN - num_samples, 0))
    return mu_law_decode(torch.from_numpy(mu_law_encode(padded_NL)))


def save_classifier(trained: TrainedClassifier, folder: Path) -> None:
    """Weights and reference as tensors; the rest as JSON, with the sha256 of the tensors' file."""
    folder.mkdir(parents=True, exist_ok=True)
    reference = trained.reference
    tensors = {
        "network": {name: tensor.clone() for name, tensor in trained.network.state_dict().items()},
        "reference": {
            "mean_F": torch.from_numpy(reference.mean_F),
            "covariance_FF": torch.from_numpy(reference.covariance_FF),
            "marginal_K": torch.from_numpy(reference.marginal_K),
        },
        "num_items": reference.num_items,
    }
    torch.save(tensors, folder / WEIGHTS)
    about = {**trained.about, "weights_sha256": file_sha256(folder / WEIGHTS)}
    (folder / ABOUT).write_text(json.dumps(about, indent=2) + "\n")


def load_classifier(folder: Path = DEFAULT_FOLDER) -> TrainedClassifier:
    """What :func:`save_classifier` wrote.

    Raises:
        ValueError: no classifier there, damaged, or of another shape than this version's.
    """
    try:
        about = json.loads((folder / ABOUT).read_text())
        if (found := file_sha256(folder / WEIGHTS)) != about["weights_sha256"]:
            raise ValueError(
                f"{folder / WEIGHTS}: its sha256 is {found[:12]}…, {ABOUT} says {about['weights_sha256'][:12]}…; "
                "fetch or train it again"
            )
        tensors = torch.load(folder / WEIGHTS, map_location="cpu", weights_only=True)
        network = DigitClassifier()
        network.load_state_dict(tensors["network"])
        reference = {name: tensor.numpy() for name, tensor in tensors["reference"].items()}
        moments = Moments(**reference, num_items=tensors["num_items"])
    except FileNotFoundError as error:
        raise ValueError(
            f"{folder}: no classifier ({Path(error.filename).name} is missing); "
            "train one (python -m benchmarks.speech_metrics train)"
        ) from error
    except (RuntimeError, KeyError, TypeError, json.JSONDecodeError) as error:
        reason = str(error).splitlines()[0]
        raise ValueError(f"{folder}: not a classifier of this version ({reason}); train it again") from error
    return TrainedClassifier(network=network.eval(), reference=moments, about=about)
