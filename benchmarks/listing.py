"""What ``seqbench list`` shows: models, tasks, suites and claims, a row each under a heading."""

from collections.abc import Callable, Sequence

Row = list[str]


def rows_of(what: str) -> list[Row]:
    """The table of ``models``, ``tasks``, ``suites`` or ``claims``, its heading first."""
    tables: dict[str, Callable[[], list[Row]]] = {
        "models": _model_rows,
        "tasks": _task_rows,
        "suites": _suite_rows,
        "claims": _claim_rows,
    }
    return tables[what]()


def aligned(rows: Sequence[Row]) -> str:
    """Columns padded to their widest cell, but for the last, which may be a sentence."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]) - 1)]
    lines = [[f"{cell:{width}}" for cell, width in zip(row, widths, strict=False)] + [row[-1]] for row in rows]
    return "\n".join("  ".join(line) for line in lines)


def _model_rows() -> list[Row]:
    from models import find_factory, model_names
    from models.ops.context import without_data

    rows: list[Row] = [["model", "params", "state at 2K", "state at 128K", "MFLOP/token at 2K", "mixer"]]
    for name in model_names():
        try:
            with without_data():
                model = find_factory(name)(vocab_size=256)
        except RuntimeError as error:  # one that needs a package which is not installed here
            rows.append([name, "-", "-", "-", "-", str(error).splitlines()[0]])
            continue
        at_2k, at_128k = model.describe(2048), model.describe(131072)
        rows.append([
            name, f"{at_2k.params:,}", _bytes(at_2k.state_bytes), _bytes(at_128k.state_bytes),
            f"{at_2k.flops_per_token / 1e6:.3g}", at_2k.mixer,
        ])  # fmt: skip
    return rows


def _bytes(count: int) -> str:
    """In the largest unit that leaves a number of at least 1."""
    value, units = float(count), ["B", "KiB", "MiB", "GiB", "TiB"]
    while value >= 1024 and len(units) > 1:
        value /= 1024
        units.pop(0)
    return f"{value:.4g} {units[0]}"


def _task_rows() -> list[Row]:
    from tasks.registry import task_entry, task_names

    return [["task", "what is asked"], *([name, task_entry(name).summary] for name in task_names())]


def _suite_rows() -> list[Row]:
    from benchmarks.suites import load_suite, suite_names

    return [["suite", "description"], *([name, load_suite(name).description.strip()] for name in suite_names())]


def _claim_rows() -> list[Row]:
    import reports

    nothing = reports.trials_frame([], {})
    speed = reports.speed_frame(nothing)
    judged = [
        *reports.judge_contrasts(speed, reports.scores_frame(reports.training_frame(nothing))),
        *reports.judge_speed_claims(speed, reports.generation_frame(nothing)),
    ]
    return [["claim", "statement [rule]"], *([c.id, f"{c.statement} [{c.rule}]"] for c in judged)]
