"""One-second clips of single words: who says what, how long a clip is, and the published splits.

Two layouts are read, alone or mixed: Speech Commands' (``word/speaker_nohash_k.wav`` with ``validation_list.txt`` and
``testing_list.txt``, what torchaudio's ``SPEECHCOMMANDS`` unpacks) and the Free Spoken Digit Dataset's
(``digit_speaker_i.wav``). Every clip becomes 16,000 samples at 16 kHz, in mu-law tokens.
"""

import hashlib
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from functools import cached_property
from pathlib import PurePosixPath
from typing import ClassVar

import numpy as np

from tasks.archive import Member
from tasks.audio import embedded_speech
from tasks.audio.music import AUDIO_SUFFIXES
from tasks.audio.speech import BACKGROUND_FOLDER, FREE_SPOKEN_DIGIT, SPEECH_COMMAND, speaker_of
from tasks.audio.waveform import NUM_LEVELS, SAMPLE_RATE_HZ, tokens_from_file
from tasks.base import SPLITS, Split, TaskError
from tasks.corpus import CorpusTask
from tasks.prepared import Corpus, Document, RawDocument, TokenArray
from tasks.sources import ResolvedSource
from tasks.splits import Splits, split_documents

CLIP_LEN = SAMPLE_RATE_HZ
SILENCE = NUM_LEVELS // 2

DIGITS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
COMMANDS = ("down", "go", "left", "no", "off", "on", "right", "stop", "up", "yes")
"""Speech Commands' ten command words."""

LISTS: dict[str, Split] = {"validation_list.txt": "validation", "testing_list.txt": "test"}
CLIP_SUFFIXES = (*AUDIO_SUFFIXES, *LISTS)

_LIST_GROUP = "published list"
_HASHES = 2**27
_NOISE, _OTHER, _PADDED, _PADDING, _CUT = "noise", "other words", "padded", "padding", "cut"


def word_of(name: str) -> str | None:
    """What is said in a clip, by its name; None where the name does not tell.

    >>> word_of("v2/yes/0a7c_nohash_1.wav"), word_of("recordings/3_jackson_12.wav"), word_of("me.wav")
    ('yes', 'three', None)
    """
    path = PurePosixPath(name)
    if match := FREE_SPOKEN_DIGIT.match(path.stem):
        return DIGITS[int(match["digit"])]
    return path.parent.name or None


def published_split(speaker: str) -> Split:
    """Speech Commands' rule, from its README: a tenth of the speakers each to validation and test, by the SHA-1.

    >>> published_split("026290a7"), published_split("0c40e715"), published_split("62581901")
    ('validation', 'test', 'train')
    """
    # The README divides by 2^27 - 1 where it took the remainder by 2^27.
    percent = int(hashlib.sha1(speaker.encode()).hexdigest(), 16) % _HASHES * (100 / (_HASHES - 1))
    return "validation" if percent < 10 else "test" if percent < 20 else "train"


