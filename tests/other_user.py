"""Run scripts and tests as another user, from copies that this user may read.

Root's home is often closed to others, and with it the interpreter, the environment and the
checkout. So all are copied: the interpreter with its standard library, the installed packages,
`pynisher_exec` as it is tested here, the tests. Made once a session, by the fixture `as_nobody`.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import pynisher_exec

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

__all__ = ["NOBODY", "OtherUser"]

NOBODY = 65534

_TESTS = Path(__file__).parent
_VERSION = f"{sys.version_info.major}.{sys.version_info.minor}"
_LIBRARY_NOT_COPIED = shutil.ignore_patterns(
    "config-*", "dist-packages", "idlelib", "lib2to3", "site-packages", "test", "tkinter"
)
"""Parts of the standard library without a use here; the packages are copied on their own."""

_PACKAGES_NOT_COPIED = shutil.ignore_patterns("numpy*", "pandas*", "scipy*", "sklearn*")
"""Large ones without a use here."""


def _copy(source: Path, target: Path) -> None:
    shutil.copytree(
        source,
        target,
        ignore=_PACKAGES_NOT_COPIED if "packages" in source.name else _LIBRARY_NOT_COPIED,
        ignore_dangling_symlinks=True,
        dirs_exist_ok=True,
    )


def _copy_interpreter(root: Path) -> Path:
    """Copy the interpreter that the environment builds on; it finds its library beside itself."""
    base = Path(sys.base_prefix)
    for key in ("stdlib", "platstdlib"):
        library = Path(sysconfig.get_path(key, vars={"base": str(base), "platbase": str(base)}))
        library = library if library.is_relative_to(base) else Path(os.__file__).parent
        _copy(library, root / library.relative_to(base))
    for name in {*(sysconfig.get_config_vars("LDLIBRARY", "INSTSONAME"))}:
        library = Path(sysconfig.get_config_var("LIBDIR") or "", str(name))
        if ".so" in library.name and library.exists():
            (root / "lib").mkdir(exist_ok=True)
            shutil.copy2(library, root / "lib" / library.name)
    program = root / "bin" / f"python{_VERSION}"
    program.parent.mkdir()
    shutil.copy2(Path(sys.executable).resolve(), program)
    return program


def _copy_packages(target: Path) -> None:
    """Copy what is installed, what stands first on the path last, so that it wins."""
    folders = [
        Path(entry) for entry in sys.path if entry.endswith(("site-packages", "dist-packages"))
    ]
    for folder in filter(Path.is_dir, reversed(folders)):
        _copy(folder, target)
    package = Path(pynisher_exec.__file__).parent
    shutil.rmtree(target / package.name, ignore_errors=True)
    shutil.copytree(package, target / package.name)


def _open_to_all(root: Path) -> None:
    """Let everybody read all of it, and run what its owner may run."""
    for folder, _, files in os.walk(root):
        Path(folder).chmod(0o755)
        for path in (Path(folder, name) for name in files):
            path.chmod(0o755 if path.stat().st_mode & 0o100 else 0o644)


@dataclass(frozen=True)
class OtherUser:
    """Another user, with an interpreter of its own and a folder that it may write to."""

    program: Path
    home: Path
    tests: Path
    packages: Path
    uid: int = NOBODY

    @classmethod
    def create(cls, root: Path, uid: int = NOBODY) -> OtherUser:
        """Make the copies below `root`, and see that they are what runs."""
        copy = root / "python"
        copy.mkdir()
        program = _copy_interpreter(copy)
        packages = root / "packages"
        _copy_packages(packages)
        # In a folder apart from `home`, lest pytest runs down there take these settings for theirs.
        tests = root / "suite" / "tests"
        for folder in (_TESTS, _TESTS.parent / "benchmarks"):
            shutil.copytree(
                folder, tests.parent / folder.name, ignore=shutil.ignore_patterns("__pycache__")
            )
        shutil.copy2(_TESTS.parent / "pyproject.toml", tests.parent)
        _open_to_all(root)
        home = root / "home"
        home.mkdir()
        os.chown(home, uid, uid)
        user = cls(program, home, tests, packages, uid)
        user._check()
        return user

    def _check(self) -> None:
        """Without the right library path another version's libpython may be taken, in silence."""
        code = "import os, sys, pynisher_exec as p; print(os.getuid(), p.__file__, sys.version)"
        package = self.packages / "pynisher_exec" / "__init__.py"
        done = self.python("-c", code, check=True)
        assert done.stdout.strip() == f"{self.uid} {package} {sys.version}", done.stdout

    def environment(self, more: Mapping[str, str] | None = None) -> dict[str, str]:
        """Return what the user's programs get: nothing of ours but the marks of the tests."""
        marks = {k: v for k, v in os.environ.items() if k.startswith("PYNISHER_EXEC_TEST_")}
        return {
            "HOME": str(self.home),
            "LANG": "C.UTF-8",
            "LD_LIBRARY_PATH": str(self.program.parent.parent / "lib"),
            "PATH": f"{self.program.parent}:/usr/local/bin:/usr/bin:/bin",
            "PYTHONPATH": str(self.packages),
            "TMPDIR": str(self.home),
            **marks,
            **(more or {}),
        }

    def python(
        self,
        *arguments: str | Path,
        check: bool = False,
        environment: Mapping[str, str] | None = None,
        timeout: float = 60,
    ) -> subprocess.CompletedProcess[str]:
        """Run the interpreter's copy: `python("-c", code)`, `python("-m", name)`, `python(path)`.

        A script must lie where the user may read it: below `home`.
        """
        command: Sequence[str] = [str(self.program), *map(str, arguments)]
        done = subprocess.run(
            command,
            capture_output=True,
            check=False,
            cwd=self.home,
            env=self.environment(environment),
            extra_groups=[],
            group=self.uid,
            stdin=subprocess.DEVNULL,
            text=True,
            timeout=timeout,
            user=self.uid,
        )
        if check:
            assert done.returncode == 0, f"exit code {done.returncode}\n{done.stdout}{done.stderr}"
        return done

    def script(self, name: str, text: str) -> Path:
        """Write a script where the user can run it."""
        path = self.home / name
        path.write_text(text, encoding="utf-8")
        path.chmod(0o644)
        return path

    def pytest(self, *selection: str, timeout: float = 300) -> subprocess.CompletedProcess[str]:
        """Run tests, named from the folder of tests: `pytest("test_gate.py::test_limit", "-q")`."""
        settings = self.tests.parent / "pyproject.toml"
        chosen = [part if part.startswith("-") else str(self.tests / part) for part in selection]
        return self.python(
            "-m",
            "pytest",
            f"--config-file={settings}",
            f"--rootdir={settings.parent}",
            "-p",
            "no:cacheprovider",
            *chosen,
            timeout=timeout,
        )
