"""One sweep's records and their frames, made once."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

# The builder is a module beside the tests; pytest puts it on the path in its default import mode only.
sys.path.insert(0, str(Path(__file__).parent))

import record_builder as builder

from reports.page import Section, sections_of


@pytest.fixture(scope="session")
def section() -> Section:
    (only,) = sections_of(builder.sweep(), {"env-a": builder.ENVIRONMENT})
    return only
