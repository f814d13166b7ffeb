"""Guards the folders, the import rules, the wheel and the sizes that docs/architecture.md and the style ask for.

The rules are the tables at the top. `import_violations` is a pure function of a path and a source text, so that the
tests can also show that each rule bites, on planted sources.
"""

from __future__ import annotations

import ast
import importlib
import importlib.util
import os
import subprocess
import sys
import tomllib
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path, PurePosixPath

import numpy as np
import pytest
from jaxtyping import TypeCheckError

ROOT = Path(__file__).resolve().parents[1]
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
PACKAGES = {  # import name -> source root
    "qtransformer": ".",
    "qtransformer_envs": "envs",
    "qtransformer_datasets": "datasets",
}
FOLDERS = {"qtransformer", "envs", "datasets", "tests", "benchmarks", "docs"}

# Inside qtransformer a module imports only what stands before it. Siblings inside encoders/ and deploy/ are free.
ORDER = ["batch", "files", "page", "signals", "config", "presets", "console", "ranks"]
ORDER += ["tokens", "token_report", "normalization", "encoders"]
ORDER += ["hl_gauss", "blocks", "model", "backup", "losses", "policy", "augmentation"]
ORDER += ["learner", "q_learning", "baselines"]
ORDER += ["bad_batches", "provenance", "checkpoint", "checkpoint_writer", "run_folder", "guard"]
ORDER += ["vectorization", "outcomes", "rollout", "video", "evaluation", "comparison", "comparison_pairs"]
ORDER += ["compare_report", "deploy", "language", "serve", "loading"]
ORDER += ["predictions", "calibration", "alarms", "training_log", "compare_sources", "explain_log", "explain"]
ORDER += ["explain_plots", "explain_page"]
ORDER += ["run_records", "clips", "report", "report_plots", "report_course", "report_runs", "report_page"]
ORDER += ["watch", "following", "training_state", "diary", "training"]
ORDER += ["rerun", "replay", "pictures", "recording", "demo"]
ORDER += ["plan", "log_commands", "run_commands", "evaluate_command", "score_command"]
ORDER += ["deploy_commands", "serve_command", "cli"]
COMMAND_LINE = {
    "training_log",
    "guard",
    "watch",
    "training_state",
    "diary",
    "training",
    "explain_log",
    "explain",
    "report",
    "recording",
    "demo",
    "log_commands",
    "cli",
}  # these tie the three packages together

# Top-level names that a package must not import, and the files that are let off.
FORBIDDEN = {
    "qtransformer": {
        "mujoco": COMMAND_LINE,
        "h5py": COMMAND_LINE,
        "qtransformer_envs": COMMAND_LINE,
        "qtransformer_datasets": COMMAND_LINE,
    },
    "qtransformer_envs": {"torch": set(), "h5py": set(), "qtransformer": set(), "qtransformer_datasets": set()},
    "qtransformer_datasets": {
        "mujoco": set(),
        "qtransformer_envs": set(),
        "torch": {"windows"},
        "gymnasium": {"behaviours", "collect", "environment", "mix", "record_episodes"},
    },
}
SHARED = ("batch", "files", "page", "signals")  # what datasets may import of qtransformer
STDLIB_ONLY = {"qtransformer.files", "qtransformer.page", "qtransformer.signals"}  # and ours before them
TRAVELLING = {"qtransformer.deploy.controller", "qtransformer.deploy.self_test"}
CONTROLLER_MAY_IMPORT = sys.stdlib_module_names | {"numpy", "onnxruntime"}

MAX_FUNCTION_LINES = 60
MAX_FILE_LINES = 350
LONGER_FILES = {"qtransformer/deploy/controller.py": 661}  # one file, so that it is copied to a robot as it is


# --- the checking functions -------------------------------------------------------------------------------------------


def module_name(path: str) -> str:
    """Returns the dotted name of the file at `path` (relative to the repository's root), `.__init__` kept."""
    parts = PurePosixPath(path).with_suffix("").parts
    return ".".join(parts[1:] if parts[0] in {"envs", "datasets"} else parts)


