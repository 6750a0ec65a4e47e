"""What a model must do to be measured: a suite of checks on a factory, whoever wrote it.

:data:`CHECKS` maps names to checks; each says in its docstring what it demands and why. A finding says
which value broke which limit, and what the likely cause is. See ``docs/own-model.md``.
"""

from models.conformance.subject import BuildError, CheckFailed, Factory, NotApplicable, Subject
from models.conformance.suite import CHECKS, Finding, run_checks

__all__ = ["CHECKS", "BuildError", "CheckFailed", "Factory", "Finding", "NotApplicable", "Subject", "run_checks"]
