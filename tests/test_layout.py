"""The order of the packages, and what every module has to have."""

import ast
import subprocess
import sys
from functools import cache
from importlib import import_module
from pathlib import Path

import pytest

import dipct

PACKAGE = Path(dipct.__file__).parent
MODULES = sorted(PACKAGE.rglob("*.py"))

# From what everything may use to what uses everything: see the architecture.
ORDER = (
    "errors",
    "shapes",
    "device",
    "freed_memory",
    "settings",
    "configuration",
    "classifier_settings",
    "inversion_settings",
    "linalg",
    "evaluation",
    "measurement",
    "phantom",
    "operator",
    "generator",
    "classifier",
    "objective",
    "solver",
    "pretrain",
    "posterior",
    "design",
    "uncertainty",
    "inversion",
    "figures",
    "checkpoint",
    "progress",
    "run",
    "export",
    "terminal",
    "pipeline",
    "cli_options",
    "cli_inversion",
    "cli_data",
    "cli_reconstruct",
    "cli_pretrain",
    "cli_choose",
    "cli_spectrum",
    "cli_uncertainty",
    "cli_classifier",
    "cli_counterfactual",
    "cli_invert",
    "cli",
    "__main__",
)
HEAVY = ("odl", "astra", "matplotlib", "skimage")
LONGEST = 400

every_module = pytest.mark.parametrize(
    "path", MODULES, ids=lambda p: str(p.relative_to(PACKAGE).with_suffix(""))
)


def dotted(path):
    """Module name of a file of the package."""
    parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


# Every module is asked about several times.
@cache
def imported(source, module, is_package):
    """Full names of what a module imports anywhere in it, relative imports resolved."""
    names = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                parts = module.split(".")
                kept = parts[: len(parts) - node.level + is_package]
                base = ".".join([*kept, base] if base else kept)
            names |= {base} | {f"{base}.{alias.name}" for alias in node.names}
    return names


def violations(source, module, is_package=False):
    """Imports of a module that run against the order of the packages."""
    own = module.split(".")[1] if "." in module else None
    found = []
    for name in sorted(imported(source, module, is_package)):
        parts = name.split(".")
        if parts[0] != "dipct" or own is None:
            continue
        if len(parts) == 1:
            # Only the names taken from the top package matter, they are in the set as well.
            continue
        target = parts[1]
        if target == own:
            continue
        if target in ORDER and own in ORDER and ORDER.index(target) < ORDER.index(own):
            continue
        if target == "__version__":
            continue
        found.append(name)
    return found


@every_module
def test_imports_only_run_downwards(path):
    source = path.read_text()
    assert violations(source, dotted(path), path.name == "__init__.py") == []


@pytest.mark.parametrize(
    ("source", "module"),
    [
        ("from dipct.solver import solve", "dipct.operator.base"),
        ("import dipct.operator.base", "dipct.measurement.scan"),
        ("def f():\n    from dipct.figures import show", "dipct.solver.cgls"),
        ("from dipct import cli", "dipct.errors"),
        ("from ..solver import solve", "dipct.operator.base"),
        ("from .. import pipeline", "dipct.operator.base"),
        ("from dipct import Scan", "dipct.operator.base"),
        ("import dipct.utils", "dipct.operator.base"),
        ("from dipct.errors import DataError", "dipct.utils"),
    ],
)
def test_imports_upwards_are_found(source, module):
    assert violations(source, module)


@pytest.mark.parametrize(
    ("source", "module"),
    [
        ("from dipct.operator import Operator", "dipct.solver.cgls"),
        ("from dipct.operator.algebra import compose", "dipct.operator.base"),
        ("from .algebra import compose", "dipct.operator.base"),
        ("from ..errors import DataError\nimport numpy", "dipct.operator.base"),
        ("from dipct.errors import DataError", "dipct.shapes"),
        ("from dipct.cli import main", "dipct"),
    ],
)
def test_imports_downwards_are_allowed(source, module):
    assert violations(source, module) == []


