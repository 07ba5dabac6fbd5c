"""What a person is told of an ending: one line, with the figures, and what to do where it is plain.

Pure: evidence and verdict go in, text comes out.
"""

from __future__ import annotations

import signal
from typing import TYPE_CHECKING, Any, Final

from pynisher_exec.limits import size_text
from pynisher_exec.report import Status, signal_name
from pynisher_exec.task.outcome import line_of

if TYPE_CHECKING:
    from pynisher_exec.verdict import Evidence, Verdict

__all__ = ["message_of", "one_line", "sentence"]

_CRASHES: Final = {signal.SIGSEGV, signal.SIGBUS, signal.SIGILL, signal.SIGFPE, signal.SIGABRT}
"""What native code dies of that has an error."""

_LONGEST = 1000


def one_line(text: str) -> str:
    """Give a text without line breaks, cut to a bound."""
    line = " ".join(text.split())
    return line if len(line) <= _LONGEST else line[: _LONGEST - 3] + "..."


def message_of(error: BaseException, *, is_ours: bool) -> str:
    """What an error says, on one line; with its class, unless the sentence is one of these here."""
    if is_ours and error.args:
        return one_line(str(error.args[0]))
    return one_line(line_of(error))


def sentence(status: Status, evidence: Evidence, verdict: Verdict, facts: dict[str, Any]) -> str:
    """Say what happened."""
    limit = evidence.limits.get(status.value)
    value = 0.0 if limit is None else limit.value
    match status:
        case Status.MEMORY:
            return f"memory limit of {size_text(value)} {_held(evidence, facts, value)}"
        case Status.CPU_TIME:
            spent = evidence.cpu_time if evidence.used is None else evidence.used
            return f"cpu_time limit of {value:g} s passed: used {spent:.3f} s"
        case Status.WALL_TIME:
            # How much of it was work tells a hang from a slow candidate.
            ran = f"{evidence.wall_time:.3f} s, {evidence.cpu_time:.3f} s of CPU time used"
            return f"wall_time limit of {value:g} s passed after {ran}"
        case Status.PROCESSES:
            return _refused_processes(evidence, value)
        case Status.STARTUP:
            return _startup(evidence, verdict, facts)
        case Status.EXCEPTION:
            what = f"the outcome of type {evidence.what} could not be pickled and tried"
            return f"{what}: {_end(evidence, verdict)}"
        case _:
            return _other(status, evidence, verdict)


def _held(evidence: Evidence, facts: dict[str, Any], limit: float) -> str:
    if not evidence.used:
        peak = size_text(evidence.peak_memory)
        held = f"met: an allocation was refused; {peak} were held at most"
        said = facts.get("message")
        if not said and evidence.peak_memory < limit / 2:
            said = "memory that is only reserved counts here"
        return f"{held}; {said}" if said else held
    detail = f" {evidence.detail}" if evidence.detail else ""
    return f"passed: {size_text(evidence.used)} held{detail}"


def _refused_processes(evidence: Evidence, value: float) -> str:
    if evidence.killed == "processes" and evidence.used is not None:  # where they are counted
        return f"limit of {value:g} subprocesses passed: {evidence.used:g} alive at once"
    count = evidence.refused_forks
    refused = f"{count} fork{'s' * (count > 1)} refused" if count else "all forks refused"
    return f"limit of {value:g} subprocesses met: {refused}"  # a filter counts none


def _startup(evidence: Evidence, verdict: Verdict, facts: dict[str, Any]) -> str:
    if facts.get("outcome") == "startup":
        return f"the call could not be loaded in its task: {facts.get('message') or 'no reason'}"
    if evidence.killed == "startup_time":
        return (
            f"the call was not loaded within startup_time, {evidence.used:.1f} s: "
            "its imports, its arguments and the initializer have to be done by then"
        )
    if evidence.killed == "transfer":  # there is nothing to be delivered yet, but to be sent
        return "the call could not be sent to its task"
    return f"the task ended while its call was being loaded: {_end(evidence, verdict)}"


def _other(status: Status, evidence: Evidence, verdict: Verdict) -> str:
    match status:
        case Status.SIGNAL if verdict.signal is not None:
            return _ended_by(verdict.signal)
        case Status.EXIT:
            if verdict.exit_code is None:  # of a process that serves several tasks, and lives
                return "its word that it returned did not reach its supervisor"
            return f"exited with code {verdict.exit_code} before the function returned"
        case Status.TRANSFER:
            return "the outcome could not be delivered"
        case Status.CANCELLED:
            return "cancelled while it ran"
        case Status.SUPERVISOR_LOST:
            return "the supervisor of this task has gone, killed perhaps by the task"
        case Status.UNKILLABLE:
            return f"processes that cannot be killed: {', '.join(map(str, evidence.survivors))}"
        case _:
            return str(status)


def _ended_by(number: int) -> str:
    said = f"ended by {signal_name(number)}"
    if number in _CRASHES:
        return f"{said}: faulthandler.enable() in the function shows where"
    if number == signal.SIGKILL:
        return f"{said}, not sent by a limit: by the kernel for want of memory, or by somebody"
    return said


def _end(evidence: Evidence, verdict: Verdict) -> str:
    if evidence.limit_reached:
        return f"{evidence.limit_reached} limit passed"
    if verdict.signal is not None:
        return f"ended by {signal_name(verdict.signal)}"
    if verdict.exit_code is not None:
        return f"exited with code {verdict.exit_code}"
    return "ended"
