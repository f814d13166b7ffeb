"""Nothing that was made elsewhere is executed, and no path in it is followed: one hostile file for each reader.

The readers' own tests hold the rest, such as damage, bombs and links of each layout: docs/threat-model.md names them.
"""

from __future__ import annotations

import ast
import hashlib
import json
import pickle
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import lerobot_fixtures
import msgpack
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from controller_fixtures import change_card, write_bundle, write_sums
from dataset_fixtures import make_episode as make_plain_episode
from dialect_fixtures import make_log, write_d4rl, write_robomimic
from learner_fixtures import make_config, write_log

from qtransformer.checkpoint import CheckpointError, load_checkpoint
from qtransformer.config import RunError
from qtransformer.deploy.controller import Controller, ControllerError
from qtransformer.deploy.verify import verify_bundle
from qtransformer.evaluation import EvaluationError, make_environment
from qtransformer.loading import load_run, open_policy
from qtransformer.serve.protocol import ProtocolError, unpack
from qtransformer.training import train
from qtransformer.training_log import warn_if_log_changed
from qtransformer_datasets.formats import open_dataset
from qtransformer_datasets.formats.parquet import read_table
from qtransformer_datasets.schema import DatasetError

ROOT = Path(__file__).resolve().parents[1]
OURS = ("qtransformer", "envs", "datasets", "benchmarks", "docs", "train.py")  # tests make hostile files
UNPICKLING = {"pickle", "_pickle", "cPickle", "dill", "cloudpickle", "joblib", "shelve", "marshal", "jsonpickle"}
UNPICKLING |= {
    "hickle",
    "pandas",
    "yaml",
}  # have readers that unpickle, or build objects, and nothing that is needed here
EXECUTING = {"torch.load", "torch.save", "torch.jit.load", "torch.hub.load", "torch.package", "torch.ops.load_library"}
EXECUTING |= {"eval", "exec", "compile", "__import__", "builtins.eval", "builtins.exec", "os.system", "os.popen"}
EXECUTING |= {"runpy.run_path", "runpy.run_module", "importlib.import_module", "import_module", "ctypes.CDLL"}
ALLOWED = {
    ("controller.py", "runpy.run_path"),  # the self_test.py beside this very file, whoever put both there
    ("evaluation.py", "importlib.import_module"),  # what the user named with --import
    ("collect.py", "importlib.import_module"),
    ("told_apart.py", "importlib.import_module"),
    ("vision_weights.py", "torch.load"),  # weights_only: tensors; test_vision_weights.py gives it a trap
}


def sources() -> list[Path]:
    found = [file for each in OURS for file in ([ROOT / each] if each.endswith(".py") else (ROOT / each).rglob("*.py"))]
    return [file for file in found if ".venvs" not in file.parts]  # the peers of the benchmarks