def imported_names(module: str, source: str) -> Iterator[tuple[int, str]]:
    """Yields (line, dotted name) of every import: inside functions, relative, and `import_module` included."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = module.split(".")[: -node.level] if node.level else []
            base = ".".join([*above, *([node.module] if node.module else [])])
            yield from ((node.lineno, f"{base}.{alias.name}") for alias in node.names)
        elif isinstance(node, ast.Call) and node.args and isinstance(node.args[0], ast.Constant):
            function = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
            if function in {"import_module", "__import__"}:
                yield node.lineno, str(node.args[0].value)


def import_violation(module: str, imported: str) -> str | None:
    """Returns why `module` must not import `imported`, or None where it may."""
    package, here = module.split(".")[:2]
    top, *rest = imported.split(".")
    if module in TRAVELLING:
        return None if top in CONTROLLER_MAY_IMPORT else "is copied into the bundle: stdlib, numpy, onnxruntime only"
    if here not in FORBIDDEN[package].get(top, {here}):
        return f"{package} never imports {top}"
    if module in STDLIB_ONLY and top not in {*sys.stdlib_module_names, "qtransformer"}:
        return "needs the standard library alone"
    if package == "qtransformer_datasets" and top == "qtransformer" and (not rest or rest[0] not in SHARED):
        return f"only {', '.join(SHARED)} of qtransformer are shared with datasets"
    if package != "qtransformer" or top != "qtransformer":
        return None
    if here == "__init__" or module == "qtransformer.deploy.__init__":
        return "importing it must stay free of everything else"
    if not rest or rest[0] not in ORDER or here not in ORDER:
        return None  # an attribute of qtransformer itself; an unplaced module is reported by import_violations
    is_sibling = rest[0] == here and module.count(".") == 2
    return None if is_sibling or ORDER.index(rest[0]) < ORDER.index(here) else f"{rest[0]} stands not before {here}"


def import_violations(path: str, source: str) -> list[str]:
    """Returns one line for each import in `source` that breaks a rule."""
    module = module_name(path)
    package, here = module.split(".")[:2]
    found = []
    if package == "qtransformer" and here not in {*ORDER, "__init__", "__main__"}:
        found.append(f"{path}: {here} has no place in the order of qtransformer/: {', '.join(ORDER)}")
    for line, imported in imported_names(module, source):
        reason = import_violation(module, imported)
        if reason:
            found.append(f"{path}:{line} imports {imported}: {reason}")
    return found


def size_violations(path: str, source: str) -> list[str]:
    """Returns one line for the file and for each function in it that is too long, docstrings counted."""
    num_lines = len(source.splitlines())
    most = LONGER_FILES.get(path, MAX_FILE_LINES)
    found = [f"{path}: {num_lines} lines, at most {most}"] if num_lines > most else []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            length = (node.end_lineno or node.lineno) - node.lineno + 1
            if length > MAX_FUNCTION_LINES:
                found.append(f"{path}:{node.lineno} {node.name}: {length} lines, at most {MAX_FUNCTION_LINES}")
    return found


def package_files(pattern: str) -> list[Path]:
    """Returns the files of the three packages that match."""
    return sorted(file for name, root in PACKAGES.items() for file in (ROOT / root / name).rglob(pattern))


def run_python(code: str) -> subprocess.CompletedProcess[str]:
    """Runs `code` in a fresh interpreter at the repository's root, as a user would (no PYTHONPATH, no pytest)."""
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    return subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, env=environment, capture_output=True, text=True, check=False
    )


# --- folders ----------------------------------------------------------------------------------------------------------


def test_first_level_is_as_documented():
    ignored = {line.strip("/ ") for line in (ROOT / ".gitignore").read_text().splitlines() if line.endswith("/")}
    folders = [each for each in ROOT.iterdir() if each.is_dir() and not each.name.startswith(".")]
    with_code = {each.name for each in folders if each.name not in ignored and any(each.rglob("*.py"))}
    assert with_code <= FOLDERS, "a new first-level folder must first stand in docs/architecture.md"
    assert {each.name for each in folders} >= FOLDERS
    assert (ROOT / "train.py").is_file()


