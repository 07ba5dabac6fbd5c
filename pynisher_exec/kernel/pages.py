"""Pages of this process's memory: which its forks copy, and having them copied as they fork."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import mmap
import os
import resource
import struct
import sys
from typing import TYPE_CHECKING, NamedTuple

from pynisher_exec.kernel import capabilities, libc

if TYPE_CHECKING:
    import io
    from collections.abc import Collection, Iterator

__all__ = ["Pin", "copied_by", "may_lock", "may_pin"]

SIZE = mmap.PAGESIZE
MOST_MAPPED = 1 << 30
"""Bytes of writable mappings that are looked through, which takes 1 ms where nothing is there, and
60 ms where all is."""

_ENTRY = 8
_PIECE = 1 << 24
_TOP = 7 if sys.byteorder == "little" else 0
_PRESENT, _OF_FILE, _EXCLUSIVE = 0x80, 0x20, 0x01
"""The byte of a page's entry in /proc/PID/pagemap that says whether the page is there, a file's,
nobody else's as well: bits 63, 61 and 56."""

_THERE = bytes(byte & _PRESENT != 0 for byte in range(256))
_KIND = _PRESENT | _OF_FILE | _EXCLUSIVE
_OWN = bytes(byte & _KIND == _PRESENT | _EXCLUSIVE for byte in range(256))

_REGISTER_BUFFERS, _UNREGISTER_BUFFERS = 0, 1
_LONGEST_PARAMETERS = 256

LOCKED_PART = 64
"""What is pinned counts as locked: a process takes no more than this part of what its user may."""


class _Span(NamedTuple):
    """A mapping that is private and writable. `of_file`: what is not written to is a file's."""

    begin: int
    end: int
    of_file: bool


def _spans() -> list[_Span]:
    found = []
    with open("/proc/self/maps", encoding="utf-8", errors="replace") as file:
        for line in file:
            place, rights, _, _, inode = line.split(None, 5)[:5]
            if rights[1] == "w" and rights[3] == "p":
                begin, end = (int(each, 16) for each in place.split("-"))
                found.append(_Span(begin, end, inode != "0"))
    return found


def copied_by(fork: int, most: int) -> list[int]:
    """Addresses of this process's pages that a fork of it has written to, and so has copies of.

    Only the first ones where there are more than `most`. What it has not written to it shares: see
    bit 56 in Documentation/admin-guide/mm/pagemap.rst.

    OSError where it may not be looked at or has gone, MemoryError where there is too much to see.
    """
    spans = _spans()
    if sum(span.end - span.begin for span in spans) > MOST_MAPPED:
        raise MemoryError
    found = []
    with _open_map("self") as own, _open_map(fork) as theirs:
        for begin, end, _ in spans:
            for piece in range(begin, end, _PIECE):
                length = (min(end, piece + _PIECE) - piece) // SIZE * _ENTRY
                copies = _read(theirs, piece, length).translate(_OWN)
                if 1 in copies:
                    there = _read(own, piece, length).translate(_THERE)
                    found += [piece + n * SIZE for n in _places(copies) if there[n]]
                if len(found) >= most:
                    return found[:most]
    return found


def _open_map(pid: int | str) -> io.FileIO:
    return open(f"/proc/{pid}/pagemap", "rb", buffering=0)


def _read(pagemap: io.FileIO, address: int, length: int) -> bytes:
    """What there is of each page's entry."""
    return os.pread(pagemap.fileno(), length, address // SIZE * _ENTRY)[_TOP::_ENTRY]


def _places(flags: bytes) -> Iterator[int]:
    """Where there is a 1."""
    place = flags.find(1)
    while place >= 0:
        yield place
        place = flags.find(1, place + 1)


class Pin:
    """Pages that each fork of this process gets as copies of its own, at the fork.

    Else they are shared until either side writes to them, which is a fault for each, on both sides
    when both do: twice what the copying costs. What is pinned for a device cannot be shared, for
    that might write to it: so fork copies it, since Linux 5.10 (copy_present_page in mm/memory.c).
    Here nothing is ever read or written; to register buffers is io_uring's way to pin them
    (io_uring_register_buffers(3)).

    OSError from the constructor where the kernel or a sandbox has no io_uring.
    """

    def __init__(self) -> None:
        parameters = ctypes.create_string_buffer(_LONGEST_PARAMETERS)
        call = libc.number("io_uring_setup")
        self._descriptor = libc.syscall(call, 1, ctypes.addressof(parameters))

    def hold(self, addresses: Collection[int]) -> None:
        """Pin the pages there, which have to be writable; once.

        OSError where that cannot be, or is not wise: others may have to lock memory as well; of
        pages that lie in a huge one, a fork would copy all.
        """
        if not may_pin(len(addresses)):
            raise OSError(errno.ENOMEM, os.strerror(errno.ENOMEM))
        try:
            self._register(addresses)
        except OSError as error:
            if error.errno != errno.EOPNOTSUPP:  # Linux before 6.5 pins nothing of a file's mapping
                raise
            spans = [span for span in _spans() if not span.of_file]
            self._register([at for at in addresses if any(s.begin <= at < s.end for s in spans)])

    def _register(self, addresses: Collection[int]) -> None:
        runs = _runs(addresses)
        vector = ctypes.create_string_buffer(b"".join(struct.pack("PN", *run) for run in runs))
        call, place = libc.number("io_uring_register"), ctypes.addressof(vector)
        libc.syscall(call, self._descriptor, _REGISTER_BUFFERS, place, len(runs))

    def release(self) -> None:
        """Let go of them: the next fork shares them. `close` alone does that some time later."""
        with contextlib.suppress(OSError):  # none were held
            libc.syscall(
                libc.number("io_uring_register"), self._descriptor, _UNREGISTER_BUFFERS, 0, 0
            )
        self.close()

    def close(self) -> None:
        """Close a descriptor that, in a fork, stands for the parent's pages."""
        os.close(self._descriptor)


def may_pin(count: int) -> bool:
    """Whether so many pages may be pinned, and are wise to be: see `Pin.hold`."""
    return may_lock(count * SIZE) and not _has_huge_pages()


def may_lock(size: int) -> bool:
    """Whether that many bytes are little of what this process's user may lock."""
    most = resource.getrlimit(resource.RLIMIT_MEMLOCK)[0]
    boundless = most == resource.RLIM_INFINITY or capabilities.has(capabilities.IPC_LOCK)
    return boundless or size <= most // LOCKED_PART


def _has_huge_pages() -> bool:
    with open("/proc/self/smaps_rollup", "rb") as file:
        return any(line.startswith(b"AnonHugePages:") and line.split()[1] != b"0" for line in file)


def _runs(addresses: Collection[int]) -> list[tuple[int, int]]:
    """Beginning and length of what lies together."""
    runs: list[tuple[int, int]] = []
    for address in sorted(set(addresses)):
        begin, length = runs[-1] if runs else (0, 0)
        if begin + length == address:
            runs[-1] = begin, length + SIZE
        else:
            runs.append((address, SIZE))
    return runs
