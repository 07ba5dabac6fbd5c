"""The order of the modules, read from their imports: each imports only from those before it.

Imports inside functions count, those under TYPE_CHECKING do not; what is imported by a name made
at run time is not seen. `__init__` stands above all and may import anything.
"""

from __future__ import annotations

import ast
import pkgutil
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

import pynisher_exec

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    Rule = Callable[[Path], list[str]]

PACKAGE = Path(pynisher_exec.__file__).parent
NAME = "pynisher_exec"

ORDER = (
    "errors",
    "machine",
    "limits",
    "report",
    "searches",
    "verdict",
    "kernel",
    "protocol",
    "task",
    "supervisor",
    "template",
    "caller",
)
"""Lowest first. Every other module at the top is a door, above these; the doors are one layer."""

DOORS = "the doors"
MOST_LINES = 420
NO_PLACE = {"common", "helpers", "misc", "util", "utils"}
"""Names that say nothing of what lies behind them."""

Imports = dict[str, set[str]]


def module_name(root: Path, path: Path) -> str:
    """Return the dotted name of a module; that of a folder's `__init__` is the folder's."""
    parts = [NAME, *path.relative_to(root).with_suffix("").parts]
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def modules(root: Path) -> dict[str, Path]:
    """Every module below `root` by its dotted name."""
    return {module_name(root, path): path for path in sorted(root.rglob("*.py"))}


def is_type_checking(node: ast.AST) -> bool:
    """Whether this is `if TYPE_CHECKING:`."""
    return isinstance(node, ast.If) and ast.unparse(node.test).endswith("TYPE_CHECKING")