@pytest.mark.parametrize("root", ["envs", "datasets"])
def test_source_roots_are_not_packages(root: str):
    assert not list((ROOT / root).glob("*.py")), (
        f"{root}/ is a source root: a file here would become a top-level module"
    )


@pytest.mark.parametrize(("name", "root"), PACKAGES.items())
def test_packages_exist_and_are_not_ignored_by_git(name: str, root: str):
    init = ROOT / root / name / "__init__.py"
    assert init.is_file()
    if (ROOT / ".git").exists():
        is_ignored = subprocess.run(["git", "check-ignore", "--quiet", str(init)], cwd=ROOT, check=False).returncode
        assert is_ignored == 1, "what git ignores is silently left out of the wheel"


# --- imports ----------------------------------------------------------------------------------------------------------


def test_imports_follow_the_architecture():
    files = package_files("*.py")
    assert len(files) > len(PACKAGES)
    found = [line for file in files for line in import_violations(file.relative_to(ROOT).as_posix(), file.read_text())]
    assert not found, "\n".join(found)


@pytest.mark.parametrize(
    ("path", "source", "match"),
    [
        ("qtransformer/tokens.py", "from qtransformer.model import Model", "model stands not before tokens"),
        ("qtransformer/tokens.py", "from qtransformer import model", "model stands not before tokens"),
        ("qtransformer/tokens.py", "from . import model", "model stands not before tokens"),
        ("qtransformer/encoders/image.py", "from ..learner import Learner", "learner stands not before encoders"),
        ("qtransformer/losses.py", "def f():\n    import qtransformer.learner", "losses.py:2 imports"),
        ("qtransformer/policy.py", "import qtransformer.deploy.export", "deploy stands not before policy"),
        ("qtransformer/deploy/server.py", "from qtransformer.cli import main", "cli stands not before deploy"),
        ("qtransformer/deploy/__init__.py", "from qtransformer.deploy.export import export", "must stay free"),
        ("qtransformer/__init__.py", "from qtransformer.learner import Learner", "must stay free"),
        ("qtransformer/helpers.py", "", "helpers has no place in the order"),
        ("qtransformer/evaluation.py", "import mujoco.viewer", "qtransformer never imports mujoco"),
        ("qtransformer/learner.py", "def f():\n    from h5py import File", "qtransformer never imports h5py"),
        ("qtransformer/checkpoint.py", "import qtransformer_envs", "never imports qtransformer_envs"),
        ("qtransformer/learner.py", "import_module('qtransformer_datasets.windows')", "qtransformer_datasets"),
        ("qtransformer/deploy/controller.py", "from qtransformer.batch import ActionSpec", "copied into the bundle"),
        ("qtransformer/deploy/controller.py", "from .export import Card", "copied into the bundle"),
        ("qtransformer/deploy/controller.py", "def f():\n    import torch", "copied into the bundle"),
        ("qtransformer/deploy/self_test.py", "from .controller import Controller", "copied into the bundle"),
        ("envs/qtransformer_envs/push.py", "import torch", "qtransformer_envs never imports torch"),
        ("envs/qtransformer_envs/push.py", "import h5py", "qtransformer_envs never imports h5py"),
        ("envs/qtransformer_envs/push.py", "from qtransformer.batch import Batch", "never imports qtransformer"),
        ("datasets/qtransformer_datasets/formats/minari.py", "import torch", "never imports torch"),
        ("datasets/qtransformer_datasets/recorder.py", "import gymnasium", "never imports gymnasium"),
        ("datasets/qtransformer_datasets/collect.py", "import mujoco", "never imports mujoco"),
        ("datasets/qtransformer_datasets/collect.py", "import qtransformer_envs", "never imports qtransformer_envs"),
        ("datasets/qtransformer_datasets/windows.py", "from qtransformer.config import X", "only batch, files, page"),
        ("datasets/qtransformer_datasets/windows.py", "import qtransformer", "only batch, files, page"),
        ("datasets/qtransformer_datasets/check.py", "from qtransformer import report", "only batch, files, page"),
        ("qtransformer/signals.py", "import torch", "needs the standard library alone"),
        ("qtransformer/page.py", "import numpy as np", "needs the standard library alone"),
        ("qtransformer/files.py", "from qtransformer.page import write", "page stands not before files"),
    ],
)
def test_import_rules_bite(path: str, source: str, match: str):
    (violation,) = import_violations(path, source)
    assert match in violation


