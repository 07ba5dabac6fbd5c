"""`python -m benchmarks.speed`: see the package."""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from importlib.metadata import distributions
from importlib.util import find_spec
from pathlib import Path
from runpy import run_module
from typing import TYPE_CHECKING, Any

from benchmarks.rows import environment, percentile
from benchmarks.speed import picture
from benchmarks.speed.measure import ALL

if TYPE_CHECKING:
    from benchmarks.speed.measure import Row

ROUNDS, QUICK = 15, 3
SUFFIXES = (".svg", ".png", ".pdf")
PACKAGES = (
    "pynisher",
    "pebble",
    "billiard",
    "joblib",
    "deadpool-executor",
    "distributed",
    "numpy",
    "scikit-learn",
    "pandas",
    "torch",
)
"""What rows use, besides the standard library."""

PATIENCE = 300
MODULES = {
    "calls": (
        "fork",
        "fork-2GiB",
        "pynisher",
        "pebble",
        "fresh",
        "by-value",
        "reuse-loky",
        "reuse",
        "throughput",
        "everything",
        "first",
    ),
    "dask": ("dask", "dask-added", "dask-100ms", "dask-bulk", "dask-template", "dask-cancel"),
    "data": ("result", "argument"),
    "late": ("wall", "wall-95", "wall-locked"),
    "libraries": ("sklearn", "numpy", "pandas", "torch"),
    "shares": ("share-memory", "share-attach", "share-read"),
    "peers": (
        "stdlib",
        "loky",
        "loky-process",
        "joblib",
        "billiard",
        "billiard-1",
        "deadpool",
        "deadpool-1",
        "pebble-pool",
        "pebble-pool-1",
        "pynisher-1",
    ),
    "many": (
        "sleepers",
        "sleepers-all",
        "watched",
        "watched-near",
        "idle",
        "queue",
        "queue-time",
        "queue-growth",
        "slots",
    ),
}
LONG = (
    *MODULES["dask"],
    "fork-2GiB",
    "wall-95",
    "wall-locked",
    "pandas",
    "torch",
    "share-memory",
    "share-attach",
    "share-read",
    "loky-process",
    "joblib",
    "billiard-1",
    "pebble-pool-1",
    "sleepers",
    "sleepers-all",
    "watched",
    "watched-near",
    "idle",
    "queue",
    "slots",
)
"""Rows that a quick run leaves out unless they are named."""

ROWS = {name: module for module, names in MODULES.items() for name in names}
"""Where each row is; what it needs is imported in the process that runs it only."""


def measure(name: str, rounds: int) -> dict[str, Any]:
    """Run one row in this process; give what is printed of it."""
    # Under a name that no task can import, as a script's: its functions travel by value.
    row: Row | None = None
    try:
        module = run_module(f"benchmarks.speed.{ROWS[name]}", run_name=f"<{ROWS[name]}>")
        row = next(each for each in module["ROWS"] if each.name == name)
        found = row.run(rounds)
    except ModuleNotFoundError as error:
        told = row is not None and row.must is None
        return {"name": name, "kept": told, "absent": str(error)}
    shown = {
        "name": name,
        "what": row.what,
        "against": row.against,
        "how": row.how,
        "has": row.has,
        "they_have": row.they_have,
        "unit": found.unit,
        "median": statistics.median(found.ours),
        "p95": percentile(found.ours, 95),
        "ratio": found.ratio,
        "spread": found.spread,
        "must": row.must,
        "aim": row.aim,
        "at_least": row.at_least,
        "kept": row.kept(found),
        "hides": row.hides(found),
        "note": found.note,
    }
    if found.theirs:
        shown["their_median"] = statistics.median(found.theirs)
        shown["their_p95"] = percentile(found.theirs, 95)
    return shown


def in_a_process(name: str, *, quick: bool) -> dict[str, Any]:
    """Run one row in a process of its own."""
    flags = ["--quick"] if quick else []
    try:
        done = subprocess.run(
            [sys.executable, "-m", "benchmarks.speed", *flags, "--one", name],
            check=False,
            capture_output=True,
            text=True,
            timeout=PATIENCE,
        )
    except subprocess.TimeoutExpired as error:  # the others go on
        return {"name": name, "kept": False, "broken": str(error)}
    print(done.stderr, end="", file=sys.stderr)
    if done.returncode or not done.stdout:
        # What was raised, and before that the line that did: all that an assertion says.
        said = [line.strip() for line in done.stderr.splitlines() if line.strip(" ^~")]
        reason = ": ".join(reversed(said[-2:])) or f"exit status {done.returncode}"
        return {"name": name, "kept": False, "broken": reason}
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return result


