"""Images from RAM, memory map and file: equal everywhere, also across processes; torn caches are written anew."""

from __future__ import annotations

import errno
import hashlib
import json
import pickle
import resource
import time
import tracemalloc
from dataclasses import replace
from multiprocessing import get_context

import numpy as np
import pytest
from loading_fixtures import SHAPE, make_frames, open_images, write_images

from qtransformer_datasets import frames, image_rows
from qtransformer_datasets.formats import open_dataset
from qtransformer_datasets.image_rows import Images, MappedRows
from qtransformer_datasets.schema import DatasetError

LENGTHS = (5, 1, 7)
PLACES = ("in_memory", "mapped", "in_file")
ALL = np.concatenate([make_frames(length + 1, seed) for seed, length in enumerate(LENGTHS)])


@pytest.fixture(params=["raw", "png"])
def dataset(request, tmp_path):
    return open_images(tmp_path / "log", encoding=request.param)


def cache_of(dataset, suffix=".npy"):
    (path,) = (dataset.path / ".qtransformer_cache").glob(f"*camera{suffix}")
    return path


@pytest.mark.parametrize("place", PLACES)
def test_rows_are_those_of_the_episodes_one_after_the_other(dataset, place):
    source = getattr(Images(dataset, "camera"), place)()
    for rows in ([[0, 1], [5, 6]], [[15, 15], [7, 3]], [2]):
        taken = source.take(np.array(rows))
        assert type(taken) is np.ndarray
        np.testing.assert_array_equal(taken, ALL[np.array(rows)])
    np.testing.assert_array_equal(source.take(np.arange(len(ALL))), ALL)


@pytest.mark.parametrize("place", PLACES)
def test_arrays_in_memory_are_images_too(dataset, place):
    episodes = [
        replace(each, observations=each.observations | {"camera": make_frames(each.num_steps + 1, seed)})
        for seed, each in enumerate(dataset.episodes)
    ]
    source = getattr(Images(dataset.with_episodes(episodes), "camera"), place)()
    np.testing.assert_array_equal(source.take(np.array([4, 6, 12])), ALL[[4, 6, 12]])


def test_size_and_encoding(dataset, request):
    images = Images(dataset, "camera")
    assert (images.shape, images.num_bytes) == ((16, *SHAPE), 16 * 240)
    assert images.is_raw == ("raw" in request.node.name)


def test_the_cache_is_written_once(dataset, monkeypatch):
    Images(dataset, "camera").mapped()
    monkeypatch.setattr(image_rows, "write_durably", lambda *_: pytest.fail("written again"))
    np.testing.assert_array_equal(Images(dataset, "camera").mapped().take(np.arange(16)), ALL)


def truncate(path):
    path.write_bytes(path.read_bytes()[:-1])


def lose_a_page(path):
    data = bytearray(path.read_bytes())
    data[-SHAPE[0] * SHAPE[1] * SHAPE[2] :] = bytes(SHAPE[0] * SHAPE[1] * SHAPE[2])
    path.write_bytes(data)


def other_shape(path):
    np.save(path, ALL[:3])


def other_content(path):
    np.save(path, 255 - ALL)


def other_type(path):
    np.save(path, ALL.astype(np.int8))


def other_order(path):
    np.save(path, np.asfortranarray(ALL))


def pickled(path):
    np.save(path, np.array([{}]), allow_pickle=True)


def empty(path):
    path.write_bytes(b"")


@pytest.mark.parametrize(
    "damage", [truncate, lose_a_page, other_shape, other_content, other_type, other_order, pickled, empty]
)
def test_a_torn_or_foreign_cache_is_written_anew(tmp_path, damage):
    dataset = open_images(tmp_path / "log")
    Images(dataset, "camera").mapped()
    damage(cache_of(dataset))
    assert not Images(dataset, "camera").is_cached()
    np.testing.assert_array_equal(Images(dataset, "camera").mapped().take(np.arange(16)), ALL)


def test_a_cache_whose_record_is_of_other_data_is_written_anew(tmp_path):
    dataset = open_images(tmp_path / "log")
    Images(dataset, "camera").mapped()
    record = cache_of(dataset, ".json")
    record.write_text(json.dumps(json.loads(record.read_text()) | {"fingerprint": dataset.fingerprint[:16] + "0" * 48}))
    assert not Images(dataset, "camera").is_cached()
    Images(dataset, "camera").mapped()
    assert Images(dataset, "camera").is_cached()


def _write_and_hang(dataset, started):
    blocks = image_rows.blocks

    def slow(part):
        yield from blocks(part)
        started.set()
        time.sleep(60)

    image_rows.blocks = slow
    Images(dataset, "camera").mapped()


def test_a_writer_that_was_killed_leaves_nothing_that_counts(tmp_path):
    dataset, context = open_images(tmp_path / "log"), get_context("fork")
    started = context.Event()
    writer = context.Process(target=_write_and_hang, args=(dataset, started), daemon=True)
    writer.start()
    assert started.wait(30)
    writer.kill()
    writer.join()
    assert not Images(dataset, "camera").is_cached()
    np.testing.assert_array_equal(Images(dataset, "camera").mapped().take(np.arange(16)), ALL)
    assert not list((dataset.path / ".qtransformer_cache").glob(".*.tmp"))


