"""How it is measured: trials, processes, clocks, memory, prediction, records, statistics.

Knows nothing of models and tasks. The names below are the public surface; ``torch`` is imported
only where a measurement needs it, so that the command line stays quick.
"""

from harness.outcomes import CutShort, NonFiniteLoss, TrialFailure, Unsupported, WrongOutput
from harness.records import Record, RecordsError, RecordWriter, read_environment, read_records, write_environment
from harness.trials import STATUSES, Direction, Kind, Status, Trial, format_length, parse_length, parse_lengths

__all__ = [
    "STATUSES",
    "CutShort",
    "Direction",
    "Kind",
    "NonFiniteLoss",
    "Record",
    "RecordWriter",
    "RecordsError",
    "Status",
    "Trial",
    "TrialFailure",
    "Unsupported",
    "WrongOutput",
    "format_length",
    "parse_length",
    "parse_lengths",
    "read_environment",
    "read_records",
    "write_environment",
]
