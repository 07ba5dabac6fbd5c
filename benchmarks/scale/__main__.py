"""`python -m benchmarks.scale`: see the package."""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.rows import environment, percentile
from benchmarks.scale.figures import REAL_LENGTH, Figures, Way, from_json
from benchmarks.scale.table import Cell, Setting, batched, cells, foretold, show, single

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

FULL, QUICK = Setting(), Setting(seeds=1, per_core=8)

MEANING = """\
efficiency: seconds that functions ran and whose outcome arrived, by cores times makespan
ideal: the same of the same items and losses, where nothing else costs anything
kept: the ideal's makespan by this one, so that the tail of long tasks is no part of it; the order
  in which tasks are given out is another one, by luck a better one now and then
scheduler, client: the share of the time in which each was busy, the tail at the end included
again: tasks that were run anew, since their node was lost
bound: of this more is asked than it can do, so that cores wait for it"""

SINGLE = """\
LimitedDaskExecutor, each item a task of Dask's
{0.cores} cores a node, {0.per_core} tasks a core"""
CHUNKS = """\
client.map over chunks of K items, each under its own limits; {0.per_core} chunks a core
K: the least that asks {0.share:.0%} of client and scheduler; 1000: none does"""
BRIEF = "of these, those that are bound, where a chunk returns one short value and no reports"


def main() -> int:
    """Measure, simulate, print."""
    options = _options()
    if options.earlier:
        found: dict[str, Any] = json.loads(Path(options.earlier).read_text())
        figures = from_json(found["figures"])
    else:
        # Here, so that simulating from a file needs no distributed.
        from benchmarks.scale.measure import measured  # noqa: PLC0415

        found = {"environment": environment("distributed")}
        figures = measured(quick=options.quick, tell=_tell)
    setting = QUICK if options.quick else FULL
    print(*found["environment"], sep="\n")
    print("", *told(figures), "", MEANING, sep="\n")
    results = []
    for heading, part in _tables(figures, setting):
        print("", heading, show(part), sep="\n", flush=True)
        results += part
    if options.json:
        run = {"environment": found["environment"], "figures": figures.to_json()}
        run["setting"] = setting._asdict() | {"lengths": setting.lengths._asdict()}
        run["cells"] = [cell._asdict() for cell in results]
        Path(options.json).write_text(json.dumps(run, indent=1))
    return 0


def _tables(figures: Figures, setting: Setting) -> Iterator[tuple[str, list[Cell]]]:
    """One after the other, as they are simulated."""
    places = single()
    yield SINGLE.format(setting), cells(figures, setting, places)
    found = cells(figures, setting, batched(figures, setting, "chunk", places))
    yield CHUNKS.format(setting), found
    still = [cell for cell in found if cell.bound]
    if still:
        again = cells(figures, setting, batched(figures, setting, "brief", still))
        yield BRIEF, again


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="benchmarks.scale",
        description="What limited tasks cost here, and how efficient clusters would be with them.",
    )
    parser.add_argument("--quick", action="store_true", help="fewer rounds, one seed")
    parser.add_argument(
        "--json", metavar="FILE", help="write what was measured and simulated there"
    )
    parser.add_argument(
        "--from", dest="earlier", metavar="FILE", help="simulate from what --json has written"
    )
    return parser.parse_args()


def _tell(what: str) -> None:
    print(f"{time.strftime('%X')} measuring {what}", file=sys.stderr, flush=True)


def told(figures: Figures) -> list[str]:
    """What was measured, in lines."""
    lines = [
        _line(f"CPU of {name}, a no-op under limits", part) for name, part in figures.parts.items()
    ]
    lines += [
        _line("that call, one after the other", figures.alone),
        _line("that call, as many at once as cores", figures.loaded),
        _line("Dask's round trip, no limits", figures.trips["dask"]),
        _line("the executor's round trip", figures.trips["executor"]),
    ]
    lines += [_line_of(name, way) for name, way in figures.ways.items()]
    workers, scheduler = figures.crowd
    background = f"the scheduler for itself {figures.background:.1%} of a core"
    heard = f"{figures.heartbeat * 1000:.2f} ms" if figures.heartbeat else "too little to be told"
    return [
        *lines,
        f"map with {workers} workers: scheduler {_ms(scheduler)} ms of CPU a task",
        f"{background}; a worker's heartbeat {heard}",
        _check(figures),
    ]


def _check(figures: Figures) -> str:
    real = figures.real
    return (
        f"the executor here, {figures.cores} cores, tasks that sleep {REAL_LENGTH:g} s: efficiency "
        f"{statistics.median(real):.2f} [{min(real):.2f}, {max(real):.2f}]; simulated "
        f"{foretold(figures):.2f}"
    )


def _line_of(name: str, way: Way) -> str:
    what = f"{name}, {way.items} a task" if way.items > 1 else name
    used = f"scheduler {_ms(way.scheduler)}, client {_ms(way.client)}, worker {_ms(way.worker)}"
    ceiling = 1 / statistics.median(way.scheduler)
    reached = f"{statistics.median(way.rate):.0f} tasks a second here"
    return f"{what + ':':20} CPU ms {used}; {reached}, the scheduler's ceiling {ceiling:.0f}"


def _line(what: str, samples: Sequence[float]) -> str:
    values = list(samples)
    middle, late = statistics.median(values) * 1000, percentile(values, 95) * 1000
    return (
        f"{what + ':':45} {middle:.2f} ms (5 % {percentile(values, 5) * 1000:.2f}, 95 % {late:.2f})"
    )


def _ms(samples: Sequence[float]) -> str:
    return f"{statistics.median(samples) * 1000:.2f}"


if __name__ == "__main__":
    sys.exit(main())
