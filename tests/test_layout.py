"""The house rules that a machine can hold: who may import whom, how long a function may be, what stands at the root."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
# From top to bottom: a module imports from its own room's packages and from rooms further down only.
ROOMS = (
    {"analysis"},
    {"train", "predict"},
    {"training"},
    {"models"},
    {"backbones"},
    {"data"},
    {"sources"},
    {"config"},
)
ALONE = {"lstm", "transformer_solution", "perturbations"}
# The assignment's name for transformer_solution.py.
ALIAS = "transformer"
MODULES = sorted(
    path for place in (".", "sources", "backbones", "training", "analysis") for path in (ROOT / place).glob("*.py")
)
PROJECT = set().union(*ROOMS) | ALONE | {ALIAS}


def names() -> list[str]:
    return [str(path.relative_to(ROOT)) for path in MODULES]


def room_of(path: Path) -> str:
    return path.stem if path.parent == ROOT else path.parent.name


def imported_modules(path: Path) -> set[str]:
    """Every project module, as `training.trainer`, that a file imports, inside functions too."""
    modules = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            modules |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            modules |= {f"{node.module}.{alias.name}" for alias in node.names}
    return {module for module in modules if module.partition(".")[0] in PROJECT}


@pytest.mark.parametrize("path", MODULES, ids=names())
def test_imports_point_down_only(path):
    room = room_of(path)
    rooms = {module.partition(".")[0] for module in imported_modules(path)}
    if room == ALIAS:
        assert rooms == {"transformer_solution"}
        return
    if room in ALONE:
        assert not rooms, f"{path.name} imports {rooms}"
        return
    level = next(i for i, floor in enumerate(ROOMS) if room in floor)
    allowed = set().union(*ROOMS[level + 1 :]) | ALONE | (ROOMS[level] if path.parent != ROOT else set())
    assert rooms <= allowed, f"{path.relative_to(ROOT)} imports {rooms - allowed}"


def test_no_modules_import_each_other_in_a_circle():
    files = {".".join(path.relative_to(ROOT).with_suffix("").parts): path for path in MODULES}
    imports = {}
    for name, path in files.items():
        modules = [module + "." for module in imported_modules(path)]
        imports[name] = {target for target in files if any(module.startswith(target + ".") for module in modules)}
    while free := {name for name, targets in imports.items() if not targets & imports.keys()}:
        imports = {name: targets for name, targets in imports.items() if name not in free}
    assert not imports, f"circle among {sorted(imports)}"


@pytest.mark.parametrize("path", MODULES, ids=names())
def test_no_function_is_longer_than_forty_lines(path):
    functions = [node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.FunctionDef)]
    long = [f"{node.name}: {node.end_lineno - node.lineno + 1}" for node in functions]
    assert not [entry for entry in long if int(entry.split(": ")[1]) > 40]


def test_root_holds_eight_modules_and_an_alias():
    assert len(list(ROOT.glob("*.py"))) <= 9
    assert len((ROOT / "train.py").read_text().splitlines()) < 250


def test_readme_is_short():
    assert len((ROOT / "README.md").read_bytes()) <= 9216


def test_standalone_modules_import_without_the_project(tmp_path):
    """Copied into an empty folder; perturbations without torch, too."""
    for name in ALONE:
        (tmp_path / f"{name}.py").write_text((ROOT / f"{name}.py").read_text())
    code = "import sys, perturbations; assert 'torch' not in sys.modules; import lstm, transformer_solution"
    result = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
