"""Next-byte prediction of text."""

from tasks.language.text import Language

__all__ = ["Language"]