@pytest.mark.parametrize(
    ("path", "source"),
    [
        ("qtransformer/model.py", "import torch\nfrom qtransformer.encoders.state import StateEncoder"),
        ("qtransformer/encoders/image.py", "from .state import StateEncoder\nfrom qtransformer.encoders import state"),
        ("qtransformer/deploy/export.py", "from qtransformer import losses\nfrom . import controller"),
        ("qtransformer/deploy/controller.py", "import json\nimport numpy as np\nimport onnxruntime"),
        ("qtransformer/demo.py", "import mujoco, h5py, qtransformer_envs\nfrom qtransformer.deploy import export"),
        ("qtransformer/cli.py", "import qtransformer_datasets.collect\nfrom qtransformer import demo, __version__"),
        ("envs/qtransformer_envs/__init__.py", "import gymnasium, mujoco\nfrom qtransformer_envs.push import Push"),
        ("datasets/qtransformer_datasets/windows.py", "import h5py, torch\nfrom qtransformer.batch import Batch"),
        ("datasets/qtransformer_datasets/collect.py", "import gymnasium\nfrom . import recorder"),
        ("datasets/qtransformer_datasets/cache.py", "import qtransformer.files\nfrom qtransformer import page"),
        ("qtransformer/page.py", "from string import Template\nfrom qtransformer.files import write_durably"),
    ],
)
def test_import_rules_let_the_rest_through(path: str, source: str):
    assert import_violations(path, source) == []


@pytest.mark.parametrize("name", PACKAGES)
def test_importing_a_package_does_nothing(name: str):
    code = (
        "import gymnasium, os, sys; before = dict(os.environ)  # gymnasium itself sets one, for pygame\n"
        f"import {name}\n"
        "assert dict(os.environ) == before, 'the import changed the environment variables'\n"
        f"assert {name!r} == 'qtransformer' or 'torch' not in sys.modules, 'the import started torch'"
    )
    result = run_python(code)
    assert result.stdout + result.stderr == ""
    assert result.returncode == 0


# --- sizes ------------------------------------------------------------------------------------------------------------


def test_files_and_functions_are_short():
    files = [*package_files("*.py"), *ROOT.glob("train.py")]
    found = [line for file in files for line in size_violations(file.relative_to(ROOT).as_posix(), file.read_text())]
    assert not found, "\n".join(found)


def test_size_rules_bite():
    function = "def f():\n" + "    pass\n" * MAX_FUNCTION_LINES
    assert size_violations("x.py", function) == [f"x.py:1 f: {MAX_FUNCTION_LINES + 1} lines, at most 60"]
    assert size_violations("x.py", function.replace("    pass\n", "", 1)) == []
    assert size_violations("x.py", "\n" * (MAX_FILE_LINES + 1)) == ["x.py: 351 lines, at most 350"]


# --- pyproject.toml, the wheel, Hugging Face's datasets ---------------------------------------------------------------


def paths_in_pyproject() -> list[str]:
    project, tool = PYPROJECT["project"], PYPROJECT["tool"]
    targets = tool["hatch"]["build"]["targets"]
    return [
        project["readme"],
        *project["license-files"],
        *targets["wheel"]["packages"],
        *targets["sdist"]["include"],
        *tool["pytest"]["ini_options"]["pythonpath"],
        *tool["pytest"]["ini_options"]["testpaths"],
        *tool["ruff"]["src"],
        *(pattern.removesuffix("/**") for pattern in tool["ruff"]["lint"]["per-file-ignores"]),
        *tool["pyright"]["include"],
        *tool["pyright"]["extraPaths"],
    ]


