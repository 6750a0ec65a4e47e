"""Making tasks by name, and what a wrong name, option or source says."""

import subprocess
import sys
from importlib.metadata import EntryPoint, EntryPoints
from pathlib import Path
from typing import Any

import pytest

from tasks import TASKS, CorpusTask, TaskError, describe_source, fetch_sources, make_task, task_entry, task_names
from tasks.synthetic import InductionHeads


def test_the_tasks() -> None:
    assert list(TASKS)[:6] == ["selective_copying", "induction_heads", "language", "dna", "audio", "speech"]
    assert "species" in TASKS
    assert task_names() == tuple(TASKS)


def test_names_agree() -> None:
    for name, entry in TASKS.items():
        assert entry.name == name == make_task(name).name
        assert entry.takes_source() == (name not in ("selective_copying", "induction_heads"))


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("langage", {}, r"unknown task 'langage' \(did you mean 'language'\?\); known: selective_copying"),
        ("zzz", {}, r"unknown task 'zzz'; known"),
        ("induction_heads", {"vocab": 8}, r"unknown option 'vocab' \(did you mean 'vocab_size'\?\)"),
        ("dna", {"strict": True}, r"dna: unknown option 'strict'; it takes reverse_complement, split_by"),
        ("speech", {"strict": True}, r"speech: unknown option 'strict'; it takes no options"),
        ("induction_heads", {"source": Path("x")}, r"--source induction_heads=x: .* reads no source; leave it out"),
    ],
)
def test_mistakes(name: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(TaskError, match=message):
        make_task(name, **options)


def test_options_reach_the_task() -> None:
    assert make_task("selective_copying", vocab_size=8).vocab_size == 8


@pytest.mark.parametrize("name", list(TASKS))
def test_described_source_is_the_tasks_own(name: str) -> None:
    described, made = describe_source(name), make_task(name).provenance
    assert (described.name, described.kind, described.sha256) == (made.name, made.kind, made.sha256)


def test_describing_decodes_nothing(tmp_path: Path, fresh_cache: Path) -> None:
    (tmp_path / "x.mp3").write_bytes(b"not a sound")
    described = describe_source("audio", source=tmp_path / "x.mp3")
    assert described.kind == "user"
    assert described.files == ("x.mp3",)
    assert not (fresh_cache / "prepared").exists()
    with pytest.raises(TaskError, match=r"x\.mp3: cannot be decoded"):
        make_task("audio", source=tmp_path / "x.mp3")
    with pytest.raises(TaskError, match="reads no source"):
        describe_source("induction_heads", source=tmp_path)


def test_tasks_without_downloads_fetch_nothing() -> None:
    assert fetch_sources("induction_heads") == fetch_sources("speech") == ()


class Custom(InductionHeads):
    """A third party's task."""

    name = "custom"


def test_third_parties_are_found(monkeypatch: pytest.MonkeyPatch) -> None:
    points = EntryPoints(
        [
            EntryPoint("custom", f"{__name__}:Custom", "seqbench.tasks"),
            EntryPoint("language", f"{__name__}:Custom", "seqbench.tasks"),
        ]
    )
    monkeypatch.setitem(sys.modules, __name__, sys.modules[Custom.__module__])
    monkeypatch.setattr("tasks.registry.entry_points", lambda group: points.select(group=group))
    assert task_names() == (*TASKS, "custom")
    assert isinstance(make_task("custom", vocab_size=5), Custom)
    assert isinstance(make_task("language"), CorpusTask), "the suite's own names cannot be taken over"
    assert describe_source("custom").kind == "generator"
    assert "third party" in task_entry("custom").summary


def test_listing_imports_no_torch() -> None:
    program = "import sys, tasks; tasks.task_names(); assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", program], check=True)


def test_making_a_task_imports_no_sound_library() -> None:
    program = (
        "import sys, tasks; tasks.make_task('language'); assert not {'soundfile', 'torchaudio'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", program], check=True)
