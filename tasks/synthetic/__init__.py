"""Generated probes: unlimited, exact, and of any length."""

from tasks.synthetic.induction_heads import InductionHeads
from tasks.synthetic.selective_copying import SelectiveCopying

__all__ = ["InductionHeads", "SelectiveCopying"]
