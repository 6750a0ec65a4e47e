"""Next-base prediction of DNA."""

from tasks.dna.genome import Dna

__all__ = ["Dna"]
