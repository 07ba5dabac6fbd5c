"""The command line: run any program under limits, tell what this machine can hold, demo."""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import re
import secrets
import signal
import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from pynisher_exec import show
from pynisher_exec.caller.future import LimitedFuture
from pynisher_exec.caller.item import Item
from pynisher_exec.caller.pool import Pool, PoolOptions
from pynisher_exec.caller.support import LIMITS, remarks, supports
from pynisher_exec.errors import AnythingException
from pynisher_exec.limits import Limits, size_text
from pynisher_exec.report import Report, Status, signal_name
from pynisher_exec.task.run import Call

if TYPE_CHECKING:
    from collections.abc import Sequence
    from types import FrameType

__all__ = ["main"]

TIMED_OUT, OVER_LIMIT, OWN_FAILURE, CANNOT_EXECUTE, NOT_FOUND = 124, 137, 125, 126, 127
_SIGNALLED = 128

_EPILOG = """\
exit status:
  the command's own, 128 + n when signal n ended it, or this program before it;
  124 when it passed --wall-time or --cpu-time; 137 when it passed --memory or --processes;
  125 when pynisher_exec was used wrongly or failed; 126 or 127 when the command could not be
  run or found. A command that was told of its limit (a fork refused, a soft signal) may still
  end with 0: that is passed on. Each limit that was met is told in one line on stderr.

Limits hold for everything that the command starts. Sizes: 500MB, 2GiB, 50%. Durations: 90,
1.5s, 5min, 1h30min. With --grace-period the command gets SIGALRM (wall) or SIGXCPU (CPU) first.
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Parse the command line, do what it says, and give the exit status."""
    parser = _parser()
    options, unknown = parser.parse_known_args(arguments)
    if unknown:
        options.parser.error(f"unknown option: {' '.join(unknown)}")
    status: int = options.action(options)
    return status


class _Parser(argparse.ArgumentParser):
    """Wrong use ends with a status that the command to be run is not likely to have."""

    def error(self, message: str) -> NoReturn:
        self.print_usage(sys.stderr)
        self.exit(OWN_FAILURE, f"{self.prog}: error: {message}\n")


def _parser() -> _Parser:
    parser = _Parser(
        prog="python -m pynisher_exec",
        description="Run programs and Python functions under limits that they cannot outgrow.",
    )
    actions = parser.add_subparsers(required=True, metavar="ACTION")
    _add_run(actions)
    doctor = actions.add_parser("doctor", help="tell which limits this machine holds, and how")
    doctor.set_defaults(action=_doctor, parser=doctor)
    show.add_to(actions)
    page = actions.add_parser("report", help="make a page of a search's record")
    page.add_argument("record", help="the file that reports(..., record=...) wrote")
    page.add_argument("-o", "--output", default="report.html", help="default: %(default)s")
    page.set_defaults(action=_page, parser=page)
    demo = actions.add_parser("demo", help="search scikit-learn models, some of which run away")
    demo.add_argument("--output", default="reports.jsonl", help="default: %(default)s")
    demo.set_defaults(action=_demo, parser=demo)
    return parser


def _add_run(actions: argparse._SubParsersAction[_Parser]) -> None:
    run = actions.add_parser(
        "run",
        help="run a command under limits",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        usage="%(prog)s [LIMITS] [--json FILE] -- COMMAND [ARG ...]",
    )
    limits = run.add_argument_group("limits")
    limits.add_argument("--memory", metavar="SIZE", help="held by all its processes together")
    limits.add_argument("--cpu-time", metavar="TIME", help="used by all its processes together")
    limits.add_argument("--wall-time", metavar="TIME", help="from start to end")
    limits.add_argument("--processes", metavar="N", type=int, help="it may start, alive at once")
    limits.add_argument("--grace-period", metavar="TIME", help="between soft signal and kill")
    limits.add_argument("--open-files", metavar="N", type=int, help="in each process")
    limits.add_argument("--file-size", metavar="SIZE", help="of each file written")
    limits.add_argument("--core-size", metavar="SIZE", help="of each core dump")
    run.add_argument("--json", metavar="FILE", type=Path, help="write the report there")
    run.add_argument("command", nargs=argparse.REMAINDER, metavar="COMMAND", help="after --")
    run.set_defaults(action=_run, parser=run)


# run ---------------------------------------------------------------------------------------------


def _number_or_text(value: str | None) -> str | float | None:
    """A bare number is seconds."""
    with contextlib.suppress(ValueError):
        return None if value is None else float(value)
    return value


def _size_or_text(value: str | None) -> str | int | None:
    """A bare number is bytes."""
    return int(value) if value is not None and value.isdecimal() else value


