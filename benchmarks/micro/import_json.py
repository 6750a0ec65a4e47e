"""pytest-benchmark's JSON as records, which ``seqbench gate`` judges by the suite's own rule.

``python -m benchmarks.micro.import_json FILE.json --out DIR`` appends to ``DIR/records.jsonl``. Only benchmarks that
carry a trial in their ``extra_info`` become records; others are counted and named. Of many rounds, which follow each
other in time, at most :data:`MAX_SAMPLES` evenly spaced ones are kept.
"""

import argparse
import json
import math
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from harness import Record, RecordsError, RecordWriter, Trial, write_environment

MAX_SAMPLES = 200


def records_of(content: Mapping[str, Any], name: str = "the JSON") -> tuple[list[Record], dict[str, Any], list[str]]:
    """Records, the environment that they name, and warnings.

    Raises RecordsError for what is no JSON of pytest-benchmark, or was written without its samples or environment.
    """
    try:
        benchmarks, machine, when = content["benchmarks"], content["machine_info"], str(content["datetime"])
    except (KeyError, TypeError) as error:
        raise RecordsError(f"{name} is no JSON of pytest-benchmark; write one with --benchmark-json FILE") from error
    own = machine.get("seqbench")
    if not own:
        raise RecordsError(f"{name} names no environment; run the micro benchmarks from this checkout (make micro)")
    records, warnings = [], []
    for benchmark in benchmarks:
        if "trial" not in benchmark.get("extra_info", {}):
            warnings.append(f"{benchmark.get('fullname')}: extra_info has no trial; left out")
            continue
        records.append(_record_of(benchmark, str(own["env_id"]), when, name))
    return records, own["environment"], warnings


def _record_of(benchmark: Mapping[str, Any], env_id: str, when: str, name: str) -> Record:
    stats, extra = benchmark["stats"], benchmark["extra_info"]
    if not stats.get("data"):
        raise RecordsError(f"{name} holds no samples; write it with --benchmark-json or --benchmark-save-data")
    trial = Trial.from_dict(extra["trial"])
    rounds: Sequence[float] = stats["data"]  # seconds of a call, whatever the number of calls in a round
    samples_ms = [round(1e3 * s, 7) for s in rounds[:: math.ceil(len(rounds) / MAX_SAMPLES)]]
    metrics = {
        "latency_ms": samples_ms,
        "calls_per_sample": int(stats.get("iterations", 1)),
    }
    return Record(
        trial_id=extra["trial_id"], trial=trial, status="ok", env_id=env_id, started_at=when,
        wall_s=float(sum(rounds)) * int(stats.get("iterations", 1)), metrics=metrics, backend=extra.get("backend", {}),
    )  # fmt: skip


def import_json(path: Path, out: Path) -> int:
    """Append the file's records to ``out/records.jsonl``, their environment beside it; returns how many.

    Raises RecordsError for a file that cannot be read or is something else.
    """
    try:
        content = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise RecordsError(f"cannot read {path} ({error}); write it with --benchmark-json {path}") from error
    records, environment, warnings = records_of(content, str(path))
    for warning in warnings:
        print(f"note: {warning}", file=sys.stderr)
    if not records:
        raise RecordsError(f"{path} holds no benchmark that carries a trial; run those of benchmarks/micro")
    with RecordWriter(out) as writer:
        for record in records:
            writer.append(record)
    write_environment(out, records[0].env_id, environment)
    return len(records)


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.micro.import_json", description="Records of a JSON.")
    parser.add_argument("json", type=Path, metavar="FILE.json", help="what --benchmark-json wrote")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder of the records")
    arguments = parser.parse_args(argv)
    try:
        count = import_json(arguments.json, arguments.out)
    except RecordsError as error:
        print(f"import_json: {error}", file=sys.stderr)
        return 2
    print(f"{count} records in {arguments.out}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
