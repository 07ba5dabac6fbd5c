"""Runs tests in a small Linux of its own, under emulation, as root and as a user of it.

    python tests/guest/boot.py [--cache FOLDER] [TEST...]

For what hosts often cannot show: cgroup v2 with its controllers, delegated to a normal user, and a
kernel of one's own. The emulator and the kernel are Debian's packages, unpacked into the cache and
not installed; all else in it is this interpreter, its libraries and what the tests import. Where
the packages cannot be had it says so and ends well: they are no part of what is tested.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import stat
import subprocess
import sys
import tempfile
import threading
from importlib import metadata
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING

import pynisher_exec

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

HERE = Path(__file__).parent
TESTS = HERE.parent
DEFAULT = [f"test_reliability.py::test_promise_is_kept[{row}]" for row in (12, 15, 16, 18)]
PACKAGES = ("pytest", "pytest-timeout", "hypothesis", "pynisher_exec")
PROGRAMS = ("sh", "sleep", "cat", "true")
EMULATOR = "qemu-system-x86"
KERNEL = re.compile(r"linux-image-([0-9.]+)-cloud-amd64")
MEMORY, PROCESSORS = 2048, 2
LONGEST = 900
"""Seconds; emulated code is ten to thirty times slower."""

LEFT_OUT = {"test", "site-packages", "idlelib", "lib2to3", "tkinter", "ensurepip", "turtledemo"}
ENDED = re.compile(r"guest: ended with (\d+)")
COMMAND_LINE = "console=ttyS0 quiet panic=-1 random.trust_cpu=on mitigations=off rdinit=/init"


class CannotBeHadError(Exception):
    """A package, or the right to unpack it."""


# The emulator and a kernel -----------------------------------------------------------------------


def tool(*command: str, folder: Path | None = None) -> str:
    """Run a program of the system's; CannotBeHadError where it is not there or fails."""
    try:
        done = subprocess.run(command, capture_output=True, check=True, cwd=folder, text=True)
    except FileNotFoundError as error:
        msg = f"{command[0]} is not there"
        raise CannotBeHadError(msg) from error
    except subprocess.CalledProcessError as error:
        lines = error.stderr.strip().splitlines() or ["no reason"]
        msg = f"{' '.join(command[:2])}: {lines[-1]}"
        raise CannotBeHadError(msg) from error
    return done.stdout


def newest_kernel() -> str:
    """The package of the newest kernel for virtual machines that there is."""
    names = tool("apt-cache", "search", "--names-only", "^linux-image-.*cloud-amd64$")
    found = {match[1]: match[0] for match in KERNEL.finditer(names)}
    if not found:
        msg = "no package of a kernel for virtual machines"
        raise CannotBeHadError(msg)
    newest = max(found, key=lambda version: [int(part) for part in version.split(".") if part])
    package = found[newest]
    for line in tool("apt-cache", "depends", package).splitlines():
        if "Depends: linux-image" in line:  # it is a name for one of the day
            package = line.split()[-1]
    return package


def unpack_packages(root: Path) -> None:
    """Have emulator and kernel below `root`."""
    if (root / "complete").exists():
        return
    archives = root / "archives"
    (archives / "partial").mkdir(parents=True, exist_ok=True)
    options = ("-o", f"Dir::Cache::archives={archives}", "-y", "--no-install-recommends")
    tool("apt-get", "update")
    tool("apt-get", "install", *options, "--download-only", EMULATOR)
    kernel = newest_kernel()
    if not any(archives.glob(f"{EMULATOR}_*")):  # it is installed, so nothing was fetched for it
        tool("apt-get", "install", *options, "--download-only", "--reinstall", EMULATOR)
    tool("apt-get", "download", kernel, folder=archives)
    for archive in archives.glob("*.deb"):
        tool("dpkg-deb", "--extract", str(archive), str(root))
    shutil.rmtree(archives)
    (root / "complete").touch()


# What is in the guest ----------------------------------------------------------------------------


def contents() -> Iterator[tuple[str, bytes, int]]:
    """Everything that the guest has: path, content, time of the last change (for .pyc files)."""
    interpreter = Path(sys.executable).resolve()
    init = f"#!{interpreter} -u\n".encode() + (HERE / "init.py").read_bytes()
    yield "/init", init, 0
    seen = set()
    for target, path in chain(files(interpreter), libraries(interpreter)):
        if target not in seen:
            seen.add(target)
            yield target, path.read_bytes(), int(path.stat().st_mtime)


def files(interpreter: Path) -> Iterator[tuple[str, Path]]:
    """The interpreter, its library, what the tests import, the tests, and a few programs."""
    yield str(interpreter), interpreter
    library = Path(os.__file__).parent
    yield from ((str(path), path) for path in below(library))
    for name in PROGRAMS:
        yield f"/bin/{name}", Path(shutil.which(name) or f"/bin/{name}").resolve()
    for name in distributions(PACKAGES):
        for file in metadata.files(name) or ():
            path = Path(str(file.locate()))
            if ".." not in file.parts and path.is_file():
                yield f"/site/{file}", path
    package = Path(pynisher_exec.__file__).parent  # an editable install lists no files
    yield from ((f"/site/{path.relative_to(package.parent)}", path) for path in below(package))
    for folder in (TESTS, TESTS.parent / "benchmarks"):
        yield from ((f"/{path.relative_to(TESTS.parent)}", path) for path in below(folder))
    yield "/pyproject.toml", TESTS.parent / "pyproject.toml"


