"""The dependency rule of the packages, read off their imports."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGES = ("benchmarks", "tasks", "models", "harness", "reports")
ALLOWED = {
    "tasks": set(),
    "models": set(),
    "harness": set(),
    "reports": {"harness"},
    "benchmarks": {"harness", "models", "tasks", "reports"},
}


def imported_packages(path: Path) -> set[tuple[str, str]]:
    """(package, full name) of every import of a package of this project in a file."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            names = [node.module]
        found |= {(name.split(".")[0], name) for name in names if name.split(".")[0] in PACKAGES}
    return found


@pytest.mark.parametrize("package", PACKAGES)
def test_packages_import_only_what_they_may(package):
    files = list((ROOT / package).rglob("*.py"))
    assert files
    for path in files:
        others = {name for name, _ in imported_packages(path)} - {package}
        assert others <= ALLOWED[package], f"{path.relative_to(ROOT)} imports {sorted(others - ALLOWED[package])}"


def test_reports_read_records_and_nothing_else_of_the_harness():
    for path in (ROOT / "reports").rglob("*.py"):
        for package, module in imported_packages(path):
            if package == "harness":
                assert module == "harness.records", path


def test_results_hold_data_only():
    assert not list((ROOT / "results").rglob("*.py"))
