"""Records survive kills, torn lines and second writers; identities change only when they should."""

import json
import os

import pytest
from hypothesis import given
from hypothesis import strategies as st

from harness import Record, RecordsError, RecordWriter, Trial, parse_length, parse_lengths, read_records
from harness.code_version import code_version
from harness.trials import format_length


def make_trial(**changes) -> Trial:
    spec = dict(
        kind="speed", model="mamba-tiny", task=None, seq_len=1024, batch=1, dtype="float32", direction="forward",
        device="cpu", seed=0, protocol={"level": "model"},
    )  # fmt: skip
    return Trial(**(spec | changes))


def make_record(trial: Trial, status="ok", **metrics) -> Record:
    return Record(
        trial_id=trial.trial_id("code"), trial=trial, status=status, env_id="e", started_at="t", wall_s=0.1,
        metrics=metrics,
    )  # fmt: skip


def test_round_trip(tmp_path):
    trial = make_trial()
    with RecordWriter(tmp_path) as writer:
        writer.append(make_record(trial, latency_ms=[1.5]))
    (record,), warnings = read_records([tmp_path])
    assert warnings == []
    assert Trial.from_dict(record["trial"]) == trial
    assert record["metrics"] == {"latency_ms": [1.5]}
    assert "error" not in record


def test_a_torn_last_line_is_set_aside_and_reported(tmp_path):
    with RecordWriter(tmp_path) as writer:
        writer.append(make_record(make_trial(seed=1)))
        writer.append(make_record(make_trial(seed=2)))
    path = tmp_path / "records.jsonl"
    whole = path.read_bytes()
    path.write_bytes(whole[:-30])
    records, warnings = read_records([tmp_path])
    assert len(records) == 1
    assert "line 2" in warnings[0]

    with RecordWriter(tmp_path) as writer:
        assert "torn" in writer.warnings[0]
        writer.append(make_record(make_trial(seed=2)))
    records, warnings = read_records([tmp_path])
    assert [r["trial"]["seed"] for r in records] == [1, 2]
    assert warnings == []
    assert (tmp_path / "records.torn").read_bytes().strip() in whole


def test_a_whole_last_line_without_its_newline_is_kept_readable(tmp_path):
    with RecordWriter(tmp_path) as writer:
        writer.append(make_record(make_trial()))
    path = tmp_path / "records.jsonl"
    path.write_bytes(path.read_bytes().rstrip(b"\n"))
    records, _ = read_records([tmp_path])
    assert len(records) == 1


def test_one_writer_a_file(tmp_path):
    with RecordWriter(tmp_path), pytest.raises(RecordsError, match="another run is writing"):
        RecordWriter(tmp_path)


def test_unwritable_folder_is_a_clear_error(tmp_path):
    blocked = tmp_path / "file"
    blocked.write_text("not a folder")
    with pytest.raises(RecordsError, match="--out"):
        RecordWriter(blocked / "records")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_read_only_folder_is_a_clear_error(tmp_path):
    tmp_path.chmod(0o500)
    with pytest.raises(RecordsError, match="--out"):
        RecordWriter(tmp_path / "out")


def test_the_last_record_of_a_trial_counts_within_a_file_and_files_are_apart(tmp_path):
    for folder, status in (("a", "ok"), ("b", "oom")):
        with RecordWriter(tmp_path / folder) as writer:
            writer.append(make_record(make_trial(), status="error"))
            writer.append(make_record(make_trial(), status=status))
    records, _ = read_records([tmp_path])
    assert [r["status"] for r in records] == ["ok", "oom"]


def test_missing_path_names_what_to_run(tmp_path):
    with pytest.raises(RecordsError, match="seqbench run"):
        read_records([tmp_path / "nothing"])


def test_not_a_number_is_refused_rather_than_written(tmp_path):
    with RecordWriter(tmp_path) as writer, pytest.raises(ValueError, match="JSON"):
        writer.append(make_record(make_trial(), loss=float("nan")))


def test_identity_depends_on_specification_and_code_alone():
    trial = make_trial()
    same = make_trial(protocol={"level": "model"})
    assert trial.trial_id("code") == same.trial_id("code")
    assert len(trial.trial_id("code")) == 64
    changed = [make_trial(seed=1), make_trial(protocol={"level": "operator"}), make_trial(seq_len=2048)]
    ids = {t.trial_id("code") for t in [trial, *changed]} | {trial.trial_id("other code")}
    assert len(ids) == 5


def test_key_order_does_not_change_identity():
    assert make_trial(protocol={"a": 1, "b": 2}).trial_id("c") == make_trial(protocol={"b": 2, "a": 1}).trial_id("c")


def test_comments_and_docstrings_do_not_change_the_code_version(tmp_path):
    file = tmp_path / "module.py"
    file.write_text('"""Doc."""\n\n\ndef f(x):\n    """Doc."""\n    return x + 1\n')
    before = code_version([tmp_path])
    file.write_text('"""Other."""\n# comment\ndef f(x):\n    return x + 1  # why\n')
    assert code_version([tmp_path]) == before
    file.write_text("def f(x):\n    return x + 2\n")
    assert code_version([tmp_path]) != before


@given(st.integers(min_value=1, max_value=2**20))
def test_lengths_are_read_as_they_are_written(seq_len):
    assert parse_length(format_length(seq_len)) == seq_len


def test_ranges_of_lengths():
    assert parse_lengths("1K..8K,300") == [300, 1024, 2048, 4096, 8192]
    assert len(parse_lengths("1K..1M")) == 11
    for bad in ("8K..1K", "many", "1K..", "0", "-4"):
        with pytest.raises(ValueError, match=r"length|range"):
            parse_lengths(bad)


def test_records_are_json_lines(tmp_path):
    with RecordWriter(tmp_path) as writer:
        writer.append(make_record(make_trial(), note="two\nlines"))
    lines = (tmp_path / "records.jsonl").read_text().splitlines()
    assert len(lines) == 1
    assert json.loads(lines[0])["schema"] == 1
