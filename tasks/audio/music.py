"""Music, one token a sample."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Literal

from tasks.archive import Member
from tasks.audio import embedded_music
from tasks.audio.pieces import split_pieces
from tasks.audio.waveform import NUM_LEVELS, tokens_from_file
from tasks.base import Split, TaskError
from tasks.corpus import CorpusTask
from tasks.prepared import RawDocument
from tasks.sources import Layout, SourceSpec
from tasks.splits import Splits

AUDIO_SUFFIXES = (".wav", ".flac", ".ogg", ".mp3")


class Music(CorpusTask):
    """Predict the next sample of music.

    16 kHz, mono, 256 mu-law levels (128 is silence); splits are by track.

    Args:
        files: ``tracks``, each a recording of its own, or ``pieces`` of one recording in the order of their
            names, as YouTubeMix comes: 88 / 6 / 6 % of them in that order, each split read as one.

    >>> from tasks.base import ExampleStream
    >>> task = Music()
    >>> batch = task.sample(ExampleStream(seed=0), 1, 1024)
    >>> int(batch.inputs_BL.min()) >= 0, int(batch.inputs_BL.max()) < 256
    (True, True)
    >>> task.max_seq_len("test") == 2**20
    True
    """

    name = "audio"
    version = 1
    modality = "audio"
    vocab_size = NUM_LEVELS
    embedded_note = embedded_music.NOTE
    spec = SourceSpec(
        task="audio",
        suffixes=AUDIO_SUFFIXES,
        layouts=(Layout(name="piano", globs=tuple(f"audio/piano/**/*{suffix}" for suffix in AUDIO_SUFFIXES)),),
    )

    def __init__(
        self,
        *,
        data_root: Path | None = None,
        source: Path | None = None,
        files: Literal["tracks", "pieces"] = "tracks",
    ) -> None:
        if files not in ("tracks", "pieces"):
            raise TaskError(f"audio: files={files!r} is neither 'tracks' nor 'pieces'; choose one")
        self.files = files
        super().__init__(data_root=data_root, source=source)

    def deal(self) -> tuple[Splits, tuple[str, ...]]:
        return super().deal() if self.files == "tracks" else split_pieces(self.corpus.documents)

    def documents_of(self, member: Member, notes: set[str]) -> Iterator[RawDocument]:
        yield RawDocument(name=member.name, group=member.name, tokens=tokens_from_file(member, notes))

    def fixed_splits(self) -> Mapping[str, Split] | None:
        return embedded_music.SPLIT_OF_GROUP if self.layout == "embedded" else None

    @classmethod
    def embedded_sha256(cls) -> str:
        return embedded_music.sha256()

    def embedded_documents(self) -> Iterator[RawDocument]:
        return embedded_music.documents()
