"""A thousand damaged files through the real `inspect`: each ends in one clear message, none in a crash or a hang.

Every dialect has sound files; bytes are flipped, filled, cut. Children of a fork server run the command, with ten
seconds a file and a gigabyte in all, on some files each: a fork takes as long as the command on a file.
"""

from __future__ import annotations

import contextlib
import random
import shutil
from pathlib import Path

import lerobot_fixtures
import numpy as np
import pytest
from damage_fixtures import damage, inspect
from dialect_fixtures import make_log, write_d4rl, write_ogbench, write_robomimic
from fork_server import start_fork_server
from task_fixtures import write_tasks

NUM_CASES = 1000
MEGABYTES = 1000
AT_ONCE = 20


@pytest.fixture(scope="module")
def sources(tmp_path_factory):
    """Sound datasets, each with the file in it that is to be damaged."""
    folder = tmp_path_factory.mktemp("sound")
    camera = {"lengths": (4, 3), "successes": (True, False), "cameras": ("front",)}
    sound = {
        "tasks": (write_tasks(folder / "tasks"), "data/main_data.hdf5"),
        "metadata": (folder / "tasks", "data/metadata.json"),
        "robomimic": (write_robomimic(folder / "robomimic.hdf5", make_log(**camera)), ""),
        "d4rl": (write_d4rl(folder / "d4rl.hdf5", make_log()), ""),
        "ogbench": (write_ogbench(folder / "ogbench.npz", make_log()), ""),
    }
    episodes = [lerobot_fixtures.make_episode(index=index, camera=True) for index in range(2)]
    for version in ("v2.1", "v3.0"):
        root = folder / version
        lerobot_fixtures.write(root, version, episodes)
        for kind in ("**/*.parquet", "**/*.mp4", "meta/info.json"):
            file = sorted(root.glob(kind))[0]
            sound[f"{version} {kind}"] = (root, str(file.relative_to(root)))
    return list(sound.values())


@pytest.fixture(scope="module")
def server():
    return start_fork_server()


def run(server, paths: list[Path]):
    """Returns (code, out, err, megabytes) of the command on each path in a child, from where it crashed on how."""
    receiver, sender = server.Pipe(duplex=False)
    child = server.Process(target=inspect, args=(paths, sender))
    child.start()
    sender.close()
    found = []
    with contextlib.suppress(EOFError):
        while True:
            found.append(receiver.recv())
    child.join()
    return found + [(f"crashed: {child.exitcode}", "", "", 0)] * (len(paths) - len(found))


def damaged_files(sources, folder: Path):
    """Yields the number of each case, its source, what in it is damaged, and where the damaged copy is."""
    chance = random.Random(0)
    for case in range(NUM_CASES):
        source, inner = chance.choice(sources)
        path = folder / f"case{case}{source.suffix}"
        (shutil.copytree if source.is_dir() else shutil.copy)(source, path)
        victim = path / inner if inner else path
        victim.write_bytes(damage(victim.read_bytes(), chance))
        yield case, f"{source.name} {inner}", path


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_a_thousand_damaged_files(sources, server, tmp_path):
    cases = list(damaged_files(sources, tmp_path))
    paths = [path for *_, path in cases]
    results = [each for first in range(0, NUM_CASES, AT_ONCE) for each in run(server, paths[first : first + AT_ONCE])]
    troubles, refused = [], 0
    for (case, victim, _), (code, out, err, megabytes) in zip(cases, results, strict=True):
        said = [line for line in err.splitlines() if line.startswith("qtransformer inspect: error: ")]
        refused += code == 2
        is_clear = code == 0 or (code == 2 and len(said) == 1 and "Traceback" not in err)
        if not is_clear or megabytes > MEGABYTES:
            troubles.append((case, victim, code, megabytes, out, err[-500:]))
    assert troubles == []
    assert refused > NUM_CASES / 4, "damage that nobody notices is no damage"


def test_an_array_of_objects_is_never_unpickled(tmp_path, server):
    trap = tmp_path / "sprung"

    class Trap:
        def __reduce__(self):
            return Path.touch, (trap,)

    arrays = {"observations": np.zeros((4, 2)), "actions": np.array([Trap()] * 4), "terminals": np.zeros(4)}
    np.savez(tmp_path / "trap.npz", **arrays, allow_pickle=True)
    ((code, _, err, _),) = run(server, [tmp_path / "trap.npz"])
    assert (code, trap.exists()) == (2, False)
    assert "actions" in err
