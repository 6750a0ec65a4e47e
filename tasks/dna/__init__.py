"""Next-base prediction of DNA, which species a stretch of it is from, and the classification of whole sequences."""

from tasks.dna.genome import Dna
from tasks.dna.genomic_benchmarks import GenomicBenchmarks
from tasks.dna.gue import Gue
from tasks.dna.species import Species
from tasks.dna.vertebrates import Vertebrates

__all__ = ["Dna", "GenomicBenchmarks", "Gue", "Species", "Vertebrates"]