@pytest.mark.parametrize("path", sorted(set(paths_in_pyproject())))
def test_paths_in_pyproject_exist(path: str):
    assert (ROOT / path).exists()


def test_constraints_pin_every_direct_dependency():
    lines = [line.partition("#")[0].strip() for line in (ROOT / "constraints.txt").read_text().splitlines()]
    pinned = {line.partition("==")[0] for line in lines if line}
    assert all("==" in line for line in lines if line)
    extras = PYPROJECT["project"]["optional-dependencies"]
    asked = [
        *PYPROJECT["project"]["dependencies"],
        *(each for name in ("export", "language", "serve", "video", "plot", "dev") for each in extras[name]),
    ]
    names = {each.partition(">=")[0].partition("[")[0] for each in asked}
    assert names - {"qtransformer"} <= pinned


@pytest.fixture(scope="session")
def wheel_names(tmp_path_factory: pytest.TempPathFactory) -> set[str]:
    """The names of the files in a freshly built wheel."""
    folder = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(folder), str(ROOT)]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout + result.stderr
    (wheel,) = folder.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        return set(archive.namelist())


def test_wheel_holds_the_three_packages_and_nothing_else(wheel_names: set[str]):
    top = {name.partition("/")[0] for name in wheel_names}
    assert {name for name in top if not name.endswith(".dist-info")} == set(PACKAGES)
    assert not [name for name in wheel_names if name.endswith(".hdf5")]
    assert any(name.endswith("/licenses/LICENSE") for name in wheel_names)


@pytest.mark.parametrize("pattern", ["*.py", "*.xml", "*.json", "*.md", "*.hpp", "*.cpp", "CMakeLists.txt"])
def test_wheel_holds_every_source_file(wheel_names: set[str], pattern: str):
    files = {file.relative_to(ROOT).as_posix() for file in package_files(pattern)}
    assert files
    assert {file.removeprefix("envs/").removeprefix("datasets/") for file in files} <= wheel_names


def test_hugging_face_datasets_is_not_shadowed():
    code = "import importlib.util; print(importlib.util.find_spec('datasets').origin)"
    from_root = Path(run_python(code).stdout.strip())
    assert from_root.parts[-3:] == ("site-packages", "datasets", "__init__.py")
    spec = importlib.util.find_spec("datasets")  # and under pytest's own path
    assert spec is not None
    assert spec.origin == str(from_root)


@pytest.mark.slow
def test_hugging_face_datasets_works_beside_ours():
    result = run_python("import datasets, qtransformer_datasets; assert hasattr(datasets, 'load_dataset')")
    assert result.returncode == 0, result.stderr


# --- the shape checks of conftest.py ----------------------------------------------------------------------------------

PLANTED = """
from jaxtyping import Float
from numpy import ndarray

def add(left: Float[ndarray, "size"], right: Float[ndarray, "size"]) -> Float[ndarray, "size"]:
    return left + right
"""


@pytest.fixture
def planted_add(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable:
    """A function with shapes in its signature, imported as part of qtransformer."""
    (tmp_path / "planted.py").write_text(PLANTED)
    package = importlib.import_module("qtransformer")
    monkeypatch.setattr(package, "__path__", [*package.__path__, str(tmp_path)])
    monkeypatch.delitem(sys.modules, "qtransformer.planted", raising=False)
    return importlib.import_module("qtransformer.planted").add


@pytest.mark.skipif(os.environ.get("JAXTYPING_DISABLE", "0") == "1", reason="shape checks are switched off")
def test_shape_checks_are_on(planted_add: Callable):
    assert planted_add(np.zeros(3), np.zeros(3)).shape == (3,)
    with pytest.raises(TypeCheckError, match="right"):
        planted_add(np.zeros(3), np.zeros(1))


@pytest.mark.export
def test_shape_checks_are_off_for_export(planted_add: Callable):
    assert planted_add(np.zeros(3), np.zeros(1)).shape == (3,)
