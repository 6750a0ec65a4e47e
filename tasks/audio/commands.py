"""Which word is spoken in a second of raw samples."""

from collections import Counter
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path

import numpy as np
import torch

from tasks.audio.clips import CLIP_LEN, CLIP_SUFFIXES, DIGITS, SILENCE, WordClips, word_of
from tasks.audio.waveform import NUM_LEVELS
from tasks.base import IGNORE_INDEX, Batch, ExampleStream, Split, TaskError, check_seq_len
from tasks.corpus import EvaluationWindows
from tasks.prepared import Document, TokenArray
from tasks.random import derive_key, random_words, uniform_below
from tasks.sources import Layout, SourceSpec


class Commands(WordClips):
    """Tell which word a clip of one second holds.

    16 kHz, mono, 256 mu-law levels; the label is asked at the last of 16,000 positions alone. Labels are tokens after
    the levels' (256, 257, …), so that a model of task ``speech`` can go on with this one. A shorter length is the
    middle of the clip.

    Args:
        words: those to tell apart, in the order of their labels; ``digits`` for zero to nine; all of the source, in
            alphabetical order, if not given.
        shift: training clips are moved by up to so many samples either way, each time anew, and silence fills the gap.

    >>> task = Commands(words=["yes", "no"])
    >>> batch = task.sample(ExampleStream(seed=0), 4, 16000)
    >>> int((batch.targets_BL != IGNORE_INDEX).sum()), int(batch.inputs_BL.max()) < 256
    (4, True)
    >>> set(batch.targets_BL[:, -1].tolist()) <= {256, 257}
    True
    """

    name = "commands"
    version = 1
    metric = "accuracy"
    extends_vocab = ("speech", NUM_LEVELS)
    spec = SourceSpec(
        task="commands",
        suffixes=CLIP_SUFFIXES,
        layouts=(
            Layout(
                name="speech_commands",
                globs=("audio/**/speech_commands_v0.0[12]/**/*", "audio/**/speech_commands_v0.0[12].tar*"),
            ),
            Layout(name="speech_commands_test", globs=("audio/speech_commands_*test*/*.tar.xz",)),
            Layout(name="speech_commands_sample", globs=("audio/[Ss]peech*[Cc]ommands*/**/*",)),
        ),
    )

    def __init__(
        self,
        *,
        data_root: Path | None = None,
        source: Path | None = None,
        words: Sequence[str] | str | None = None,
        shift: int = 0,
    ) -> None:
        self.wanted = _checked(words)
        if not isinstance(shift, int) or not 0 <= shift < CLIP_LEN:
            raise TaskError(f"commands: shift={shift!r} must be a number of samples from 0 to {CLIP_LEN - 1}")
        self.shift = shift
        super().__init__(data_root=data_root, source=source)
        self.vocab_size = NUM_LEVELS + len(self.words)
        self.label_tokens = self.answer_tokens = range(NUM_LEVELS, self.vocab_size)

    @cached_property
    def chance(self) -> float:
        """Share of the most frequent word among the test clips: the best that one answer for all can score."""
        counts = Counter(word_of(clip.name) for clip in self.splits["test"])
        return max(counts.values()) / counts.total()

    def scored_positions(self, split: Split) -> slice:  # noqa: ARG002 (of all splits alike)
        return slice(-1, None)

    def max_seq_len(self, split: Split = "test") -> int:  # noqa: ARG002 (of all splits alike)
        return CLIP_LEN

    def sample(self, rng: ExampleStream, batch: int, seq_len: int, *, device: torch.device | str = "cpu") -> Batch:
        """Uniformly drawn clips of ``rng.split``; those of the training split are moved."""
        self._check(seq_len)
        clips = self.splits[rng.split]
        key = derive_key(self.name, self.version, rng.seed, rng.split, seq_len)
        examples_B = torch.arange(rng.start, rng.start + batch, dtype=torch.int64)
        words_B2 = random_words(key, examples_B, 2)
        drawn = [clips[number] for number in uniform_below(words_B2[:, 0], len(clips)).tolist()]
        still = self.windows([_middle(clip, seq_len) for clip in drawn], seq_len, device="cpu")
        if self.shift and rng.split == "train":
            late_B = uniform_below(words_B2[:, 1], 2 * self.shift + 1) - self.shift
            moved_BL = np.stack(
                [self._moved(clip, seq_len, by) for clip, by in zip(drawn, late_B.tolist(), strict=True)]
            )
            still.inputs_BL.copy_(torch.from_numpy(moved_BL))
        return Batch(inputs_BL=still.inputs_BL.to(device), targets_BL=still.targets_BL.to(device))

    def _moved(self, clip: Document, seq_len: int, by: int) -> TokenArray:
        """The middle of a clip that begins ``by`` samples later."""
        start = (clip.length - seq_len) // 2 - by
        low, high = max(start, 0), min(start + seq_len, clip.length)
        heard_L: TokenArray = np.full(seq_len, SILENCE, np.uint8)
        heard_L[low - start : max(high, low) - start] = self.corpus.tokens[
            clip.start + low : clip.start + max(high, low)
        ]
        return heard_L

    def windows(self, starts: "list[int] | tuple[int, ...]", seq_len: int, *, device: torch.device | str) -> Batch:
        """Stretches of clips with their clips' labels at the last position."""
        inputs_BL = np.stack([self.corpus.tokens[start : start + seq_len] for start in starts])
        places = np.searchsorted([clip.start for clip in self.clips], starts, side="right") - 1
        labels = torch.tensor([self.label_of(self.clips[place]) for place in places])
        targets_BL = torch.full(inputs_BL.shape, IGNORE_INDEX, dtype=torch.int64)
        targets_BL[:, -1] = labels + NUM_LEVELS
        return Batch(
            inputs_BL=torch.from_numpy(inputs_BL).to(device).long(),
            targets_BL=targets_BL.to(device),
        )

    def evaluation_windows(self, split: Split, seq_len: int, count: int) -> EvaluationWindows:
        """One window a clip: all clips of ``split``, or ``count`` of them evenly spaced over its words."""
        assert count > 0, count
        self._check(seq_len)
        clips = sorted(self.splits[split], key=lambda clip: (self.label_of(clip), clip.start))
        num = min(count, len(clips))
        chosen = [clips[place] for place in ((2 * np.arange(num) + 1) * len(clips)) // (2 * num)]
        starts = tuple(_middle(clip, seq_len) for clip in chosen)
        return EvaluationWindows(task=self, split=split, seq_len=seq_len, starts=starts, num_possible=len(clips))

    def _check(self, seq_len: int) -> None:
        check_seq_len(self.name, seq_len)
        if seq_len > CLIP_LEN:
            raise TaskError(
                f"commands: seq_len={seq_len} is longer than a clip of {CLIP_LEN} samples; use that or less"
            )


def _middle(clip: Document, seq_len: int) -> int:
    return clip.start + (clip.length - seq_len) // 2


def _checked(words: Sequence[str] | str | None) -> tuple[str, ...] | None:
    """The words that were asked for."""
    if words is None:
        return None
    if words == "digits":
        return DIGITS
    if isinstance(words, str):
        raise TaskError(f"commands: words={words!r} is neither 'digits' nor a list of words; give one of them")
    if strange := [word for word in words if not isinstance(word, str)]:
        raise TaskError(
            f"commands: words holds {strange[0]!r}, which is no text; in YAML put 'yes', 'no', 'on', 'off' in quotes"
        )
    if len(words) < 2 or len(set(words)) < len(words):
        raise TaskError(f"commands: words={list(words)} must be two or more different words")
    return tuple(words)
