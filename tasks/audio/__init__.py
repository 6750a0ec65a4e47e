"""Next-sample prediction of audio, and which word a clip holds."""

from tasks.audio.commands import Commands
from tasks.audio.digits import Digits
from tasks.audio.music import Music
from tasks.audio.speech import Speech

__all__ = ["Commands", "Digits", "Music", "Speech"]
