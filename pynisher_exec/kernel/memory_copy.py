"""Memory that another process copies, or that is copied from it: process_vm_readv(2)."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import mmap
import struct
from typing import TYPE_CHECKING

from pynisher_exec.kernel import libc

if TYPE_CHECKING:
    Buffer = bytes | bytearray | memoryview | mmap.mmap

__all__ = ["HUGE_PAGE", "PIECE", "address_of", "copy_from", "copy_to", "is_there", "room"]

PIECE = 1 << 26
"""Bytes copied by one call, so that a signal or an end is met before too long."""

HUGE_PAGE = 1 << 21
"""Bytes, on the machines that there are numbers for."""

_POPULATE_READ = 22  # MADV_POPULATE_READ


class _View(ctypes.Structure):
    """The head of CPython's Py_buffer (Include/cpython/object.h); `rest` is more than its tail."""

    _fields_ = (
        ("address", ctypes.c_void_p),
        ("owner", ctypes.c_void_p),
        ("length", ctypes.c_ssize_t),
        ("rest", ctypes.c_char * 128),
    )


_get = ctypes.pythonapi.PyObject_GetBuffer
_get.argtypes = [ctypes.py_object, ctypes.POINTER(_View), ctypes.c_int]
_release = ctypes.pythonapi.PyBuffer_Release
_release.argtypes = [ctypes.POINTER(_View)]


def address_of(buffer: Buffer) -> int:
    """Where the bytes of a contiguous buffer lie, as long as it lives. BufferError for another."""
    view = _View()
    _get(buffer, ctypes.byref(view), 0)
    try:
        return view.address or 0
    finally:
        _release(ctypes.byref(view))


def room(length: int) -> mmap.mmap:
    """Private memory, in huge pages where there are any: its pages come one fault each."""
    made = mmap.mmap(-1, length, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    if hasattr(mmap, "MADV_HUGEPAGE"):
        with contextlib.suppress(OSError):  # a kernel without them
            made.madvise(mmap.MADV_HUGEPAGE)
    return made


def is_there(buffer: Buffer) -> bool:
    """Whether all of a buffer can be read, by others too; its pages are there then.

    Not where that would be a SIGBUS, as behind the end of a file that has been cut, or a SIGSEGV.
    It is believed where the kernel cannot say, before Linux 5.14: see madvise(2).
    """
    place, length = address_of(buffer), memoryview(buffer).nbytes
    begin = place - place % mmap.PAGESIZE
    try:
        libc.syscall(libc.number("madvise"), begin, place + length - begin, _POPULATE_READ)
    except OSError as error:
        return error.errno not in (errno.EFAULT, errno.ENOMEM)
    return True


def copy_from(pid: int, address: int, into: mmap.mmap, at: int) -> int:
    """Copy what lies at an address of another process into a buffer, from its byte `at` on.

    Gives how much: a piece, or what was left. The interpreter lock is free meanwhile. OSError where
    this process may not trace that one, where it has gone, and where nothing is there.
    """
    return _copy("process_vm_readv", pid, into, at, address)


def copy_to(pid: int, address: int, source: Buffer, at: int) -> int:
    """Copy a buffer, from its byte `at` on, to an address of another process; as `copy_from`."""
    return _copy("process_vm_writev", pid, source, at, address)


def _copy(call: str, pid: int, own: Buffer, at: int, address: int) -> int:
    with memoryview(own) as view:
        length = min(PIECE, view.nbytes - at)
        here = ctypes.create_string_buffer(struct.pack("PN", address_of(view) + at, length))
        there = ctypes.create_string_buffer(struct.pack("PN", address, length))
        places = ctypes.addressof(here), 1, ctypes.addressof(there), 1
        return libc.syscall(libc.number(call), pid, *places)