def test_a_full_disk_is_an_error_and_leaves_nothing(tmp_path):
    dataset = open_images(tmp_path / "log", lengths=(300,))
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, hard))
    try:
        with pytest.raises(OSError, match="File too large") as caught:
            Images(dataset, "camera").mapped()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert caught.value.errno == errno.EFBIG
    assert not list((dataset.path / ".qtransformer_cache").glob("*.npy"))
    assert not list((dataset.path / ".qtransformer_cache").glob(".*.tmp"))


def test_where_nothing_can_be_written_there_is_no_map(tmp_path, monkeypatch):
    monkeypatch.setattr(image_rows, "cache_file", lambda *_: None)
    images = Images(open_images(tmp_path / "log"), "camera")
    assert not images.is_cached()
    with pytest.raises(OSError, match="neither the dataset's folder nor the user's cache folder can be written"):
        images.mapped()
    np.testing.assert_array_equal(images.in_memory().take(np.arange(16)), ALL)


def expected_histogram():
    return np.stack([np.bincount(ALL[..., channel].ravel(), minlength=256) for channel in range(3)])


@pytest.mark.parametrize("walk", ["in_memory", "mapped", "histogram"])
def test_whoever_walks_through_the_images_counts_them_for_all(dataset, monkeypatch, walk):
    getattr(Images(dataset, "camera"), walk)()
    monkeypatch.setattr(image_rows, "blocks", lambda *_: pytest.fail("the images were read again"))
    counts = Images(dataset, "camera").histogram()
    assert counts.dtype == np.int64
    np.testing.assert_array_equal(counts, expected_histogram())


def test_counting_in_small_pieces_is_counting(tmp_path, monkeypatch):
    monkeypatch.setattr(image_rows, "_COUNTED", 7)
    np.testing.assert_array_equal(Images(open_images(tmp_path / "log"), "camera").histogram(), expected_histogram())


def _digest(source, result):
    result.put(hashlib.sha256(source.take(np.arange(len(ALL))).tobytes()).hexdigest())


@pytest.mark.parametrize("method", ["fork", "spawn"])
@pytest.mark.parametrize("place", PLACES)
def test_a_child_reads_what_its_parent_reads(dataset, method, place):
    source = getattr(Images(dataset, "camera"), place)()
    source.take(np.array([3, 8]))  # the parent's handles are open
    context = get_context(method)
    result = context.Queue()
    child = context.Process(target=_digest, args=(source, result), daemon=True)
    child.start()
    parents = hashlib.sha256(source.take(np.arange(len(ALL))).tobytes()).hexdigest()
    assert result.get(timeout=60) == parents == hashlib.sha256(ALL.tobytes()).hexdigest()
    child.join()
    assert child.exitcode == 0


def test_a_pickled_map_holds_no_pixels(tmp_path):
    source = Images(open_images(tmp_path / "log", lengths=(100,)), "camera").mapped()
    source.take(np.array([0]))
    assert len(pickle.dumps(source)) < 1000
    assert isinstance(pickle.loads(pickle.dumps(source)), MappedRows)


@pytest.mark.parametrize("place", ["mapped", "in_file"])
def test_memory_does_not_grow_with_the_log(tmp_path, monkeypatch, place):
    monkeypatch.setattr(frames, "_BLOCK_BYTES", 2**20)
    dataset = open_images(tmp_path / "log", lengths=(200, 200), shape=(100, 200, 3))  # 24 MB
    tracemalloc.start()
    try:
        source = getattr(Images(dataset, "camera"), place)()
        for first in range(0, 400, 10):
            source.take(np.arange(first, first + 10))
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 8e6


def test_images_in_memory_exist_once(tmp_path, monkeypatch):
    monkeypatch.setattr(frames, "_BLOCK_BYTES", 2**20)
    dataset = open_images(tmp_path / "log", lengths=(200, 200), shape=(100, 200, 3))
    tracemalloc.start()
    try:
        Images(dataset, "camera").in_memory()
        assert 24e6 < tracemalloc.get_traced_memory()[1] < 32e6
    finally:
        tracemalloc.stop()


def test_episodes_of_other_images_are_refused(tmp_path):
    dataset = open_images(tmp_path / "log")
    first, second, third = dataset.episodes
    for rows, found in (
        (np.zeros((2, 9, 9, 3), np.uint8), r"\(9, 9, 3\) uint8"),
        (np.zeros((2, 3)), r"\(3,\) float64"),
    ):
        broken = replace(second, observations=second.observations | {"camera": rows})
        with pytest.raises(
            DatasetError,
            match=rf"episode_1: observations/camera must hold images of shape \(8, 10, 3\), got {found}; record",
        ):
            Images(replace(dataset, episodes=(first, broken, third)), "camera")


def test_an_episode_without_rows_holds_no_place(tmp_path):
    write_images(tmp_path / "log", lengths=(0, 4, 0, 2), final=False)
    dataset = open_dataset(tmp_path / "log")
    frames = np.concatenate([make_frames(4, 1), make_frames(2, 3)])
    np.testing.assert_array_equal(Images(dataset, "camera").in_file().take(np.arange(6)), frames)
