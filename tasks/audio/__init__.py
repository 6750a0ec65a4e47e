"""Next-sample prediction of audio."""

from tasks.audio.music import Music
from tasks.audio.speech import Speech

__all__ = ["Music", "Speech"]