class WordClips(CorpusTask):
    """Base of the tasks on clips of single words.

    A shorter clip gets silence in front, a longer one loses its end; the record's note counts both. Splits are the
    source's lists, else the published rule; where that leaves a split empty, or the clips are not Speech Commands',
    speakers are dealt by the sha256 of their names.
    """

    modality = "audio"
    embedded_note = "embedded synthetic speech: pairs of source-filter vowels stand for the words, no recording"
    lead_len: ClassVar[int] = 0
    """Samples of silence before every clip, in addition to its own."""
    wanted: tuple[str, ...] | None
    """The words that are read, in the order of their labels; None: all. Set before the base's ``__init__``."""

    @cached_property
    def words(self) -> tuple[str, ...]:
        """In the order of their labels.

        Raises:
            TaskError: a word that was asked for has no clip, or there is only one word.
        """
        found = sorted({word for clip in self.clips if (word := word_of(clip.name))})
        if self.wanted is not None and (missing := [word for word in self.wanted if word not in found]):
            raise TaskError(
                f"{self.name}: no clip of {', '.join(missing)}; the source has {', '.join(found)} among the words "
                f"asked for; choose other words, or another source (--source {self.name}=PATH)"
            )
        if len(found) < 2:
            raise TaskError(
                f"{self.name}: only clips of {', '.join(found)} were found; "
                "a source needs two words at least, a folder each"
            )
        return self.wanted or tuple(found)

    @cached_property
    def clips(self) -> tuple[Document, ...]:
        return tuple(document for document in self.corpus.documents if document.group != _LIST_GROUP)

    def label_of(self, clip: Document) -> int:
        """The place of its word in :attr:`words`."""
        word = word_of(clip.name)
        assert word is not None, "others are not read"
        return self.words.index(word)

    def preparation_options(self) -> dict[str, str | int | float | bool]:
        return {"words": " ".join(self.wanted) if self.wanted else "all"}

    def reads(self, name: str) -> bool:
        """Lists, and clips of the words that are wanted; counts the others."""
        path = PurePosixPath(name)
        if path.name in LISTS:
            return True
        word = word_of(name)
        if BACKGROUND_FOLDER in path.parts:
            left_out = _NOISE
        elif word is None or (self.wanted is not None and word not in self.wanted):
            left_out = _OTHER
        else:
            return True
        self._counts[left_out] += 1
        return False

    def documents_of(self, member: Member, notes: set[str]) -> Iterator[RawDocument]:
        file_name = PurePosixPath(member.name).name
        if file_name in LISTS:  # kept beside the clips as its bytes: the splits are made from the prepared corpus
            yield RawDocument(name=file_name, group=_LIST_GROUP, tokens=np.frombuffer(member.data, np.uint8))
            return
        tokens_L = tokens_from_file(member, notes)
        if len(tokens_L):
            self._counts[_PADDED] += len(tokens_L) < CLIP_LEN
            self._counts[_PADDING] += max(0, CLIP_LEN - len(tokens_L))
            self._counts[_CUT] += len(tokens_L) > CLIP_LEN
            tokens_L = self._one_second(tokens_L)
        yield RawDocument(name=member.name, group=speaker_of(member.name), tokens=tokens_L)

    def deal(self) -> tuple[Splits, tuple[str, ...]]:
        _ = self.words  # refuses words without clips
        if self.layout == "embedded":
            return split_documents(self.clips)
        prescribed, rule = self._prescribed()
        if prescribed:
            splits: Splits = {
                split: tuple(clip for clip in self.clips if prescribed[clip.name] == split) for split in SPLITS
            }
            empty = [split for split in SPLITS if not splits[split]]
            if not empty:
                return splits, (f"splits by {rule}", *self._untrained(splits))
            rule = f"{rule} leaves {' and '.join(empty)} empty: "
        clips, who = self.clips, "speakers"
        if (num_speakers := len({clip.group for clip in clips})) < len(SPLITS):
            # Cutting clips in time, as other data sets are cut then, would leave no whole one.
            clips = tuple(replace(clip, group=clip.name) for clip in clips)
            who = f"only {num_speakers} speaker(s), who stand in all splits: clips"
        if len({clip.group for clip in clips}) < len(SPLITS):
            raise TaskError(f"{self.name}: {len(clips)} clips are too few for three splits; name a larger source")
        splits, notes = split_documents(clips)
        return splits, (f"{rule}{who} dealt by the sha256 of their names", *notes, *self._untrained(splits))

    @classmethod
    def embedded_sha256(cls) -> str:
        return embedded_speech.sha256()

    def embedded_documents(self) -> Iterator[RawDocument]:
        words = self.wanted or COMMANDS
        if len(words) > embedded_speech.MOST_WORDS:
            raise TaskError(
                f"{self.name}: the embedded sample has {embedded_speech.MOST_WORDS} words, {len(words)} were asked "
                f"for; choose fewer, or name recordings (--data DIR, --source {self.name}=PATH)"
            )
        for raw in embedded_speech.word_documents(words):
            yield replace(raw, tokens=self._one_second(raw.tokens))

    def _build(self, resolved: ResolvedSource) -> Corpus:
        self._counts: Counter[str] = Counter()
        corpus = super()._build(resolved)
        num_samples = CLIP_LEN * sum(document.group != _LIST_GROUP for document in corpus.documents)
        padding = f"{self._counts[_PADDING] / max(num_samples, 1):.1%} of all samples"
        said = {
            _NOISE: f"left out {{}} file(s) of {BACKGROUND_FOLDER}",
            _OTHER: "left out {} clip(s) of other words",
            _PADDED: f"{{}} clip(s) shorter than a second have silence in front ({padding})",
            _CUT: "{} clip(s) longer than a second lose their end",
        }
        counted = tuple(text.format(self._counts[what]) for what, text in said.items() if self._counts[what])
        return replace(corpus, notes=corpus.notes + counted)

    def _one_second(self, tokens_L: TokenArray) -> TokenArray:
        kept_L = tokens_L[:CLIP_LEN]
        front = self.lead_len + CLIP_LEN - len(kept_L)
        padded: TokenArray = np.concatenate([np.full(front, SILENCE, np.uint8), kept_L])
        return padded

    def _prescribed(self) -> tuple[dict[str, Split], str]:
        """The split of every clip by its name, and what says so; empty where nothing does."""
        if not all(SPEECH_COMMAND.match(PurePosixPath(clip.name).stem) for clip in self.clips):
            return {}, ""
        lists = [document for document in self.corpus.documents if document.group == _LIST_GROUP]
        if {document.name for document in lists} != set(LISTS):
            return {clip.name: published_split(clip.group) for clip in self.clips}, "the published rule (SHA-1)"
        listed: dict[str, Split] = {}
        for document in lists:
            text = self.corpus.tokens_of(document).tobytes().decode(errors="replace")
            listed |= dict.fromkeys(text.split(), LISTS[document.name])
        short_names = {clip.name: "/".join(PurePosixPath(clip.name).parts[-2:]) for clip in self.clips}
        return {name: listed.get(short, "train") for name, short in short_names.items()}, "the published lists"

    def _untrained(self, splits: Splits) -> tuple[str, ...]:
        missing = sorted(set(self.words) - {str(word_of(clip.name)) for clip in splits["train"]})
        return (f"no training clip of {', '.join(missing)}",) if missing else ()
