"""Spoken digits, one token a sample: what SC09 is made of."""

from pathlib import Path

from tasks.audio.clips import CLIP_SUFFIXES, DIGITS, WordClips
from tasks.audio.waveform import NUM_LEVELS
from tasks.sources import Layout, SourceSpec


class Digits(WordClips):
    """Predict the next sample of spoken digits of one second.

    16 kHz, mono, 256 mu-law levels. One sample of silence (128) stands before every clip, so that 16,000 inputs have
    all of a clip's samples as their targets, the first one too: a model that is given 128 goes on unconditionally.
    Sources: SC09 (the digits of Speech Commands), or the Free Spoken Digit Dataset at 8 kHz, resampled.

    >>> from tasks.base import ExampleStream
    >>> task = Digits()
    >>> batch = task.sample(ExampleStream(seed=0), 2, 16000)
    >>> batch.inputs_BL[:, 0].tolist(), tuple(batch.targets_BL.shape)
    ([128, 128], (2, 16000))
    >>> task.max_seq_len("test")
    16000
    """

    name = "digits"
    version = 1
    vocab_size = NUM_LEVELS
    lead_len = 1
    spec = SourceSpec(
        task="digits",
        suffixes=CLIP_SUFFIXES,
        layouts=(
            Layout(
                name="SC09",
                globs=(
                    *(f"audio/**/speech_commands_v0.0[12]/{word}/*" for word in DIGITS),
                    "audio/**/speech_commands_v0.0[12]/*_list.txt",
                    "audio/**/speech_commands_v0.0[12].tar*",
                ),
            ),
            Layout(name="fsdd", globs=("audio/fsdd/**/*", "audio/free-spoken-digit-dataset*/**/*")),
            Layout(name="speech_commands", globs=("audio/[Ss]peech*[Cc]ommands*/**/*",)),
        ),
    )

    def __init__(self, *, data_root: Path | None = None, source: Path | None = None) -> None:
        self.wanted = DIGITS
        super().__init__(data_root=data_root, source=source)