def test_every_package_has_its_place():
    present = {
        path.stem
        for path in PACKAGE.iterdir()
        if path.suffix == ".py" or (path.is_dir() and any(path.glob("*.py")))
    }
    assert present - {"__init__"} <= set(ORDER)


@every_module
def test_files_are_short(path):
    assert len(path.read_text().splitlines()) <= LONGEST


def undocumented(source):
    """Public modules, classes and functions of a source without a docstring."""
    tree = ast.parse(source)
    missing = [] if ast.get_docstring(tree) or not tree.body else ["the module"]

    def visit(node, prefix):
        for child in node.body:
            if not isinstance(child, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
                continue
            special = child.name.startswith("__") and child.name.endswith("__")
            if child.name.startswith("_") or special:
                continue
            overload = any("overload" in ast.unparse(d) for d in child.decorator_list)
            if not ast.get_docstring(child) and not overload:
                missing.append(prefix + child.name)
            if isinstance(child, ast.ClassDef):
                visit(child, f"{prefix}{child.name}.")

    visit(tree, "")
    return missing


@every_module
def test_everything_public_is_documented(path):
    assert undocumented(path.read_text()) == []


def test_missing_docstrings_are_found():
    source = 'class A:\n    """Yes."""\n    def f(self): ...\n    def _g(self): ...\ndef h(): ...'
    assert undocumented(source) == ["the module", "A.f", "h"]


def importers(library):
    return [
        str(path.relative_to(PACKAGE))
        for path in MODULES
        if any(
            name.split(".")[0] == library
            for name in imported(path.read_text(), dotted(path), path.name == "__init__.py")
        )
    ]


def test_each_backend_is_imported_in_one_file():
    assert importers("odl") == ["operator/odl_bridge.py"]
    assert importers("astra") == ["operator/astra_ray.py"]


def test_only_the_figures_import_matplotlib():
    assert [name for name in importers("matplotlib") if not name.startswith("figures/")] == []


def test_importing_dipct_loads_nothing_heavy():
    code = (
        "import sys, dipct, dipct.measurement, dipct.operator\n"
        f"print([name for name in {HEAVY!r} if name in sys.modules])"
    )
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=120
    )
    assert result.stdout.strip() == "[]"


def test_what_needs_no_torch_does_not_load_it():
    code = """
import sys
from dipct.cli import main
for words in ("--help", "--version", "reconstruct --help", "classifier train --help", "show"):
    sys.argv = ["dipct", *words.split()]
    try:
        main()
    except SystemExit:
        pass
sys.exit(bool({"torch", "h5py", "scipy"} & set(sys.modules)))
"""
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, timeout=120)
    assert result.returncode == 0, result.stderr


def test_names_of_the_package_are_those_that_type_checkers_see():
    tree = ast.parse((PACKAGE / "__init__.py").read_text())
    (block,) = [node for node in tree.body if isinstance(node, ast.If)]
    seen = {
        alias.asname: line.module
        for line in block.body
        for alias in line.names
        if alias.asname == alias.name
    }
    assert {name: dipct._HOME_OF[name] for name in dipct.__all__} == seen
    assert set(seen) <= set(dir(dipct))
    for name, module in seen.items():
        assert getattr(dipct, name) is getattr(import_module(module), name)
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        dipct.nothing  # noqa: B018


def test_a_verb_is_not_hidden_by_the_package_of_its_name():
    code = "import dipct.pretrain, dipct; from dipct import pretrain; pretrain.__call__; "
    code += "assert pretrain is dipct.pretrain; dipct.run.read_run"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)


def test_no_module_is_called_utils():
    vague = {"utils", "util", "helpers", "common", "misc", "tools"}
    assert [path.name for path in MODULES if path.stem in vague or path.parent.name in vague] == []
