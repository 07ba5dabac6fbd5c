"""Memory that is written once and read by many: a sealed memfd, in huge pages where it may be.

Once sealed (F_SEAL_WRITE, memfd_create(2)) its bytes are the same for everybody for ever. A private
map of it can be written to all the same, and what is written is the writer's alone.

Huge pages make a fresh map as fast to read as memory of one's own: one fault for 2 MiB. Shared
memory gets them by MADV_COLLAPSE only (madvise(2), since Linux 6.1), whatever the system-wide
setting says; where it does not, a first reading takes three times as long.
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import mmap
import os
import weakref
from typing import TYPE_CHECKING, Final

from pynisher_exec.kernel import libc
from pynisher_exec.kernel.memory_copy import HUGE_PAGE, PIECE

if TYPE_CHECKING:
    from collections.abc import Iterable

__all__ = ["create", "view"]

_MADV_COLLAPSE = 25
_PROT_NONE = 0
_MAP_FIXED = 0x10
_MAP_NORESERVE = 0x4000
"""The same on x86_64 and aarch64 (asm-generic/mman-common.h, mman.h)."""

_SEALS: Final = fcntl.F_SEAL_WRITE | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL


def create(parts: Iterable[tuple[int, bytes | memoryview]], length: int) -> int:
    """Give a descriptor of `length` bytes with these parts at their places, and sealed.

    OSError where there is no memory for it, no descriptor, or where RLIMIT_FSIZE forbids it.
    """
    # The name is what `proc.sealed_memory` looks for.
    descriptor = os.memfd_create("shared", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    try:
        os.ftruncate(descriptor, length)
        for place, part in parts:
            _write(descriptor, place, memoryview(part).cast("B"))
        if length >= HUGE_PAGE:
            with contextlib.suppress(OSError):  # before Linux 6.1, or no huge page to be had
                _collapse(descriptor, length // HUGE_PAGE * HUGE_PAGE)
        fcntl.fcntl(descriptor, fcntl.F_ADD_SEALS, _SEALS)
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


def view(descriptor: int, length: int) -> memoryview:
    """Map all of it, privately, for as long as the view is used. OSError for want of room."""
    if not length:
        return memoryview(b"")
    address, *room = _map(descriptor, length, mmap.MAP_PRIVATE)
    mapped = (ctypes.c_char * length).from_address(address)
    weakref.finalize(mapped, _unmap, *room).atexit = False
    return memoryview(mapped)


def _write(descriptor: int, place: int, part: memoryview) -> None:
    done = 0
    while done < len(part):
        done += os.pwrite(descriptor, part[done : done + PIECE], place + done)


def _collapse(descriptor: int, length: int) -> None:
    address, *room = _map(descriptor, length, mmap.MAP_SHARED)
    try:
        libc.syscall(libc.number("madvise"), address, length, _MADV_COLLAPSE)
    finally:
        _unmap(*room)


def _unmap(address: int, length: int) -> None:
    libc.syscall(libc.number("munmap"), address, length)


def _map(descriptor: int, length: int, kind: int) -> tuple[int, int, int]:
    """Map it at a multiple of a huge page, where the kernel can use those.

    For that, more is reserved than is needed: addresses, and no memory. Gives the address, and
    address and length of what is to be unmapped with it.
    """
    call, access = libc.number("mmap"), mmap.PROT_READ | mmap.PROT_WRITE
    room, flags = length + HUGE_PAGE, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | _MAP_NORESERVE
    address = libc.syscall(call, 0, room, _PROT_NONE, flags, -1)
    aligned = -(-address // HUGE_PAGE) * HUGE_PAGE
    try:
        libc.syscall(call, aligned, length, access, kind | _MAP_FIXED, descriptor)
    except OSError:
        _unmap(address, room)
        raise
    return aligned, address, room
