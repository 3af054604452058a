"""Imports point down only: every import of the package, also those within functions and under TYPE_CHECKING."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterable, Mapping
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = "reasonrec_fast"

# From the top: a package imports from lower rows, never from its own row. docs/architecture.md shows the same.
LAYERS = (
    ("cli", "benchmarking"),
    ("experiments",),
    ("serving",),
    ("models",),
    ("training", "prompts"),
    ("early_exit",),
    ("lm",),
    ("evaluation",),
    ("data",),
    ("uncertainty",),
    ("ops",),
    ("graph",),
    ("kernels",),
)
# Below them, files that import nothing of the packages; they may import each other.
SUPPORT = ("arrays", "devices", "files", "memory", "micro_batcher", "precision", "pretrained", "settings", "_host")
# The package itself loads names lazily from everywhere, and __main__ starts the command line.
ABOVE = ("__init__", "__main__")

# Arrows that point up or close a circle today. The list may only shrink: one that is gone must leave it.
EXCEPTIONS: set[tuple[str, str]] = set()

COLUMN = 38  # of the architecture page's table at which the explanations begin

Imports = Mapping[str, set[str]]


def modules(root: Path) -> dict[str, Path]:
    """The name and file of each module under a package's folder; a ``.pyi`` file stands for a native module."""
    result = {}
    for path in sorted([*root.rglob("*.py"), *root.rglob("*.pyi")]):
        parts = path.relative_to(root.parent).with_suffix("").parts
        result[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return result


def imported(source: str, module: str, is_package: bool) -> Iterable[str]:
    """Absolute dotted names of a module's imports: ``a.b`` for ``from a import b``. ``__version__`` is no arrow."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            parents = module.split(".")
            base = parents[: len(parents) - node.level + is_package] if node.level else []
            base += node.module.split(".") if node.module else []
            yield from (".".join([*base, alias.name]) for alias in node.names if alias.name != "__version__")


def read_imports(root: Path) -> dict[str, set[str]]:
    """Each module of the package under ``root`` and the modules of the package that it imports."""
    files = modules(root)
    result: dict[str, set[str]] = {module: set() for module in files}
    for module, path in files.items():
        for name in imported(path.read_text(encoding="utf-8"), module, path.stem == "__init__"):
            if name.split(".")[0] != root.name:
                continue
            while name not in files:  # a class or function: its module
                name = name.rpartition(".")[0]
            if name != module:
                result[module].add(name)
    return result


def layer_names() -> dict[str, int]:
    """The row of each name in the table; higher numbers are lower layers."""
    rows = {name: row for row, names in enumerate(LAYERS) for name in names}
    return rows | dict.fromkeys(SUPPORT, len(LAYERS)) | dict.fromkeys(ABOVE, -1)


def part(module: str) -> str:
    """The package or file directly under the root that a module belongs to."""
    return ([*module.split("."), "__init__"])[1]


def upward(imports: Imports) -> set[tuple[str, str]]:
    """Arrows between packages that do not point to a lower row."""
    rows = layer_names()
    return {
        (module, target)
        for module, targets in imports.items()
        for target in targets
        if part(module) != part(target)
        and rows[part(target)] <= rows[part(module)]
        and not (part(module) in SUPPORT and part(target) in SUPPORT)
    }


def circle(imports: Imports) -> list[str]:
    """Modules that import each other in a ring, the first again at the end; empty where there is none."""
    done: set[str] = set()

    def visit(module: str, path: list[str]) -> list[str]:
        if module in path:
            return [*path[path.index(module) :], module]
        if module in done:
            return []
        for target in sorted(imports.get(module, ())):
            if ring := visit(target, [*path, module]):
                return ring
        done.add(module)
        return []

    return next((ring for module in sorted(imports) if (ring := visit(module, []))), [])


def without(imports: Imports, arrows: Iterable[tuple[str, str]]) -> dict[str, set[str]]:
    """The same imports without some arrows."""
    dropped = set(arrows)
    return {module: {t for t in targets if (module, t) not in dropped} for module, targets in imports.items()}


@pytest.fixture(scope="module")
def imports() -> dict[str, set[str]]:
    return read_imports(ROOT / PACKAGE)


def test_every_package_and_file_has_a_row(imports: Imports) -> None:
    missing = {part(module) for module in imports} - set(layer_names())
    assert not missing, f"no row in LAYERS or SUPPORT for: {sorted(missing)}"


def test_no_arrow_points_up(imports: Imports) -> None:
    result = upward(imports) - EXCEPTIONS
    assert not result, "imports that point up or sideways:\n" + "\n".join(f"{a} -> {b}" for a, b in sorted(result))


def test_no_modules_import_each_other_in_a_circle(imports: Imports) -> None:
    ring = circle(without(imports, EXCEPTIONS))
    assert not ring, "a circle: " + " -> ".join(ring)


@pytest.mark.parametrize("arrow", sorted(EXCEPTIONS), ids=" -> ".join)
def test_an_exception_is_still_needed(imports: Imports, arrow: tuple[str, str]) -> None:
    module, target = arrow
    assert target in imports.get(module, ()), f"{module} no longer imports {target}: take it off EXCEPTIONS"
    kept = without(imports, EXCEPTIONS - {arrow})
    assert arrow in upward(imports) or circle(kept), f"{module} -> {target} harms nothing: take it off EXCEPTIONS"


def test_the_architecture_page_has_the_same_order() -> None:
    page = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    block = re.search(r"## Layers.*?```\n(.*?)```", page, re.DOTALL)
    assert block
    shown = [re.findall(r"\w+", line[:COLUMN]) for line in block[1].splitlines()]
    existing = [[name for name in row if (ROOT / PACKAGE / name).is_dir()] for row in LAYERS]
    assert [set(row) & set(layer_names()) for row in shown] == [set(row) for row in existing if row]


def package(folder: Path, **sources: str) -> Path:
    """A package named like ours whose modules have the given sources; ``__`` in a name is a dot."""
    root = folder / PACKAGE
    for name, source in sources.items():
        path = root.joinpath(*name.split("__")).with_suffix(".py")
        path.parent.mkdir(parents=True, exist_ok=True)
        for parent in [path.parent, *path.parent.parents]:
            if parent == folder:
                break
            (parent / "__init__.py").touch()
        path.write_text(source)
    return root


@pytest.mark.parametrize(
    "source",
    [
        "from reasonrec_fast.models.base import Model",
        "from reasonrec_fast.models import base",
        "import reasonrec_fast.models.base",
        "from ..models.base import Model",
        "def later():\n    from reasonrec_fast.models.base import Model",
        "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from reasonrec_fast.models.base import Model",
    ],
)
def test_an_arrow_up_is_seen_however_it_is_written(tmp_path: Path, source: str) -> None:
    root = package(tmp_path, data__tables=source, models__base="class Model: ...")
    assert upward(read_imports(root)) == {("reasonrec_fast.data.tables", "reasonrec_fast.models.base")}


def test_arrows_down_and_between_support_files_are_allowed(tmp_path: Path) -> None:
    root = package(
        tmp_path,
        data__tables="from reasonrec_fast import files\nfrom reasonrec_fast.data.rows import Row",
        data__rows="import json\nclass Row: ...",
        files="from reasonrec_fast.settings import check",
        settings="def check(): ...",
    )
    assert not upward(read_imports(root))
    assert not circle(read_imports(root))


def test_a_circle_is_seen_through_type_checking_and_functions(tmp_path: Path) -> None:
    root = package(
        tmp_path,
        data__a="from reasonrec_fast.data.b import B",
        data__b="def late():\n    from .c import C",
        data__c="from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from . import a",
    )
    ring = circle(read_imports(root))
    assert ring[0] == ring[-1]
    assert set(ring) == {f"reasonrec_fast.data.{name}" for name in "abc"}