def import_nodes(tree: ast.AST) -> Iterator[ast.Import | ast.ImportFrom]:
    """Every import statement at any depth, but for those that only type checkers see."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.Import | ast.ImportFrom):
            yield node
        elif isinstance(node, ast.If) and is_type_checking(node):
            for branch in node.orelse:
                yield from import_nodes(ast.Module([branch], []))
        else:
            yield from import_nodes(node)


def targets(node: ast.Import | ast.ImportFrom, importer: str, *, is_folder: bool) -> list[str]:
    """Return the dotted names that an import statement may mean, the longest ones."""
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    above = importer.split(".")[: -node.level or None] if node.level else []
    if node.level and is_folder:
        above = importer.split(".")[: len(importer.split(".")) - node.level + 1]
    base = ".".join([*above, *([node.module] if node.module else [])])
    return [f"{base}.{alias.name}" for alias in node.names]


def imports(root: Path) -> tuple[Imports, Imports]:
    """What each module imports: of this package, by module; and of others, by their top name."""
    known = modules(root)
    inside: Imports = {name: set() for name in known}
    outside: Imports = {name: set() for name in known}
    for name, path in known.items():
        is_folder = path.name == "__init__.py"
        for node in import_nodes(ast.parse(path.read_text(encoding="utf-8"))):
            for target in targets(node, name, is_folder=is_folder):
                top = target.partition(".")[0]
                if top != NAME:
                    outside[name].add(top)
                    continue
                # `from package.module import name` names the module; of a folder, the module in it
                found = target if target in known else target.rpartition(".")[0]
                inside[name].add(found)
    return inside, outside


def layer(module: str) -> str:
    """Return the layer that a module belongs to: its top-level name, or the doors."""
    top = module.split(".")[1]
    return top if top in ORDER else DOORS


def rank(module: str) -> int:
    """Return how high a module lies; the package itself, what `__init__` exports, above the rest.

    A door may use the public interface, so the package's own rank is the doors'.
    """
    if module == NAME or layer(module) == DOORS:
        return len(ORDER)
    return ORDER.index(layer(module))


def upward_imports(root: Path) -> list[str]:
    """Imports of what lies higher than the importer."""
    inside, _ = imports(root)
    return [
        f"{name} imports {target}"
        for name, found in inside.items()
        if name != NAME
        for target in sorted(found)
        if rank(target) > rank(name)
    ]


def cycle_from(start: str, graph: Imports) -> list[str]:
    """Return a way from a module back to itself, or nothing."""
    ways = [[start]]
    seen: set[str] = set()
    for way in ways:  # grows while it is walked
        for target in sorted(graph.get(way[-1], ())):
            if target == start:
                return [*way, start]
            if target not in seen:
                seen.add(target)
                ways.append([*way, target])
    return []


def cycles(root: Path) -> list[str]:
    """Modules of one layer that import each other in a circle; `__init__` apart, which is lazy."""
    inside, _ = imports(root)
    inside.pop(NAME, None)
    return [" -> ".join(way) for name in inside if (way := cycle_from(name, inside))]


def misplaced_ctypes(root: Path) -> list[str]:
    """Modules outside kernel/ that import ctypes."""
    _, outside = imports(root)
    return [
        name
        for name, found in outside.items()
        if found & {"_ctypes", "ctypes"} and not f"{name}.".startswith(f"{NAME}.kernel.")
    ]


def long_modules(root: Path) -> list[str]:
    """Modules with more lines than one should have."""
    lengths = {
        name: len(path.read_text(encoding="utf-8").splitlines())
        for name, path in modules(root).items()
    }
    return [f"{name}: {lines} lines" for name, lines in lengths.items() if lines > MOST_LINES]


def nameless_places(root: Path) -> list[str]:
    """Modules and folders whose names say nothing."""
    return [name for name in modules(root) if NO_PLACE & set(name.split("."))]


RULES = (upward_imports, cycles, misplaced_ctypes, long_modules, nameless_places)


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: str(rule.__name__))
def test_package_keeps_the_rule(rule: Rule) -> None:
    """The package as it is tested here breaks no rule."""
    assert rule(PACKAGE) == []


def test_every_layer_is_there() -> None:
    """No layer of the order has been renamed or dropped without a word here."""
    assert set(ORDER) <= {layer(name) for name in modules(PACKAGE) if name != NAME}


PLANTED = {
    "limits.py": ("from pynisher_exec.report import Report", upward_imports),
    "kernel/proc.py": ("def f():\n    from pynisher_exec import limited", upward_imports),
    "kernel/late.py": ("from ..task.run import run", upward_imports),
    "report.py": ("import pynisher_exec", upward_imports),
    "task/run.py": ("def f():\n    from . import soft", cycles),
    "supervisor/loop.py": ("def f():\n    import ctypes.util", misplaced_ctypes),
    "caller/future.py": ("\n" * (MOST_LINES + 1), long_modules),
    "protocol/utils.py": ("", nameless_places),
}


@pytest.fixture
def sound_tree(tmp_path: Path) -> Path:
    """Make a small package that keeps every rule, with each thing that is allowed in it."""
    texts = {
        "__init__.py": "def __getattr__(name):\n    from pynisher_exec.decorator import limited",
        "errors.py": (
            "from typing import TYPE_CHECKING\n"
            "if TYPE_CHECKING:\n    from pynisher_exec.report import Report"
        ),
        "report.py": "from pynisher_exec import errors",
        "kernel/__init__.py": "",
        "kernel/seccomp.py": "import ctypes\nfrom pynisher_exec.kernel import prctl",
        "kernel/prctl.py": "import ctypes",
        "task/__init__.py": "",
        "task/run.py": "from pynisher_exec.kernel.prctl import set_no_new_privs",
        "task/soft.py": "from pynisher_exec.task.run import run\nfrom . import run",
        "decorator.py": "from pynisher_exec.task import soft",
        "demo.py": "from pynisher_exec import limited, LimitedProcessExecutor",
    }
    for name, text in texts.items():
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(text, encoding="utf-8")
    return tmp_path


def test_sound_tree_passes(sound_tree: Path) -> None:
    """What is allowed breaks no rule."""
    assert {rule.__name__: rule(sound_tree) for rule in RULES if rule(sound_tree)} == {}


@pytest.mark.parametrize("place", PLANTED)
def test_planted_violation_is_caught(sound_tree: Path, place: str) -> None:
    """One violation planted in a sound tree is found by its rule, and named."""
    text, rule = PLANTED[place]
    path = sound_tree / place
    path.parent.mkdir(exist_ok=True)
    before = path.read_text(encoding="utf-8") if path.exists() else ""
    path.write_text(f"{before}\n{text}\n", encoding="utf-8")
    found = rule(sound_tree)
    assert found
    assert module_name(sound_tree, path) in found[0]


def test_no_module_bears_the_name_of_what_is_public() -> None:
    """An imported submodule takes its name in the package, and would hide a function there."""
    names = {module.name for module in pkgutil.iter_modules([str(PACKAGE)])}
    assert "decorator" in names
    assert not names & {*pynisher_exec.__all__}