def below(folder: Path) -> Iterator[Path]:
    """Files in a folder, but for what nobody imports."""
    for path in folder.rglob("*"):
        left_out = LEFT_OUT.intersection(path.relative_to(folder).parts)
        if path.is_file() and path.suffix != ".a" and not left_out:
            yield path


def distributions(names: Iterable[str]) -> set[str]:
    """Those that are installed here of some distributions and all that these require."""
    found: set[str] = set()
    left = list(names)
    while left:
        name = left.pop()
        if name in found:
            continue
        try:
            required = metadata.requires(name) or []
        except metadata.PackageNotFoundError:  # for another Python, or an extra
            continue
        found.add(name)
        left += [
            re.split(r"[^\w.-]", each, maxsplit=1)[0] for each in required if "extra ==" not in each
        ]
    return found


def libraries(interpreter: Path) -> Iterator[tuple[str, Path]]:
    """What the dynamic loader needs for all programs and modules in it, and the loader itself."""
    programs = [path for _, path in files(interpreter) if path.suffix == ".so"]
    programs += [interpreter, *(path for target, path in files(interpreter) if "/bin/" in target)]
    for line in tool("ldd", *sorted(set(map(str, programs)))).splitlines():
        for word in line.split():
            if word.startswith("/") and ".so" in word and not word.endswith(":"):
                yield word, Path(word).resolve()
    for path in Path("/lib").glob("*/libgcc_s.so.1"):  # the C library asks for it by name
        yield str(path), path.resolve()


def write_image(path: Path) -> None:
    """Write an archive that the kernel unpacks as its first file system (cpio, newc)."""
    made: set[str] = set()
    with path.open("wb") as archive:
        for number, (target, content, changed) in enumerate(contents(), 1):
            for parent in reversed(Path(target).parents):
                if str(parent) not in {"/", *made}:
                    made.add(str(parent))
                    archive.write(entry(str(parent), b"", stat.S_IFDIR | 0o755, 0, number))
            archive.write(entry(target, content, stat.S_IFREG | 0o755, changed, number))
        archive.write(entry("TRAILER!!!", b"", 0, 0, 0))


def entry(path: str, content: bytes, mode: int, changed: int, number: int) -> bytes:
    """One member: thirteen fields in hexadecimal, the name, the content, each padded to four."""
    name = path.lstrip("/").encode() + b"\0"
    fields = (number, mode, 0, 0, 1, changed, len(content), 0, 0, 0, 0, len(name), 0)
    head = b"070701" + b"".join(b"%08X" % field for field in fields) + name
    return b"".join(part + bytes(-len(part) % 4) for part in (head, content))


# The run -----------------------------------------------------------------------------------------


PANICKED, TRIES = -1, 3
"""The emulator now and then corrupts the kernel, mostly where that changes its own code while
another processor runs it: no program in it can do that, so that says nothing of the tests."""


def boot(root: Path, tests: list[str]) -> int:
    """Run the tests in the guest, its output on ours; what they ended with."""
    with tempfile.TemporaryDirectory() as folder:
        image = Path(folder, "image")
        write_image(image)
        kernel = next((root / "boot").glob("vmlinuz-*"))
        words = " ".join([COMMAND_LINE, "--", *(f"/tests/{test}" for test in tests)])
        command = [
            *(str(root / "usr/bin/qemu-system-x86_64"), "-accel", "tcg"),
            *("-L", str(root / "usr/share/qemu"), "-L", str(root / "usr/share/seabios")),
            *("-cpu", "max,la57=off", "-smp", str(PROCESSORS), "-m", str(MEMORY)),
            *("-nodefaults", "-no-reboot", "-display", "none", "-nic", "none", "-serial", "stdio"),
            *("-kernel", str(kernel), "-initrd", str(image), "-append", words),
        ]
        return watch(command, root)


def watch(command: list[str], root: Path) -> int:
    """Show what the guest prints, until it ends or takes too long."""
    paths = [str(path) for path in (root / "usr/lib").glob("*-linux-gnu")]
    paths += [str(path) for path in (root / "lib").glob("*-linux-gnu")]
    environment = {**os.environ, "LD_LIBRARY_PATH": os.pathsep.join(paths)}
    code = 1
    with subprocess.Popen(
        command, env=environment, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True
    ) as emulator:
        alarm = threading.Timer(LONGEST, emulator.kill)
        alarm.start()
        for line in emulator.stdout or ():
            print(line.rstrip(), flush=True)
            if match := ENDED.match(line):
                code = int(match[1])
            if "Kernel panic" in line:
                code = PANICKED
        alarm.cancel()
    return code


def main() -> int:
    """Run the tests that are named; 0 as well where the guest cannot be had."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cache", type=Path, default=Path(tempfile.gettempdir(), "pynisher-guest"))
    parser.add_argument("tests", nargs="*", default=DEFAULT)
    options = parser.parse_args()
    try:
        unpack_packages(options.cache)
    except CannotBeHadError as error:
        print(f"guest: not run, {error}")
        return 0
    code = PANICKED
    for _ in range(TRIES):
        code = boot(options.cache, options.tests)
        if code != PANICKED:
            break
        print("guest: the emulated kernel panicked", flush=True)
    return code


if __name__ == "__main__":
    sys.exit(main())