def show(found: dict[str, Any]) -> str:
    """One line of the table, and a second one for what it is compared with."""
    if found.get("broken"):
        return f"BROKEN {found['name']}: {found['broken']}"
    if "absent" in found:
        return f"absent {found['name']}: {found['absent']}"
    word = "kept  " if found["kept"] else "MISSED"
    if found["must"] is None:
        word = "told  "
    if found["hides"]:
        word += f" (the rounds spread over {' and '.join(found['hides'])})"
    low, high = found["spread"]
    figure = f"{found['median']:.3g} {found['unit']} (95 % {found['p95']:.3g})"
    ratio = f"{found['ratio']:.3g} [{low:.3g}, {high:.3g}]"
    promise = "" if found["must"] is None else f", promised {found['must']:g}"
    if found["aim"] is not None:
        promise += f", aimed at {found['aim']:g}"
    lines = [f"{word} {found['name']}: {found['what']}: {figure}; {ratio}{promise}"]
    if "their_median" in found:
        lines.append(
            f"       {found['against']}: {found['their_median']:.3g} {found['unit']}"
            f" (95 % {found['their_p95']:.3g}); it has: {_shortened(found['they_have'])}"
        )
    has = "" if found["has"] == ALL else f"; ours has: {_shortened(found['has'])}"
    note = f"; {found['note']}" if found["note"] else ""
    lines.append(f"       {found['how']}{has}{note}")
    return "\n".join(lines)


def _shortened(guarantees: str) -> str:
    return guarantees.replace(ALL, "the same")


def _beside() -> list[str]:
    """The other pynisher, which has a folder of its own: see `peers`."""
    found = distributions(name="pynisher", path=[os.environ.get("PYNISHER_1", "")])
    return [f"apart from these: pynisher {each.version}" for each in found]


def _complaint(options: argparse.Namespace) -> str:
    """What would fail only after all has been measured."""
    if unknown := set(options.rows) - set(ROWS):
        return f"unknown: {', '.join(sorted(unknown))}"
    for path in (options.json, options.picture):
        if path is not None and not Path(path).absolute().parent.is_dir():
            return f"{path}: no such folder"
        if path is not None and Path(path).is_dir():
            return f"{path}: is a folder"
    if options.picture and Path(options.picture).suffix not in SUFFIXES:
        return f"a picture is one of {', '.join(SUFFIXES)}"
    if options.picture and find_spec("matplotlib") is None:
        return "a picture needs matplotlib: pip install 'pynisher_exec[charts]'"
    return ""


def main() -> int:
    """Run all rows, or those named; 1 when a promise was missed."""
    parser = argparse.ArgumentParser(
        prog="benchmarks",
        description="What isolation costs, against the peers. Each row in a process of its own.",
        epilog="In place of rows: core and legacy, promises of the core and of enforce_limits.",
    )
    parser.add_argument(
        "--quick", action="store_true", help=f"fewer rounds; without {', '.join(LONG)}"
    )
    parser.add_argument("--json", metavar="FILE", help="write all figures there, too")
    parser.add_argument("--picture", metavar="FILE", help="draw them there (extra: charts)")
    parser.add_argument("--one", choices=ROWS, help=argparse.SUPPRESS)
    parser.add_argument("rows", nargs="*", help=f"default: all of {', '.join(ROWS)}")
    options = parser.parse_args()
    if options.one:
        print(json.dumps(measure(options.one, QUICK if options.quick else ROUNDS)))
        return 0
    if complaint := _complaint(options):
        parser.error(complaint)
    where = [*environment(*PACKAGES), *_beside()]
    print(*where, f"Ours has, where nothing else is said: {ALL}.", sep="\n", flush=True)
    results = []
    usual = [name for name in ROWS if not (options.quick and name in LONG)]
    for name in options.rows or usual:
        began = time.monotonic()
        found = in_a_process(name, quick=options.quick)
        results.append({**found, "seconds": time.monotonic() - began})
        print(show(results[-1]), flush=True)
        if options.json:  # after each: a run that is broken off has measured something, too
            run = {"environment": where, "quick": options.quick, "rows": results}
            Path(options.json).write_text(json.dumps(run, indent=1))
    if options.picture:
        picture.draw(results, Path(options.picture))
    return int(not all(each["kept"] for each in results))


if __name__ == "__main__":
    sys.exit(main())