def _run(options: argparse.Namespace) -> int:
    command = options.command[1:] if options.command[:1] == ["--"] else options.command
    if not command:
        options.parser.error("no command given; it goes after --")
    limits = _limits(options)
    if options.json is None:
        return _exit_status(*_report_of(command, limits), command)
    try:  # before anything runs: a report that cannot be written costs no run
        file = options.json.open("w", encoding="utf-8")
    except OSError as error:
        return _unwritten(options.json, error)
    report, caught = _report_of(command, limits)
    try:
        with file:
            json.dump({"command": command, **report.to_dict()}, file, indent=2)
            file.write("\n")
    except OSError as error:
        return _unwritten(options.json, error)
    return _exit_status(report, caught, command)


def _unwritten(path: Path, error: OSError) -> int:
    _say(f"--json={path}: {error.strerror}")
    return OWN_FAILURE


def _limits(options: argparse.Namespace) -> Limits:
    """Take the limits; what is no limit ends this process with a usage line."""
    parser: _Parser = options.parser
    try:
        return Limits(
            memory=_size_or_text(options.memory),  # type: ignore[arg-type]
            cpu_time=_number_or_text(options.cpu_time),  # type: ignore[arg-type]
            wall_time=_number_or_text(options.wall_time),  # type: ignore[arg-type]
            processes=options.processes,
            grace_period=_number_or_text(options.grace_period),  # type: ignore[arg-type]
            open_files=options.open_files,
            file_size=_size_or_text(options.file_size),  # type: ignore[arg-type]
            core_size=_size_or_text(options.core_size),  # type: ignore[arg-type]
            startup_time=60.0,
            from_zero=True,
        )
    except (TypeError, ValueError) as error:
        parser.error(_as_typed(str(error), options))


def _as_typed(complaint: str, options: argparse.Namespace) -> str:
    """Say options where `Limits` says arguments, with the value as it stood on the command line."""

    def option(found: re.Match[str]) -> str:
        name = "--" + found[1].replace("_", "-")
        return name if found[2] is None else f"{name}={getattr(options, found[1])}"

    return _ARGUMENT.sub(option, complaint)


_ARGUMENT = re.compile(
    r"\b(memory|cpu_time|wall_time|processes|grace_period|open_files|file_size|core_size)"
    r"(?:=('[^']*'|\S+)(?: bytes)?|(?<=_time))"  # a bare "memory" or "processes" is the word
)


class _Told(BaseException):  # as KeyboardInterrupt: nothing on the way shall take it for an error
    """The signal of that number has told this process to end."""


def _report_of(command: list[str], limits: Limits) -> tuple[Report, int]:
    """Run the command as a task with this process's own standard streams.

    Gives the signal by which this process was told to end before the command did, or 0.
    """
    pool = Pool(PoolOptions(max_workers=1, no_new_privs=True))
    future: LimitedFuture[None] = LimitedFuture()
    item = Item(future, Call(become, (command,), {}), limits, streams=(0, 1, 2))
    try:
        for number in _ENDING:
            if signal.getsignal(number) is not signal.SIG_IGN:  # by nohup, or a shell's `&`
                signal.signal(number, _end)
        pool.submit(item)
        return _of_command(future.wait_for_report()), 0
    except _Told as told:
        future.cancel()
        return _of_command(future.wait_for_report()), told.args[0]
    finally:
        _ignore_endings()  # the command has ended, and its status shall be told
        pool.close(cancel_queued=True)
        pool.join()


def _of_command(report: Report) -> Report:
    """For a function, to exit is not to return; for a command it is how to end, 0 success."""
    if report.status is not Status.EXIT:
        return report
    if report.exit_code == 0:
        return replace(report, status=Status.OK, exception=None, message="")
    message = f"exited with code {report.exit_code}"
    return replace(report, exception=AnythingException(message), message=message)


_ENDING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


def _end(signum: int, _frame: FrameType | None) -> NoReturn:
    """Once only: timeout(1) signals a process and then its group."""
    _ignore_endings()
    raise _Told(signum)


def _ignore_endings() -> None:
    """By a function: of one that was on its way to SIG_IGN the interpreter complains on stderr."""
    for number in _ENDING:
        signal.signal(number, lambda _signum, _frame: None)


def become(command: list[str]) -> NoReturn:
    """In the task: turn into the command. Python ignores two signals that programs rely on."""
    for number in (signal.SIGPIPE, signal.SIGXFSZ):
        signal.signal(number, signal.SIG_DFL)
    os.execvp(command[0], command)  # noqa: S606  (running it is what was asked for)


