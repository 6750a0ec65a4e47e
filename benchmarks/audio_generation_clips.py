"""What audio is generated from, the real sound beside it, and the wav files of both.

Shape suffixes: B batch, L prompt length, N new samples, K clips.
"""

import wave
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from harness import Trial, Unsupported
from tasks import Task, TaskError
from tasks.audio.clips import SILENCE
from tasks.audio.waveform import NUM_LEVELS, SAMPLE_RATE_HZ, mu_law_decode
from tasks.base import MIN_SEQ_LEN
from tasks.corpus import CorpusTask

MAX_CLIPS = 8
"""Clips that are kept of a trial: as many as the report plays of a model."""
_BYTES_PER_SAMPLE = 2


def check_task(task: Task) -> CorpusTask:
    """The task, if its tokens are samples of sound and nothing else. Raises Unsupported."""
    if not isinstance(task, CorpusTask) or task.modality != "audio" or task.vocab_size != NUM_LEVELS:
        raise Unsupported(
            f"task {task.name!r} has {task.vocab_size} tokens of {task.modality}: generation of audio needs the "
            f"{NUM_LEVELS} mu-law levels alone; use a task such as audio, speech or digits"
        )
    return task


def prompt_and_real(trial: Trial, task: CorpusTask) -> tuple[Tensor, Tensor]:
    """``(B, L)`` what every sequence starts from, and ``(K, N)`` real samples: the test data's own continuations.

    From silence every prompt is the same. Windows of the test split are spaced evenly, and taken again from the first
    where the batch has more sequences than the split has windows. Where clips end sooner than prompt and new samples
    together, the real ones are shorter than N.

    Raises:
        Unsupported: a prompt that is as long as the longest clip, or that no clip can give.
    """
    new_samples, from_data = trial.protocol["new_samples"], trial.protocol["start"] == "data"
    longest = task.max_seq_len("test")
    prompt_len = trial.seq_len if from_data else 1
    if from_data and not MIN_SEQ_LEN <= prompt_len < longest:
        raise Unsupported(
            f"a prompt of {prompt_len} samples is outside {MIN_SEQ_LEN}..{longest - 1}: the longest clip of the test "
            f"split of {task.name} has {longest} samples; use a prompt in that range, or start: silence"
        )
    # The target of a window's last input is a sample more: of N inputs from the prompt's last on, N targets.
    seq_len = min(max(prompt_len - 1 + new_samples, MIN_SEQ_LEN), longest)
    wanted = trial.batch if from_data else min(trial.batch, MAX_CLIPS)
    try:
        windows = task.evaluation_windows("test", seq_len, wanted)
    except TaskError as error:
        raise Unsupported(str(error)) from error
    batch = task.windows(windows.starts, seq_len, device="cpu")
    real_KN = batch.targets_BL[:MAX_CLIPS, prompt_len - 1 :][:, :new_samples]
    if not from_data:
        return torch.full((trial.batch, trial.seq_len), SILENCE, dtype=torch.int64), real_KN
    rows_B = torch.arange(trial.batch) % len(windows)
    return batch.inputs_BL[rows_B, :prompt_len].contiguous(), real_KN


def write_clips(folder: Path, generated_BN: Tensor, real_KN: Tensor) -> dict[str, Any]:
    """Up to :data:`MAX_CLIPS` wav files of each kind, whole or not at all; what the record says of them."""
    folder.mkdir(parents=True, exist_ok=True)
    kept: dict[str, Any] = {"folder": f"{folder.parent.name}/{folder.name}", "sample_rate_hz": SAMPLE_RATE_HZ}
    for kind, tokens_KN in (("generated", generated_BN[:MAX_CLIPS]), ("real", real_KN)):
        kept[kind] = []
        for number, waveform_N in enumerate(mu_law_decode(tokens_KN.cpu())):
            name = f"{kind}-{number}.wav"
            write_wav(folder / name, waveform_N)
            kept[kind].append({"file": name, "rms": round(float(waveform_N.square().mean().sqrt()), 6)})
    return kept


def write_wav(path: Path, waveform_N: Tensor) -> None:
    """Samples in [-1, 1] as 16-bit PCM, mono, 16 kHz."""
    pcm_N = (waveform_N.clamp(-1, 1) * (2**15 - 1)).round().to(torch.int16)
    partial = path.with_suffix(".tmp")
    with partial.open("wb") as raw, wave.open(raw, "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(_BYTES_PER_SAMPLE)
        file.setframerate(SAMPLE_RATE_HZ)
        file.writeframes(pcm_N.numpy().astype("<i2").tobytes())
    partial.replace(path)


def score_speech(trial: Trial, generated_BN: Tensor) -> Mapping[str, Any]:
    """FID and its kin of spoken digits of one second from silence; of other sounds the classifier can say nothing."""
    if trial.task != "digits" or trial.protocol["start"] != "silence" or generated_BN.shape[1] != SAMPLE_RATE_HZ:
        reason = "scored are clips of spoken digits (task digits), one second each, from silence"
        return {"status": "unsupported", "reason": reason}
    try:
        from benchmarks.speech_metrics import score_clips

        return {"status": "ok", **score_clips(mu_law_decode(generated_BN.cpu()), SAMPLE_RATE_HZ)}
    except (ImportError, OSError, ValueError) as error:  # no classifier here, or too few clips
        return {"status": "unsupported", "reason": str(error)}
