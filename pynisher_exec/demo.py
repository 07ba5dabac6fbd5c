"""The demo: a search over scikit-learn models, some of which run away, and what became of each."""

from __future__ import annotations

import json
from collections import Counter
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from pynisher_exec.caller.executor import LimitedProcessExecutor
from pynisher_exec.report import Report, Status
from pynisher_exec.search_space import Candidate, candidates, score

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["run"]

LIMITS: dict[str, Any] = {
    "memory": "400MiB",
    "cpu_time": "7s",
    "wall_time": "6s",
    "processes": 4,
}
SLOTS = 2
PRELOAD = ("sklearn.datasets", "sklearn.ensemble", "sklearn.model_selection", "sklearn.svm")
NEEDS = ("sklearn", "tqdm")

Result = tuple[Candidate, Report]


def run(output: Path) -> int:
    """Search, show progress, print the table, and write one JSON object a line to `output`."""
    missing = [name for name in NEEDS if find_spec(name) is None]
    if missing:
        print(  # noqa: T201  (a command line's voice)
            f"the demo needs {' and '.join(missing)}: pip install 'pynisher_exec[demo]'"
        )
        return 1
    results = _search()
    with output.open("w", encoding="utf-8") as file:
        for candidate, report in results:
            file.write(json.dumps({"config": candidate.name, **report.to_dict()}) + "\n")
    print(_table(results))  # noqa: T201
    print(_summary(results, output))  # noqa: T201
    return 0


def _search() -> list[Result]:
    space = candidates()
    with LimitedProcessExecutor(
        SLOTS, **LIMITS, capture_output=True, preload=PRELOAD, strict=False
    ) as executor:
        return list(zip(space, executor.reports(score, space, progress=True), strict=True))


def _table(results: list[Result]) -> str:
    head = f"{'config':58} {'data':13} {'score':>6} {'status':>10} {'wall':>6} {'CPU':>6}"
    lines = [f"{head} {'peak':>8} {'procs':>5}"]
    lines += [_line(candidate, report) for candidate, report in results]
    return "\n".join(lines)


def _line(candidate: Candidate, report: Report) -> str:
    shown = f"{report.result:.3f}" if report.status is Status.OK else "-"
    return (
        f"{candidate.name:58.58} {candidate.data:13} {shown:>6} {report.status:>10} "
        f"{report.wall_time:5.2f}s {report.cpu_time:5.2f}s "
        f"{report.peak_memory / (1 << 20):4.0f} MiB {report.peak_processes:5d}"
    )


def _summary(results: list[Result], output: Path) -> str:
    done = [
        (report.result, each.name, each.data) for each, report in results if report.status == "ok"
    ]
    counts = Counter(str(report.status) for _, report in results if report.status is not Status.OK)
    stopped = ", ".join(f"{count} by {status}" for status, count in counts.most_common())
    best = sorted({data: (value, name) for value, name, data in sorted(done)}.items())
    limits = ", ".join(f"{limit}={value}" for limit, value in LIMITS.items())
    return (
        f"\n{len(results)} configurations under {limits}\n"
        f"{len(done)} scored, {sum(counts.values())} stopped: {stopped}\n"
        + "".join(f"best on {data}: {name}, {value:.3f}\n" for data, (value, name) in best)
        + f"every report: {output.resolve()}"
    )