def executing(source: str) -> list[str]:
    """Returns what a source imports or calls that could execute a file's content."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found += [each.name for each in node.names if each.name.partition(".")[0] in UNPICKLING]
        elif isinstance(node, ast.ImportFrom):
            module = node.module or ""
            found += [module] if module.partition(".")[0] in UNPICKLING else []
            found += [f"{module}.{each.name}" for each in node.names if f"{module}.{each.name}" in EXECUTING]
        elif isinstance(node, ast.Call):
            name = ast.unparse(node.func)
            given = {each.arg: ast.unparse(each.value) for each in node.keywords}
            asks = any(given.get(each, "False") != "False" for each in ("allow_pickle", "shell"))  # off by default
            found += [name] if name in EXECUTING or asks else []
    return found


def test_no_source_of_ours_executes_what_it_reads():
    files = sources()
    assert len(files) > 120
    found = {(file.name, name) for file in files for name in executing(file.read_text())}
    assert found - ALLOWED == set()
    assert {name for name, _ in ALLOWED} <= {file.name for file in files}


@pytest.mark.parametrize(
    "source",
    [
        "import pickle",
        "from joblib import load",
        "def f():\n    import cloudpickle",
        "import yaml",
        "from torch import load",
        "torch.load(path, weights_only=True)",
        "np.load(path, allow_pickle=is_trusted)",
        "numpy.load(path, allow_pickle=True)",
        "read(path, allow_pickle=True)",
        "exec(text)",
        "importlib.import_module(card['module'])",
        "subprocess.run(command, shell=True)",
    ],
)
def test_the_rule_bites(source):
    assert executing(source)


def test_the_rule_lets_the_rest_through():
    assert executing("np.load(path, allow_pickle=False)\njson.loads(text)\nmodel.eval()\nload_file(path)") == []


class Trap:
    """Leaves a file behind if it is ever unpickled."""

    def __init__(self, sprung):
        self.sprung = sprung

    def __reduce__(self):
        return Path.touch, (self.sprung,)


# --- checkpoints and runs ---------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("security")
    return train(make_config(dataset=write_log(folder / "log"), out=folder / "run", steps=1))


@pytest.mark.parametrize("name", ["weights.safetensors", "training_0.safetensors", "checkpoint.json", "SHA256SUMS"])
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


DESCRIPTIONS: list[tuple[Callable[[dict[str, Any]], object], str]] = [
    (lambda info: info.pop("config"), "KeyError"),
    (lambda info: info["config"]["model"].update(width="__import__('os')"), "Type"),
    (lambda info: info["config"]["model"].update(width=32), "RuntimeError"),
    (lambda info: info.update(spec=[]), "Type"),
    (lambda info: info["statistics"].clear(), "KeyError"),
]


@pytest.mark.parametrize(("change", "kind"), DESCRIPTIONS)
def test_a_checkpoint_that_describes_something_else(run, change, kind):
    """Its checksums are right: whoever can write the one can write the other."""
    folder = run / "checkpoints" / "step_000000001"
    before = {name: (folder / name).read_bytes() for name in ("checkpoint.json", "SHA256SUMS")}
    info = json.loads(before["checkpoint.json"])
    change(info)
    text = json.dumps(info).encode()
    sums = before["SHA256SUMS"].decode()
    (folder / "checkpoint.json").write_bytes(text)
    old, new = (hashlib.sha256(each).hexdigest() for each in (before["checkpoint.json"], text))
    (folder / "SHA256SUMS").write_text(sums.replace(old, new))
    try:
        with pytest.raises(RunError, match=rf"must describe one policy, got something else \({kind}"):
            load_run(run)
    finally:
        for name, data in before.items():
            (folder / name).write_bytes(data)


# --- datasets ---------------------------------------------------------------------------------------------------------

DIALECTS: dict[str, tuple[Callable[[Path], object], str]] = {
    "minari": (lambda path: _write_minari(path), "episode_0/actions"),
    "robomimic": (
        lambda path: write_robomimic(path, make_log()),
        "data/demo_0/actions",
    ),
    "d4rl": (lambda path: write_d4rl(path, make_log()), "actions"),
}


def _write_minari(path: Path) -> None:
    write_log(path.with_suffix(""), [make_plain_episode(3)])
    (path.with_suffix("") / "data" / "main_data.hdf5").rename(path)


def external_link(group: h5py.Group, name: str, old: np.ndarray, folder: Path) -> None:
    group[name] = h5py.ExternalLink(str(folder / "secret.hdf5"), "/x")


def soft_link(group: h5py.Group, name: str, old: np.ndarray, folder: Path) -> None:
    group[name] = h5py.SoftLink("/../../secret")


def external_storage(group: h5py.Group, name: str, old: np.ndarray, folder: Path) -> None:
    external = [(str(folder / "secret.bin"), 0, old.nbytes)]
    group.create_dataset(name, old.shape, old.dtype, external=external)


def virtual(group: h5py.Group, name: str, old: np.ndarray, folder: Path) -> None:
    layout = h5py.VirtualLayout(old.shape, old.dtype)
    layout[:] = h5py.VirtualSource(folder / "secret.hdf5", "x", old.shape)
    group.create_virtual_dataset(name, layout)


def plugin(group: h5py.Group, name: str, old: np.ndarray, folder: Path) -> None:
    settings = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    settings.set_chunk(old.shape)
    settings.set_filter(32015, h5py.h5z.FLAG_OPTIONAL, (3,))
    space, kind = h5py.h5s.create_simple(old.shape), h5py.h5t.py_create(old.dtype)
    h5py.h5d.create(group.id, name.encode(), kind, space, settings).write(h5py.h5s.ALL, h5py.h5s.ALL, old.copy())


def pickled(group: h5py.Group, name: str, old: np.ndarray, folder: Path) -> None:
    data = pickle.dumps(Trap(folder / "sprung"))
    group[name] = np.full(len(old), np.void(data))


@pytest.mark.parametrize("dialect", DIALECTS)
@pytest.mark.parametrize(
    ("attack", "message"),
    [
        (external_link, "actions is a link, and links are never followed"),
        (soft_link, "actions is a link, and links are never followed"),
        (external_storage, "actions keeps its data in another file"),
        (virtual, "actions keeps its data in another file"),
        (plugin, "actions needs the HDF5 filter 32015, a plugin, and plugins are never loaded"),
        (pickled, r"actions must have shape \(T, A\) and hold real numbers, got \(\d+,\) \|V"),
    ],
)
def test_a_hostile_hdf5_file(tmp_path, dialect, attack, message):
    write, place = DIALECTS[dialect]
    path = tmp_path / "log.hdf5"
    write(path)
    with h5py.File(path, "r+") as file, h5py.File(tmp_path / "secret.hdf5", "w") as secret:
        old = np.asarray(file[place])
        secret["x"] = old
        old.tofile(tmp_path / "secret.bin")
        group, _, name = place.rpartition("/")
        del file[place]
        attack(file[group or "/"], name, old, tmp_path)
    with pytest.raises(DatasetError, match=message):
        open_dataset(path)
    assert not (tmp_path / "sprung").exists()


def test_attributes_that_are_pickles(tmp_path):
    path, trap = tmp_path / "log.hdf5", pickle.dumps(Trap(tmp_path / "sprung"), 0)
    write_robomimic(path, make_log())
    with h5py.File(path, "r+") as file:
        file["data"].attrs["env_args"] = trap.decode("ascii")
        file["data/demo_0"].attrs["ep_meta"] = np.void(trap)
    assert open_dataset(path).num_episodes == 3
    assert not (tmp_path / "sprung").exists()


@pytest.mark.parametrize("name", ["observations", "rewards"])
def test_arrays_of_objects(tmp_path, name):
    path, sprung = tmp_path / "log.npz", tmp_path / "sprung"
    arrays: dict[str, Any] = {"observations": np.zeros((4, 2)), "actions": np.zeros((4, 2)), "terminals": np.zeros(4)}
    np.savez(path, allow_pickle=True, **{**arrays, name: np.array([Trap(sprung)] * 4, object)})
    with pytest.raises(DatasetError, match=f"{name} holds Python objects, which are never unpickled"):
        open_dataset(path)
    assert not sprung.exists()


def test_an_extension_type_of_parquet_that_is_a_pickle(tmp_path):
    path, sprung = tmp_path / "log.parquet", tmp_path / "sprung"
    hostile = {
        "ARROW:extension:name": "arrow.py_extension_type",
        "ARROW:extension:metadata": pickle.dumps(Trap(sprung), 0),
    }
    field = pa.field("action", pa.float32(), metadata=hostile)
    pq.write_table(pa.table([pa.array([0.0, 1.0], pa.float32())], schema=pa.schema([field])), path)
    assert read_table(path, ["action"]).num_rows == 2
    assert not sprung.exists()


@pytest.mark.parametrize("protocol", ["concat:", "subfile,,start,0,end,0,,:", "file:"])
def test_a_path_that_ffmpeg_takes_for_a_protocol(tmp_path, monkeypatch, protocol):
    (tmp_path / "log").mkdir()
    monkeypatch.chdir(tmp_path / "log")
    lerobot_fixtures.write(Path(), "v2.1", lerobot_fixtures.four(camera=True))
    secret = (Path() / lerobot_fixtures.VIDEO["v2.1"].format(0)).rename(tmp_path / "secret.mp4")
    lerobot_fixtures.edit_json(Path("meta/info.json"), {"video_path": f"{protocol}{secret}"})
    with pytest.raises(DatasetError, match=r"secret.mp4 is missing; fetch the whole dataset"):
        open_dataset(Path())


@pytest.mark.parametrize("template", ["../../{episode_index}", "/etc/{episode_index}"])
def test_a_path_that_leads_out_of_a_dataset(tmp_path, template):
    lerobot_fixtures.write(tmp_path, "v2.1", lerobot_fixtures.four())
    lerobot_fixtures.edit_json(tmp_path / "meta" / "info.json", {"data_path": template})
    with pytest.raises(DatasetError, match="leads out of the dataset's folder"):
        open_dataset(tmp_path)


# --- bundles ----------------------------------------------------------------------------------------------------------


ELSEWHERE = "must be a file within the folder, got a path or a link out"


@pytest.fixture
def bundle(tmp_path):
    (tmp_path / "bundle").mkdir()
    return write_bundle(tmp_path / "bundle")


@pytest.mark.parametrize("name", ["../secret", "/etc/hostname", "linked/secret"])
def test_checksums_of_files_elsewhere(tmp_path, bundle, name):
    (bundle / "linked").symlink_to(tmp_path)
    (bundle / "SHA256SUMS").open("a").write(f"{'0' * 64}  {name}\n")
    failures = verify_bundle(bundle)["failures"]
    assert failures == [f"{name}: {ELSEWHERE}; export or copy the bundle again"]


@pytest.mark.parametrize("name", ["policy.json", "policy.onnx", "golden.npz"])
def test_a_linked_file(tmp_path, bundle, name):
    (bundle / name).rename(tmp_path / "secret")
    (bundle / name).symlink_to(tmp_path / "secret")
    assert any(each.startswith(f"{name}: {ELSEWHERE}") for each in verify_bundle(bundle)["failures"])
    with pytest.raises(ControllerError, match=rf"{name}: sha256 .* a link or from another export"):
        Controller(bundle).self_test()


@pytest.mark.parametrize("location", ["../secret.bin", "/etc/hostname", "inside.bin"])
def test_weights_in_another_file(tmp_path, bundle, monkeypatch, location):
    import onnx

    (tmp_path / "secret.bin").write_bytes(bytes(8))
    (bundle / "inside.bin").write_bytes(bytes(8))
    model = onnx.load(bundle / "policy.onnx")
    tensor = model.graph.initializer.add(name="stolen", data_type=onnx.TensorProto.FLOAT, dims=[2])
    tensor.data_location = onnx.TensorProto.EXTERNAL
    for key, value in {"location": location, "offset": "0", "length": "8"}.items():
        tensor.external_data.add(key=key, value=value)
    model.graph.node.add(op_type="Identity", input=["stolen"], output=["unused"])
    (bundle / "policy.onnx").write_bytes(model.SerializeToString())
    write_sums(bundle)
    monkeypatch.chdir(bundle)
    with pytest.raises(ControllerError, match="cannot load the graph"):
        Controller(bundle)


def test_golden_steps_that_are_pickles(tmp_path, bundle):
    sprung = tmp_path / "sprung"
    np.savez(bundle / "golden.npz", allow_pickle=True, is_reset=np.array([Trap(sprung)], object))
    write_sums(bundle)
    report = verify_bundle(bundle)
    assert not report["passed"]
    assert not sprung.exists()


def test_a_card_opens_no_log_and_no_environment_elsewhere(tmp_path, bundle, capsys, monkeypatch):
    monkeypatch.setattr("qtransformer.training_log.file_identity", lambda path: pytest.fail(f"{path} was looked at"))
    warn_if_log_changed({"schema_version": 2, "config": {}, "dataset": {"path": "/", "fingerprint": "", "files": ""}})
    assert capsys.readouterr().err == ""
    change_card(bundle, environment={"id": "Ant-v5", "kwargs": {"xml_file": "/etc/hostname"}})
    environment_id, kwargs = open_policy(bundle).environment()
    with pytest.raises(EvaluationError, match=r"setting xml_file \('/etc/hostname'\) of the log names a file"):
        make_environment(environment_id, kwargs, ())


# --- messages ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["O", "|O", "V8", "object", "<U4", "__import__('os')"])
def test_a_message_that_holds_a_pickle(tmp_path, dtype):
    data = pickle.dumps(Trap(tmp_path / "sprung"))
    array = {b"__ndarray__": True, b"data": data, b"dtype": dtype, b"shape": [1]}
    with pytest.raises(ProtocolError, match="dtype of an array must be like"):
        unpack(bytes(msgpack.packb({"state": array}) or b""))
    with pytest.raises(ProtocolError, match="frame must be one msgpack map within the limits"):
        unpack(bytes(msgpack.packb({"state": msgpack.ExtType(1, data)}) or b""))
    assert not (tmp_path / "sprung").exists()


# --- environments -----------------------------------------------------------------------------------------------------


def test_an_environment_id_imports_nothing_that_was_not_asked_for(tmp_path, monkeypatch):
    (tmp_path / "planted_module.py").write_text("import gymnasium\nraise RuntimeError('was imported')\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(EvaluationError, match=r"\('planted_module:Task-v0'\) would import 'planted_module'"):
        make_environment("planted_module:Task-v0", {}, ("dataset_fixtures",))
    assert "planted_module" not in sys.modules
    with pytest.raises(RuntimeError, match="was imported"):
        make_environment("planted_module:Task-v0", {}, ("planted_module",))


@pytest.mark.parametrize(
    "value",
    [
        *("/etc/passwd", "~/x.xml", "./x.xml", "a/../../x", "..", "C:\\x", "planted_module:Task-v0"),
        ["fine", "/etc/passwd"],
        {"nested": {"deep": "../x"}},
    ],
)
def test_a_setting_that_leads_elsewhere(value):
    with pytest.raises(EvaluationError, match=r"environment setting \w+ \(.*\) of the log names a file or a module"):
        make_environment("Pendulum-v1", {"place": value}, ())


def test_settings_of_ours_are_let_through():
    kwargs = {"observations": ("state", "image/front"), "split": "train", "image_size": 16, "note": "see: the cup"}
    with pytest.raises(TypeError, match="note"):
        make_environment("Pendulum-v1", {"g": 9.8, **kwargs}, ())
    make_environment("Pendulum-v1", {"g": 9.8}, ()).close()


def test_a_dataset_names_a_module_and_inspect_does_not_import_it(tmp_path, monkeypatch):
    from qtransformer.cli import main

    (tmp_path / "planted_dataset.py").write_text("raise RuntimeError('was imported')\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    log = write_log(tmp_path / "log")
    text = (log / "data" / "metadata.json").read_text()
    hostile = re.sub(r'"environment_id": (null|"[^"]*")', '"environment_id": "planted_dataset:Task-v0"', text)
    assert "planted_dataset" in hostile
    (log / "data" / "metadata.json").write_text(hostile)
    assert main(["inspect", str(log)]) == 0
    assert "planted_dataset" not in sys.modules