def _exit_status(report: Report, caught: int, command: list[str]) -> int:
    """Pass on how the command ended; say on stderr what the user cannot see from that."""
    if report.status is Status.CANCELLED:
        _say(f"{signal_name(caught)} received: the command was ended")
        return _SIGNALLED + caught
    own = _own_status(report)
    if own is None:
        _say(_failure(report, command))
        return _status_of_failure(report)
    if report.limit_reached not in _STATUS_OF_LIMIT:
        return own
    # It was told of a limit and ended by itself. Success is its own to claim.
    _say(_limit_met(report))
    return own and _STATUS_OF_LIMIT[report.limit_reached]


_STATUS_OF_LIMIT = {
    "memory": OVER_LIMIT,
    "processes": OVER_LIMIT,
    "cpu_time": TIMED_OUT,
    "wall_time": TIMED_OUT,
}


def _own_status(report: Report) -> int | None:
    """The status of a command that ended by itself, as a shell gives it; else None."""
    if report.status in (Status.OK, Status.EXIT):
        return report.exit_code or 0
    if report.status is Status.SIGNAL and report.signal is not None:
        return _SIGNALLED + report.signal
    return None


def _status_of_failure(report: Report) -> int:
    """The status for a command that was stopped, or never ran."""
    if report.status is Status.OS_ERROR:
        return NOT_FOUND if isinstance(report.exception, FileNotFoundError) else CANNOT_EXECUTE
    return _STATUS_OF_LIMIT.get(report.status.value, OWN_FAILURE)


def _failure(report: Report, command: list[str]) -> str:
    if report.status is Status.OS_ERROR and isinstance(report.exception, OSError):
        return f"{command[0]}: {report.exception.strerror}"
    return report.message


def _limit_met(report: Report) -> str:
    """Which limit was met by a command that ended by itself, and how much it used."""
    name = str(report.limit_reached)
    limit = report.limits[name].value if name in report.limits else 0
    match name:
        case "processes":
            alive = report.peak_processes
            return f"processes limit of {limit:g} met: forks were refused, {alive} alive at once"
        case "memory":
            held = size_text(report.peak_memory)
            return f"memory limit of {size_text(limit)} met: held {held}"
        case "cpu_time":
            return f"cpu_time limit of {limit:g} s passed: used {report.cpu_time:.3f} s"
        case _:
            return f"wall_time limit of {limit:g} s passed: ran for {report.wall_time:.3f} s"


def _say(line: str) -> None:
    print(f"pynisher_exec: {line}", file=sys.stderr)  # noqa: T201  (a command line's voice)


# doctor and demo ---------------------------------------------------------------------------------


def _doctor(_options: argparse.Namespace) -> int:
    lines = [f"Linux {os.uname().release}, {os.uname().machine}, uid {os.getuid()}", ""]
    for name in LIMITS:
        found = supports(name)
        lines.append(f"{name:13} {found:5} {found.mechanism}; passed by: {found.bound}")
        if found.harder:
            lines.append(f"{'':19} to make it hard: {found.harder}")
    lines += ["", *(f"{name:13} {remark}" for name, remark in remarks().items())]
    print("\n".join(lines))  # noqa: T201  (a command line's voice)
    return 0


def _page(options: argparse.Namespace) -> int:
    from pynisher_exec.page import build  # noqa: PLC0415  (for this alone)
    from pynisher_exec.searches.reader import read  # noqa: PLC0415
    from pynisher_exec.searches.record_file import RecordError  # noqa: PLC0415

    output = Path(options.output)
    try:
        if output.exists() and output.samefile(options.record):
            _say(f"{output}: this is the record; choose another name for its page")
            return 1
        with read(options.record) as reader:
            name = Path(options.record).name
            going_on = reader.is_going_on()
            text = build(reader.tasks(), reader.searches(), name=name, going_on=going_on)
        _write_whole(output, text)
    except RecordError as error:
        _say(str(error))
        return 1
    except OSError as error:
        _say(f"{options.output}: {error.strerror}")
        return 1
    return 0


def _write_whole(path: Path, text: str) -> None:
    """Write a file that is there whole or as it was before; one that is a pipe or so, as it is."""
    if path.exists() and not path.is_file():
        path.write_text(text, encoding="utf-8")
        return
    path = Path(os.path.realpath(path))  # what a link leads to
    part = path.with_name(f"{path.name}.{secrets.token_hex(4)}")
    with part.open("x", encoding="utf-8") as file:  # its own: no link that somebody has put there
        try:
            file.write(text)
            file.flush()
            part.replace(path)
        except OSError:
            part.unlink()
            raise


def _demo(options: argparse.Namespace) -> int:
    from pynisher_exec import demo  # noqa: PLC0415  (needs the extra `demo`)

    status: int = demo.run(Path(options.output))
    return status
