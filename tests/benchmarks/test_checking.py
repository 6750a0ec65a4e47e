"""``seqbench check``: exit codes, usage errors, and the table."""

import pytest
import torch

from benchmarks.checking import findings_table, run_check
from models.conformance import CHECKS, Finding
from tests.benchmarks.conftest import ROOT

EXAMPLE = f"{ROOT}/docs/examples/min_gru.py:factory"


@pytest.fixture(autouse=True)
def _one_thread():
    torch.set_num_threads(1)


def test_the_documented_example_passes(capsys):
    assert run_check(EXAMPLE) == 0
    lines = capsys.readouterr().out.splitlines()
    rows = {line.split()[0]: line.split()[1] for line in lines[1:-1] if not line.startswith(" ")}
    # It uses none of the suite's operators, so that there is no kernel to name.
    assert rows == {check: "skipped" if check == "kernels_named" else "passed" for check in CHECKS}
    assert lines[-1].startswith("15 passed, 1 skipped in ")


def test_the_page_shows_what_the_command_prints(capsys, monkeypatch):
    """Checks, results and details of docs/own-model.md, but for figures that are rounding errors or times."""
    monkeypatch.setenv("COLUMNS", "120")  # lines fold at the terminal's width
    run_check(EXAMPLE)
    printed = capsys.readouterr().out.splitlines()
    page = (ROOT / "docs" / "own-model.md").read_text().splitlines()
    start = next(i for i, line in enumerate(page) if line.startswith("check  "))
    shown = page[start : start + len(printed)]

    def words(line: str) -> list[str]:
        return [word for word in line.split() if not any(c in word for c in "0123456789")]

    assert [words(line) for line in shown] == [words(line) for line in printed]


def test_a_failure_gives_one_and_says_why(tmp_path, capsys):
    path = tmp_path / "mine.py"
    path.write_text(
        "import torch\n"
        "class Ahead(torch.nn.Module):\n"
        "    def __init__(self, vocab_size):\n"
        "        super().__init__()\n"
        "        self.embedding = torch.nn.Embedding(vocab_size, vocab_size)\n"
        "    def forward(self, ids):\n"
        "        x = self.embedding(ids)\n"
        "        return x + x.mean(1, keepdim=True)\n"
    )
    assert run_check(f"{path}:Ahead", only=["interface", "causality"]) == 1
    out = capsys.readouterr().out
    assert "interface  passed" in out
    assert "causality  failed  changing token 1 of 200 changes logits before it by" in out
    assert "1 passed, 1 failed in" in out


def test_what_cannot_be_built_gives_two_and_names_the_exception(tmp_path, capsys):
    path = tmp_path / "mine.py"
    path.write_text("def build(*, vocab_size):\n    raise KeyError('d_model')\n")
    assert run_check(f"{path}:build") == 2
    assert "cannot be built: KeyError: 'd_model'" in capsys.readouterr().err
    path.write_text("import nothing_of_this_name\n")
    assert run_check(f"{path}:build") == 2
    assert "ModuleNotFoundError: No module named 'nothing_of_this_name'" in capsys.readouterr().err
    path.write_text("def build(:\n")
    assert run_check(f"{path}:build") == 2
    assert "SyntaxError" in capsys.readouterr().err


def test_usage_errors_name_the_fix(tmp_path):
    with pytest.raises(ValueError, match="no file"):
        run_check(f"{tmp_path}/nothing.py:build")
    with pytest.raises(ValueError, match="it defines"):
        run_check(f"{ROOT}/docs/examples/min_gru.py:make")
    with pytest.raises(ValueError, match="did you mean"):
        run_check("mamba-tinny")
    with pytest.raises(ValueError, match="there are interface"):
        run_check(EXAMPLE, only=["speed"])
    (tmp_path / "mine.py").write_text("WIDTH = 3\n")
    with pytest.raises(ValueError, match="int, and not a factory"):
        run_check(f"{tmp_path}/mine.py:WIDTH")


def test_long_details_are_wrapped_under_their_column():
    detail = "a word and then another " * 20
    findings = [
        Finding(check="causality", status="failed", detail=detail.strip(), seconds=1.0),
        Finding(check="flops", status="passed", detail="", seconds=0.5),
    ]
    heading, *rows, flops, summary = findings_table(findings, width=80).splitlines()
    column = heading.index("detail")
    assert all(len(row) <= 80 for row in rows)
    assert " ".join(row[column:] for row in rows) == detail.strip()
    assert all(not row[:column].strip() for row in rows[1:])
    assert flops == "flops      passed"
    assert summary == "1 passed, 1 failed in 1.5 s"
