"""The exact tier: its bands, its golden file, its command, and that its figures repeat."""

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from benchmarks import exact_tier
from benchmarks.exact_compare import Band, ExactRecord, compare_exact, load_bands
from benchmarks.exact_figures import VOCAB, figures_of, subjects
from models import MODELS, build_model
from tasks import TASKS

pytestmark = pytest.mark.conformance

ROOT = Path(__file__).resolve().parents[2]
HERE = {"torch": "2.13.0", "python": "3.11.7"}
OTHER_TORCH = {"torch": "2.12.0", "python": "3.11.7"}


def record(metric: str = "params", value: int | float | str = 100, **fields: object) -> ExactRecord:
    known = {"subject": "mamba-tiny", "at": "L=512", "made_with": HERE} | fields
    return ExactRecord(metric=metric, value=value, **known)  # type: ignore[arg-type]


def run(*words: object, **variables: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "benchmarks.exact_tier", *map(str, words)],
        capture_output=True, text=True, timeout=240, cwd=ROOT, env=os.environ | variables, check=False,
    )  # fmt: skip


# --- comparing -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("metric", sorted(load_bands()))
def test_equal_figures_give_no_finding(metric: str) -> None:
    result = compare_exact([record(metric)], [record(metric)])
    assert (len(result), result.num_compared) == (0, 1)


@pytest.mark.parametrize("metric", sorted(load_bands()))
def test_what_is_just_beyond_the_band_is_found_either_way_and_just_within_is_not(metric: str) -> None:
    band = load_bands()[metric]
    edge = band.limit * (1 if band.absolute else 100.0)
    for sign in (1, -1):
        inside, outside = (record(metric, 100.0 + sign * (edge * f + add)) for f, add in ((0.99, 0), (1.01, 1e-9)))
        assert not len(compare_exact([record(metric, 100.0)], [inside]))
        assert [f.change for f in compare_exact([record(metric, 100.0)], [outside])] == ["moved"]


def test_a_message_says_all_that_a_stranger_needs() -> None:
    old, new = record("predicted_peak_bytes", 1_000_000), record("predicted_peak_bytes", 1_050_000)
    (finding,) = compare_exact([old], [new])
    for part in ("predicted_peak_bytes", "mamba-tiny", "L=512", "1,000,000", "1,050,000", "+5.000%", "allowed none"):
        assert part in finding.message
    lines = exact_tier.report_lines(compare_exact([old], [new]), "exact.json", "python -m x --write exact.json")
    assert "--write exact.json" in lines[-1]


def test_a_figure_that_depends_on_the_version_is_compared_on_equal_versions_only() -> None:
    old, new = record("loss", 2.0), record("loss", 2.5)
    assert len(compare_exact([old], [new])) == 1
    result = compare_exact([replace(old, made_with=OTHER_TORCH)], [new])
    assert (len(result), result.num_compared) == (0, 0)
    assert "2.12.0 against 2.13.0" in result.notes[0]
    # One that has a wider band for other versions is judged by that.
    for value, found in ((109, 0), (111, 1)):
        base = record("operators", 100, made_with=OTHER_TORCH)
        assert len(compare_exact([base], [record("operators", value)])) == found
    assert len(compare_exact([record("operators", 100)], [record("operators", 101)])) == 1
    # And one that depends on nothing is compared all the same.
    assert len(compare_exact([record(made_with=OTHER_TORCH)], [record(value=101)])) == 1


def test_what_appears_or_vanishes_is_found() -> None:
    a, b = record(), record(subject="s4d-tiny")
    assert [f.change for f in compare_exact([a], [a, b])] == ["new"]
    assert [f.change for f in compare_exact([a, b], [a])] == ["vanished"]


@pytest.mark.parametrize("value", [float("nan"), float("inf"), "none: it asks for values"])
def test_what_is_no_number_is_not_within_a_band(value: float | str) -> None:
    assert len(compare_exact([record("loss", 2.0)], [record("loss", value)])) == 1


def test_a_band_needs_a_sensible_limit_and_a_reason(tmp_path: Path) -> None:
    for text in ("[loss]\nlimit = 1.5\nreason = 'x'\n", "[loss]\nlimit = 0.1\n"):
        path = tmp_path / "bands.toml"
        path.write_text(text)
        with pytest.raises(ValueError, match="loss"):
            load_bands(path)
    with pytest.raises(ValueError, match="no band for 'params'"):
        compare_exact([record()], [record()], {"loss": Band(limit=0, reason="x")})


# --- the golden file -------------------------------------------------------------------------------------------------


def test_the_golden_file_holds_everything_that_is_listed_and_nothing_else() -> None:
    golden = exact_tier.read_golden(exact_tier.GOLDEN)
    assert {r.subject for r in golden} == set(subjects())
    assert {r.metric for r in golden} == set(load_bands())
    wanted = {name for name in MODELS if name.endswith(("-tiny", "-130m"))} | {f"task {name}" for name in TASKS}
    assert wanted <= set(subjects())
    # Committed as it is written: another writer would make every diff unreadable.
    assert exact_tier.GOLDEN.read_text() == exact_tier.golden_text(golden)


