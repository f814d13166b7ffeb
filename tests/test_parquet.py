"""Parquet files of strangers: images group by group, and refusing what is damaged, missing or claims too much."""

import sys

import lerobot_fixtures as fixtures
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from lerobot_fixtures import DATA, VERSIONS, edit_table, flags, four, frames_of, pictures_of, write

from qtransformer_datasets.formats import open_dataset, parquet
from qtransformer_datasets.schema import DatasetError


@pytest.mark.parametrize("version", VERSIONS)
def test_images_in_parquet_are_exact_and_read_group_by_group(tmp_path, version):
    written = four(camera=True)
    write(tmp_path, version, written, cameras="image")
    path = tmp_path / DATA[version].format(0)
    pq.write_table(pq.read_table(path), path, row_group_size=2)
    for episode, expected in zip(open_dataset(tmp_path).episodes, written, strict=True):
        frames, pictures = frames_of(episode), pictures_of(expected)
        assert frames.encoding == "png"
        np.testing.assert_array_equal(frames[:], pictures)
        np.testing.assert_array_equal(frames[np.array([1, 4])], pictures[[1, 4]])
        assert list(frames.stored_rows()) == [fixtures.png(each) for each in pictures]
        assert frames[2:2].shape == (0, *frames.shape[1:])


@pytest.mark.parametrize("module", ["pyarrow.parquet", "av"])
def test_missing_packages_are_named_with_the_extra(tmp_path, monkeypatch, module):
    write(tmp_path, "v2.1", four(camera=True))
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(
        DatasetError, match=rf"needs {module.split('.')[0]} to be read; pip install 'qtransformer\[lerobot\]'"
    ):
        open_dataset(tmp_path)


def test_av_is_needed_for_videos_alone(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "av", None)
    assert open_dataset(write(tmp_path, "v2.1", four(camera=True), cameras="image")).num_episodes == 4


def test_a_column_that_is_there_twice_is_refused(tmp_path):
    write(tmp_path, "v2.1", four())
    path = tmp_path / DATA["v2.1"].format(0)
    table = pq.read_table(path)
    pq.write_table(table.append_column("action", table.column("action")), path)
    with pytest.raises(DatasetError, match=r"must hold the columns \['action'\] once"):
        open_dataset(tmp_path)


def test_damaged_images_are_named(tmp_path):
    write(tmp_path, "v2.1", four(camera=True), cameras="image")
    path = tmp_path / DATA["v2.1"].format(1)
    good = pq.read_table(path).column("observation.images.front").to_pylist()
    small = {"bytes": fixtures.png(np.zeros((8, 8, 3), np.uint8)), "path": None}
    for bad, message in (
        ({"bytes": b"nothing", "path": None}, "is no readable JPEG or PNG"),
        ({"bytes": None, "path": "/etc/passwd"}, "holds no image, at most the path of one; embed the images"),
        (small, r"must have the shape \(64, 64, 3\) of step 0, got \(8, 8, 3\)"),
    ):
        edit_table(path, {"observation.images.front": flags(*good[:2], bad, *good[3:])})
        with pytest.raises(DatasetError, match=rf"observation.images.front step 2 \(row 2 of the file\) {message}"):
            frames_of(open_dataset(tmp_path).episodes[1])[:]
    edit_table(path, {"observation.images.front": flags(*range(6))})
    with pytest.raises(DatasetError, match="front must hold compressed images, got int"):
        open_dataset(tmp_path)
    edit_table(path, {"observation.images.front": None})
    with pytest.raises(DatasetError, match=r"episode_000001.parquet observation.images.front"):
        open_dataset(tmp_path)


def test_an_image_file_that_vanishes_is_named(tmp_path):
    write(tmp_path, "v2.1", four(camera=True), cameras="image")
    frames = frames_of(open_dataset(tmp_path).episodes[0])
    (tmp_path / DATA["v2.1"].format(0)).unlink()
    with pytest.raises(DatasetError, match=r"episode_000000.parquet is gone while it is in use"):
        frames[:]


def test_a_file_that_claims_far_more_than_it_holds_is_refused(tmp_path):
    path = tmp_path / "bomb.parquet"
    pq.write_table(pa.table({"x": pa.array(np.zeros(30_000_000, np.int64))}), path, compression="zstd")
    assert path.stat().st_size < 200_000
    with pytest.raises(DatasetError, match=r"bomb.parquet claims 240 MB of values in 0.\d+ MB; it is damaged"):
        parquet.open_parquet(path)


@pytest.mark.parametrize(("column", "cameras"), [("action", "video"), ("observation.images.front", "image")])
def test_a_damaged_page_is_named_with_its_file(tmp_path, column, cameras):
    write(tmp_path, "v2.1", four(camera=True), cameras=cameras)
    path = tmp_path / DATA["v2.1"].format(3)
    chunks = pq.ParquetFile(path).metadata.row_group(0)
    chunk = next(
        each for each in map(chunks.column, range(chunks.num_columns)) if each.path_in_schema.startswith(column)
    )
    content = bytearray(path.read_bytes())
    start = chunk.dictionary_page_offset or chunk.data_page_offset
    content[start : start + chunk.total_compressed_size] = bytes([255]) * chunk.total_compressed_size
    path.write_bytes(content)
    with pytest.raises(DatasetError, match=r"episode_000003.parquet .*is damaged, or was never finished \("):
        open_dataset(tmp_path)


def test_a_file_that_may_not_be_opened_says_so(tmp_path, monkeypatch):
    def refuse(*_):
        raise PermissionError("no right")

    path = tmp_path / "x.parquet"
    path.write_bytes(b"something")
    monkeypatch.setattr("pathlib.Path.open", refuse)
    with pytest.raises(DatasetError, match=r"x.parquet cannot be opened \(.*\); check its permissions"):
        parquet.open_parquet(path)


def test_text_that_is_not_utf8_is_refused(tmp_path):
    path = tmp_path / "x.parquet"
    pq.write_table(pa.table({"x": pa.array([b"\xff\xfe", b"good"]).view(pa.string())}), path)
    with pytest.raises(DatasetError, match=r"x.parquet is damaged, or was never finished \(.*UTF8"):
        parquet.read_table(path, ["x"])
