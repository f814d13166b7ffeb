"""Nothing that was made elsewhere is executed: nothing is unpickled, no module is imported because a file names it.

That links out of an HDF5 file are refused stands in the tests of its readers (test_minari, test_robomimic, test_d4rl).
"""

from __future__ import annotations

import ast
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from learner_fixtures import make_config, write_log

import qtransformer
import qtransformer_datasets
import qtransformer_envs
from qtransformer.checkpoint import CheckpointError, load_checkpoint
from qtransformer.config import RunError
from qtransformer.evaluation import EvaluationError, make_environment
from qtransformer.loading import load_run
from qtransformer.training import train

UNPICKLING = {"pickle", "_pickle", "cPickle", "dill", "cloudpickle", "joblib", "shelve", "marshal", "pandas"}
EXECUTING = {"torch.load", "torch.save", "yaml.load", "yaml.unsafe_load", "yaml.full_load", "eval", "exec"}


def sources() -> list[Path]:
    packages = (qtransformer, qtransformer_envs, qtransformer_datasets)
    return [file for each in packages for file in Path(str(each.__file__)).parent.rglob("*.py")]


def executing(source: str) -> list[str]:
    """Returns what a source imports or calls that could execute a file's content."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found += [each.name for each in node.names if each.name.partition(".")[0] in UNPICKLING]
        elif isinstance(node, ast.ImportFrom) and (node.module or "").partition(".")[0] in UNPICKLING:
            found.append(str(node.module))
        elif isinstance(node, ast.Call):
            name = ast.unparse(node.func)
            given = {each.arg: ast.unparse(each.value) for each in node.keywords}
            if name in EXECUTING or given.get("allow_pickle", "False") != "False":  # numpy's own default is False
                found.append(name)
    return found


def test_no_source_of_ours_executes_what_it_reads():
    files = sources()
    assert len(files) > 60
    assert {str(file): found for file in files if (found := executing(file.read_text()))} == {}


@pytest.mark.parametrize(
    "source",
    [
        "import pickle",
        "from joblib import load",
        "def f():\n    import cloudpickle",
        "torch.load(path, weights_only=True)",
        "np.load(path, allow_pickle=is_trusted)",
        "numpy.load(path, allow_pickle=True)",
        "read(path, allow_pickle=True)",
        "yaml.load(text)",
        "exec(text)",
    ],
)
def test_the_rule_bites(source):
    assert executing(source)


def test_the_rule_lets_the_rest_through():
    assert executing("np.load(path, allow_pickle=False)\njson.loads(text)\nmodel.eval()\nload_file(path)") == []


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("security")
    return train(make_config(dataset=write_log(folder / "log"), out=folder / "run", steps=1))


class Trap:
    """Leaves a file behind if it is ever unpickled."""

    def __init__(self, sprung):
        self.sprung = sprung

    def __reduce__(self):
        return Path.touch, (self.sprung,)


@pytest.mark.parametrize("name", ["weights.safetensors", "training.safetensors", "checkpoint.json", "SHA256SUMS"])
def test_a_checkpoint_that_is_a_pickle(run, tmp_path, name):
    sprung = tmp_path / "sprung"
    path = run / "checkpoints" / "step_000000001" / name
    before = path.read_bytes()
    torch.save({"weight": Trap(sprung)}, path)
    try:
        with pytest.raises(CheckpointError, match=r"is .*damaged .*, and no other is there"):
            load_checkpoint(run)
    finally:
        path.write_bytes(before)
    assert not sprung.exists()


def test_samples_that_are_a_pickle(run, tmp_path):
    sprung, path = tmp_path / "sprung", run / "samples.npz"
    before = path.read_bytes()
    np.savez(path, num_frames=np.array([Trap(sprung)], object), allow_pickle=True)
    try:
        with pytest.raises(RunError, match=r"samples\.npz: is missing or damaged"):
            load_run(run).samples()
    finally:
        path.write_bytes(before)
    assert not sprung.exists()


def test_an_environment_id_imports_nothing_that_was_not_asked_for(tmp_path, monkeypatch):
    (tmp_path / "planted_module.py").write_text("import gymnasium\nraise RuntimeError('was imported')\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(EvaluationError, match=r"\('planted_module:Task-v0'\) would import 'planted_module'"):
        make_environment("planted_module:Task-v0", {}, ("dataset_fixtures",))
    assert "planted_module" not in sys.modules
    with pytest.raises(RuntimeError, match="was imported"):
        make_environment("planted_module:Task-v0", {}, ("planted_module",))