def test_a_golden_file_reads_back_and_says_which_figures_depend_on_a_version() -> None:
    records = [record(), record("loss", 2.5, at="step 1"), record("text_sha256", "ab", subject="task language")]
    text = exact_tier.golden_text(records)
    assert sorted(exact_tier.parse_golden(text, "x"), key=lambda r: r.key) == sorted(records, key=lambda r: r.key)
    assert json.loads(text)["depends_on"] == {"torch": ["loss"], "python": ["text_sha256"]}


@pytest.mark.parametrize("text", ["", "[]", '{"format": 99}', '{"format": 1, "made_with": {}, "figures": {"a": 1}}'])
def test_another_file_is_a_clear_error(text: str) -> None:
    with pytest.raises(ValueError, match=r"some\.json is no golden file.*--write some\.json"):
        exact_tier.parse_golden(text, "some.json")


def test_a_selection_does_not_overwrite_the_whole(tmp_path: Path) -> None:
    path = tmp_path / "exact.json"
    exact_tier.accept([record(), record(subject="s4d-tiny")], path)
    with pytest.raises(ValueError, match="s4d-tiny"):
        exact_tier.accept([record()], path)


# --- the figures -----------------------------------------------------------------------------------------------------


def test_parameters_are_those_of_the_model_that_is_built() -> None:
    (golden,) = (r for r in exact_tier.read_golden(exact_tier.GOLDEN) if r.key[:2] == ("lstm-tiny", "params"))
    assert golden.value == build_model("lstm-tiny", vocab_size=VOCAB).num_params


def test_a_training_step_calls_more_operators_than_a_forward_pass() -> None:
    counts = {f.at.split()[0]: f.value for f in figures_of("lstm-tiny") if f.metric == "operators"}
    assert counts["train"] > 2 * counts["forward"] > 0


def test_figures_repeat_in_other_processes_with_other_hashes_threads_and_data(tmp_path: Path) -> None:
    """What the golden file's equality rests on. The second process is told of threads, data and a missing kernel."""
    program = (
        "import sys, tempfile, torch\n"
        "from benchmarks.exact_figures import figures_of, prepare_process\n"
        "torch.set_num_threads(int(sys.argv[1]))\n"
        "prepare_process(sys.argv[2])\n"
        "for subject in ('mamba-tiny', 'task dna', 'training induction_heads s4d-tiny'):\n"
        "    print(*figures_of(subject), sep='\\n')\n"
    )
    outputs = []
    for number, extra in ((1, {}), (2, {"SEQBENCH_DATA": str(tmp_path), "SEQBENCH_NO_KERNEL": "1"})):
        variables = {"PYTHONHASHSEED": str(number), "OMP_NUM_THREADS": str(number), "PYTHONPATH": str(ROOT)}
        words = [sys.executable, "-c", program, str(number), str(tmp_path / f"cache{number}")]
        done = subprocess.run(
            words, capture_output=True, text=True, check=True, env=os.environ | variables | extra, timeout=240
        )
        outputs.append(done.stdout)
    assert outputs[0] == outputs[1] != ""


# --- the command -----------------------------------------------------------------------------------------------------


def test_the_command_accepts_compares_and_finds(tmp_path: Path, monkeypatch, capsys) -> None:
    """On a factory in a file: what somebody else's repository does."""
    path, model = tmp_path / "mine.json", f"{ROOT}/docs/examples/min_gru.py:factory"
    written = run("--models", model, "--write", path)
    assert written.returncode == 0, written.stderr
    page = tmp_path / "exact.md"
    words = ["--models", model, "--base", str(path)]
    assert exact_tier.main([*words, "--markdown", str(page)]) == 0, capsys.readouterr()
    assert "all as in" in page.read_text()
    computed, content = exact_tier.read_golden(path), json.loads(path.read_text())
    monkeypatch.setattr(exact_tier, "exact_records", lambda subjects: computed)  # a third time they take as long again
    content["figures"][model]["params"][f"vocabulary of {VOCAB}"] += 1
    path.write_text(json.dumps(content))
    assert exact_tier.main(words) == 1
    said = capsys.readouterr().out
    assert "params of" in said
    assert f"--write {path}" in said


@pytest.mark.parametrize(
    ("words", "said"), [(["--models", "mambo-tiny"], "did you mean"), (["--base", "nowhere.json"], "--write nowhere")]
)
def test_wrong_usage_is_one_clear_line(words: list[str], said: str) -> None:
    done = run(*words)
    assert done.returncode == 2
    assert said in done.stderr
    assert "Traceback" not in done.stderr
