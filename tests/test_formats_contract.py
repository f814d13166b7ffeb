"""The same episodes, written in each dialect, must be the same when they are read; and each reader keeps the rules."""

import h5py
import numpy as np
import pytest
from dialect_fixtures import assert_same, make_log, write_d4rl, write_ogbench, write_robomimic

from qtransformer.batch import ReadOptions
from qtransformer_datasets.formats import DIALECTS, open_dataset
from qtransformer_datasets.schema import DatasetError

RULES = {"terminated", "truncated", "success", "final observation", "action limits"}
WRITERS = {  # (dialect, name): writer, file, has a final observation
    "robomimic": (write_robomimic, "log.hdf5", True),
    "robomimic dones at last steps": (lambda p, e: write_robomimic(p, e, dones="last-step"), "log.hdf5", True),
    "robomimic dones at both": (lambda p, e: write_robomimic(p, e, dones="both"), "log.hdf5", True),
    "robomimic without dones": (lambda p, e: write_robomimic(p, e, dones=None), "log.hdf5", True),
    "robomimic without rewards": (lambda p, e: write_robomimic(p, e, rewards=False), "log.hdf5", True),
    "robomimic without next_obs": (lambda p, e: write_robomimic(p, e, next_obs=None), "log.hdf5", False),
    "robomimic lingering": (lambda p, e: write_robomimic(p, e, linger=2), "log.hdf5", True),
    "d4rl": (write_d4rl, "log.hdf5", False),
    "d4rl v2": (lambda p, e: write_d4rl(p, e, next_observations="next"), "log.hdf5", True),
    "ogbench": (write_ogbench, "log.npz", True),
    "ogbench without rewards": (lambda p, e: write_ogbench(p, e, labels=("masks",)), "log.npz", True),
    "ogbench with successors": (lambda p, e: write_ogbench(p, e, next_observations=True), "log.npz", True),
}


@pytest.mark.parametrize("name", WRITERS)
def test_the_same_episodes_read_back_equal(tmp_path, name):
    write, file, has_final = WRITERS[name]
    episodes = make_log()
    dataset = open_dataset(write(tmp_path / file, episodes))
    assert dataset.dialect == name.split()[0]
    assert [each.success for each in dataset.episodes] == [True, False, True]
    assert [each.has_final_observation for each in dataset.episodes] == [has_final] * 3
    for found, expected in zip(dataset.episodes, episodes, strict=True):
        assert_same(found, expected)
        assert not found.length_problems()
    assert (dataset.spec.actions.low, dataset.spec.actions.high) == ((-1.0, -1.0), (1.0, 1.0))
    assert [each.name for each in dataset.spec.observations] == ["state"]


@pytest.mark.parametrize("name", WRITERS)
def test_the_rules_are_complete_sentences_for_people(tmp_path, name):
    write, file, _ = WRITERS[name]
    rules = open_dataset(write(tmp_path / file, make_log())).rules
    assert set(rules) >= RULES
    assert all(isinstance(rule, str) and rule for rule in rules.values())


@pytest.mark.parametrize("name", WRITERS)
def test_a_fingerprint_depends_on_the_content(tmp_path, name):
    write, file, _ = WRITERS[name]
    first, again, other = (
        open_dataset(write(tmp_path / f"{index}{file}", make_log(seed=seed))) for index, seed in enumerate((0, 0, 1))
    )
    assert first.fingerprint == again.fingerprint != other.fingerprint


@pytest.mark.parametrize("name", WRITERS)
def test_an_instruction_can_be_given_to_every_log(tmp_path, name):
    write, file, _ = WRITERS[name]
    dataset = open_dataset(write(tmp_path / file, make_log()), ReadOptions(instruction="lift the cube"))
    assert {each.instruction for each in dataset.episodes} == {"lift the cube"}


@pytest.mark.parametrize("name", WRITERS)
def test_a_folder_of_files_reads_as_one_set(tmp_path, name):
    write, file, _ = WRITERS[name]
    for index in range(2):
        write(tmp_path / f"part_{index}_{file}", make_log(seed=index))
    assert open_dataset(tmp_path).num_episodes == 6


@pytest.mark.parametrize("name", ["robomimic", "d4rl", "ogbench"])
def test_truncated_files_are_explained_at_any_length(tmp_path, name):
    write, file, _ = WRITERS[name]
    path = write(tmp_path / file, make_log())
    content = path.read_bytes()
    for share in (0.1, 0.5, 0.9, 0.999):
        path.write_bytes(content[: int(share * len(content))])
        with pytest.raises(DatasetError, match=r"log\.(hdf5|npz) (is truncated|is no sound npz|cannot be read)"):
            open_dataset(path)


@pytest.mark.parametrize("name", ["robomimic", "d4rl", "ogbench"])
def test_flipped_bytes_end_in_words_or_in_a_dataset(tmp_path, name):
    write, file, _ = WRITERS[name]
    path = write(tmp_path / file, make_log())
    content = path.read_bytes()
    generator = np.random.default_rng(0)
    refused = 0
    for _ in range(25):
        damaged = bytearray(content)
        for position in generator.integers(0, len(content), 8):
            damaged[position] = int(generator.integers(0, 256))
        path.write_bytes(damaged)
        try:
            open_dataset(path)
        except DatasetError:
            refused += 1
    assert refused > 0


@pytest.mark.parametrize("suffix", [".hdf5", ".npz", ".txt"])
def test_matching_never_raises(tmp_path, suffix):
    path = tmp_path / f"file{suffix}"
    for content in (b"", b"\x89HDF\r\n\x1a\n", b"PK\x03\x04", b"hello"):
        path.write_bytes(content)
        assert not any(each.matches(path) for each in DIALECTS if suffix != ".npz")
    assert not any(each.matches(tmp_path / "nowhere") for each in DIALECTS)
    assert not any(each.matches(tmp_path) for each in DIALECTS)


def test_an_empty_hdf5_file_has_no_known_layout(tmp_path):
    with h5py.File(tmp_path / "log.hdf5", "w"):
        pass
    with pytest.raises(DatasetError, match=r"log.hdf5 has no known layout: found \[\] at its root"):
        open_dataset(tmp_path / "log.hdf5")
