"""The kernel's facilities, one a module, and the only place with ctypes and system call numbers.

Everything raises OSError with the kernel's own errno. Where a machine is neither x86_64 nor
aarch64 the numbers are unknown, and a facility that needs one answers ENOSYS: it counts as absent.
"""
