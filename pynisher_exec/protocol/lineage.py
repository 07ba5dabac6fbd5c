"""What an exception was raised from: its causes and contexts, which a pickle leaves behind."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from types import TracebackType

__all__ = ["Lineage", "cause_of", "family", "set_cause", "trace_of"]

MOST = 100
"""Exceptions of one lineage that travel; what is further away stays behind."""


class _Links(NamedTuple):
    """Of one exception: the places of its cause and its context, and whether that is suppressed."""

    cause: int | None
    context: int | None
    suppressed: bool


class Lineage:
    """An exception with all that it comes from; what a group has in it has a lineage too."""

    def __init__(self, members: list[BaseException], links: list[_Links]) -> None:
        self._members = members
        self._links = links

    @classmethod
    def of(cls, error: BaseException) -> Lineage | None:
        """Give an exception's; None where a pickle of it alone has everything."""
        members = [error]
        places = {id(error): 0}

        def place(other: BaseException | None) -> int | None:
            if other is None:
                return None
            if id(other) not in places and len(members) < MOST:
                places[id(other)] = len(members)
                members.append(other)
            return places.get(id(other))

        links = []
        for each in members:  # grows while it is walked
            context = _plain("__context__", each)
            suppressed = _plain("__suppress_context__", each)
            links.append(_Links(place(cause_of(each)), place(context), suppressed))
            for part in _parts(each):
                place(part)
        is_alone = all(link.cause is link.context is None for link in links)
        return None if is_alone else cls(members, links)

    def restore(self) -> BaseException:
        """Link what has been loaded, and give the exception."""
        for member, links in zip(self._members, self._links, strict=True):
            values = {
                "__cause__": None if links.cause is None else self._members[links.cause],
                "__context__": None if links.context is None else self._members[links.context],
                "__suppress_context__": links.suppressed,  # last: a cause sets it as well
            }
            for name, value in values.items():
                BaseException.__setattr__(member, name, value)  # a class may forbid its own way
        return self._members[0]


def family(error: BaseException) -> list[BaseException]:
    """An exception, what it comes from, and what is in groups among those; no foreign code runs."""
    found = [error]
    known = {id(error)}
    for each in found:  # grows while it is walked
        parts = _parts(each)
        for other in (cause_of(each), _plain("__context__", each), *parts):
            if other is not None and id(other) not in known:
                known.add(id(other))
                found.append(other)
    return found


def set_cause(error: BaseException, cause: BaseException | None) -> None:
    """Set it past a class that forbids attributes to be set, or has one of its own of that name."""
    vars(BaseException)["__cause__"].__set__(error, cause)


def trace_of(error: BaseException) -> TracebackType | None:
    """Give where an exception has been, by the innermost way to it."""
    found: TracebackType | None = _plain("__traceback__", error)
    return found


def cause_of(error: BaseException) -> BaseException | None:
    """Give what an exception was raised from."""
    found: BaseException | None = _plain("__cause__", error)
    return found


def _plain(name: str, error: BaseException) -> Any:
    """An attribute by the base class's own means: a subclass may have one of its own making."""
    return vars(BaseException)[name].__get__(error)


def _parts(error: BaseException) -> list[BaseException]:
    """What a group of exceptions holds, that of the `exceptiongroup` package too."""
    try:
        found = getattr(error, "exceptions", ())
    except Exception:  # noqa: BLE001  (a foreign property)
        return []
    if not isinstance(found, tuple):
        return []
    return [each for each in found if isinstance(each, BaseException)]
