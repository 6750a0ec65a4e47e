"""Short spoken words, one token a sample."""

import re
from collections.abc import Iterator
from pathlib import PurePosixPath

from tasks.archive import Member
from tasks.audio import embedded_speech
from tasks.audio.music import AUDIO_SUFFIXES
from tasks.audio.waveform import NUM_LEVELS, tokens_from_file
from tasks.corpus import CorpusTask
from tasks.prepared import RawDocument
from tasks.sources import Layout, SourceSpec

SPEECH_COMMAND = re.compile(r"(?P<speaker>.+)_nohash_\d+$")
"""Name of a Speech Commands clip without its ending: speaker_nohash_k."""
FREE_SPOKEN_DIGIT = re.compile(r"(?P<digit>\d)_(?P<speaker>[a-z]+)_\d+$")
"""Of a clip of the Free Spoken Digit Dataset: digit_speaker_i."""

BACKGROUND_FOLDER = "_background_noise_"
"""Speech Commands' minutes of noise, which hold no speech (torchaudio's data set passes over them too)."""


class Speech(CorpusTask):
    """Predict the next sample of short spoken words.

    16 kHz, mono, 256 mu-law levels (128 is silence); splits are by speaker where files are named
    ``speaker_nohash_k.wav`` (Speech Commands) or ``digit_speaker_i.wav``, by file elsewhere.

    >>> from tasks.base import ExampleStream
    >>> task = Speech()
    >>> tuple(task.sample(ExampleStream(seed=0), 2, 256).inputs_BL.shape)
    (2, 256)
    >>> task.max_seq_len("test")
    15999
    """

    name = "speech"
    version = 1
    modality = "audio"
    vocab_size = NUM_LEVELS
    embedded_note = embedded_speech.NOTE
    spec = SourceSpec(
        task="speech",
        suffixes=AUDIO_SUFFIXES,
        layouts=(
            Layout(name="speech_commands_test", globs=("audio/speech_commands_*test*/*.tar.xz",)),
            Layout(name="speech_commands", globs=("audio/[Ss]peech*[Cc]ommands*/**/*",)),
        ),
    )

    def documents_of(self, member: Member, notes: set[str]) -> Iterator[RawDocument]:
        if BACKGROUND_FOLDER in PurePosixPath(member.name).parts:
            notes.add(f"left out {BACKGROUND_FOLDER}")
            return
        yield RawDocument(name=member.name, group=speaker_of(member.name), tokens=tokens_from_file(member, notes))

    @classmethod
    def embedded_sha256(cls) -> str:
        return embedded_speech.sha256()

    def embedded_documents(self) -> Iterator[RawDocument]:
        return embedded_speech.documents()


def speaker_of(name: str) -> str:
    """
    >>> speaker_of("yes/0a7c2a8d_nohash_1.wav"), speaker_of("3_jackson_12.wav"), speaker_of("clips/me.wav")
    ('0a7c2a8d', 'jackson', 'clips/me.wav')
    """
    for pattern in (SPEECH_COMMAND, FREE_SPOKEN_DIGIT):
        if match := pattern.match(PurePosixPath(name).stem):
            return match["speaker"]
    return name
