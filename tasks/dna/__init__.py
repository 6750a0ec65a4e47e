"""Next-base prediction of DNA, and which species a stretch of it is from."""

from tasks.dna.genome import Dna
from tasks.dna.species import Species

__all__ = ["Dna", "Species"]
