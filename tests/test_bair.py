"""BAIR: TFRecords read without TensorFlow, and every conversion of them."""

import os
import time
from pathlib import Path

import google_crc32c
import numpy as np
import pytest
import tfrecords
import torch
from test_data_modules import batches, keys, ready

from data_modules.bair import BAIR
from data_modules.base import DataError
from lmdvid.video import (
    Record,
    VideoReadError,
    probe,
    read_clip,
    record_lengths,
    records,
    scan_clips,
    stream_frames,
    tfrecord,
    write_image,
    write_video,
)


def sequence(seed: int, frames: int = 30, side: int = 64) -> tuple[np.ndarray, np.ndarray]:
    """Pictures (T,H,W,3) and actions (T,4)."""
    rng = np.random.default_rng(seed)
    pictures = rng.integers(0, 256, (frames, side, side, 3), dtype=np.uint8)
    return pictures, rng.normal(size=(frames, 4)).astype(np.float32)


def record(seed: int, **how) -> bytes:
    pictures, actions = sequence(seed)
    return tfrecords.push(pictures, 255 - pictures, actions, **how)


def write(path: Path, seeds, **how) -> list[int]:
    return tfrecords.write(path, [record(seed, **how) for seed in seeds], google_crc32c.value)


@pytest.fixture
def root(tmp_path) -> Path:
    """Two files to train on, with sequences 0 to 3 and 4 to 6, and one held out, with 7 and 8."""
    write(tmp_path / "train/traj_0_to_3.tfrecords", range(4))
    write(tmp_path / "train/traj_4_to_6.tfrecords", range(4, 7))
    write(tmp_path / "test/traj_0_to_1.tfrecords", [7, 8])
    return tmp_path


def flip(path: Path, place: int) -> None:
    data = bytearray(path.read_bytes())
    data[place] ^= 4
    path.write_bytes(data)


# The format


def test_the_check_value_of_crc32c():
    assert tfrecords.crc32c(b"123456789") == 0xE3069283 == google_crc32c.value(b"123456789")
    data = np.random.default_rng(0).bytes(1000)
    assert tfrecord.masked_crc(data).to_bytes(4, "little") == tfrecords.masked(data)


@pytest.mark.parametrize("packed", [True, False])
def test_records_hold_what_was_written(tmp_path, packed):
    """With every CRC computed bit by bit, in the tests."""
    pictures, actions = sequence(3, frames=3, side=8)
    data = tfrecords.push(pictures, 255 - pictures, actions, packed=packed)
    places = tfrecords.write(tmp_path / "a.tfrecords", [data, data[:0], data])
    assert record_lengths(tmp_path / "a.tfrecords") == [len(data), 0, len(data)]
    for camera, expected in (("image_aux1", pictures), ("image_main", 255 - pictures)):
        example = Record(str(tmp_path / "a.tfrecords"), 2, places[2], camera).load()
        assert len(example) == 3
        assert example.cameras == ["image_aux1", "image_main"]
        frames = example.frames([2, 0, 2])
        assert frames.dtype == torch.uint8
        assert np.array_equal(frames.numpy(), expected[[2, 0, 2]])
        assert np.array_equal(example.floats("action", [1, 2]).numpy(), actions[[1, 2]])
        assert example.floats("endeffector_pos", [0]).shape == (1, 3)


def test_unknown_fields_are_passed_over(tmp_path):
    """As protobuf asks of every reader; also numbers of several bytes."""
    pictures, _ = sequence(0, frames=2, side=8)
    data = tfrecords.push(pictures)
    data = (
        tfrecords.varint(900 << 3) + tfrecords.varint(2**63 + 5)
        + tfrecords.varint(901 << 3 | 1) + bytes(8) + data
        + tfrecords.varint(902 << 3 | 5) + bytes(4) + tfrecords.message(903, b"x" * 300)
    )  # fmt: skip
    tfrecords.write(tmp_path / "a.tfrecords", [data])
    frames = Record(str(tmp_path / "a.tfrecords"), 0, 0, "image_aux1").load().frames([0, 1])
    assert np.array_equal(frames.numpy(), pictures)


def test_errors_name_file_and_record(tmp_path):
    path = tmp_path / "a.tfrecords"
    pictures, _ = sequence(0, frames=2, side=8)
    bad = tfrecords.example({"0/image_aux1/encoded": tfrecords.byte_list(b"no square")})
    places = tfrecords.write(path, [tfrecords.push(pictures), bad, b"\x0a\xff", b"\x0b", b""])
    first, *others = (Record(str(path), n, place, "image_aux1") for n, place in enumerate(places))
    example = first.load()
    with pytest.raises(VideoReadError, match=r"frame 2 of 2"):
        example.frames([2])
    with pytest.raises(VideoReadError, match=r"a.tfrecords: record 0: it has no 1/torque"):
        example.floats("torque", [1])
    with pytest.raises(VideoReadError, match=r"record 1: 9 bytes are no square of raw RGB"):
        others[0].load().frames([0])
    for number, reason in ((2, "no tf.train.Example"), (3, "no tf.train.Example .wire type 3")):
        with pytest.raises(VideoReadError, match=rf"record {number}: {reason}"):
            others[number - 1].load()
    with pytest.raises(VideoReadError, match=r"record 0: it has no .*cameras in it: image_aux1"):
        Record(str(path), 0, 0, "image_aux2").load().info  # noqa: B018
    for place, reason in (
        (places[1] - 1, "the CRC of its data is wrong"),
        (200, "the CRC of its data is wrong"),
        (3, "the CRC of its length is wrong"),
        (9, "the CRC of its length is wrong"),
    ):
        flip(path, place)
        with pytest.raises(VideoReadError, match=rf"a.tfrecords: record 0: {reason}"):
            first.load()
        flip(path, place)
    os.truncate(path, places[1] - 3)
    with pytest.raises(VideoReadError, match=r"record 0: the file ends within it"):
        first.load()
    path.unlink()
    with pytest.raises(VideoReadError, match=r"record 0: no such file"):
        first.load()


def test_256_sequences_take_less_than_a_second(tmp_path):
    """The index, the CRCs, 7,680 frames and their actions; writing them is not counted."""
    path = tmp_path / "traj_0_to_255.tfrecords"
    some = [record(n) for n in range(8)]
    places = tfrecords.write(path, some * 32, google_crc32c.value)
    assert 180e6 < path.stat().st_size < 200e6
    took = []
    for _ in range(3):
        begun = time.perf_counter()
        found, lost = records(path, record_lengths(path), path.stat().st_size, "image_aux1")
        total = 0
        for place in found:
            example = place.load()
            total += len(example.frames(range(30)))
            total += len(example.floats("action", range(30)))
        took.append(time.perf_counter() - begun)
    assert [place.offset for place in found] == places[:-1]
    assert not lost
    assert total == 256 * 60
    assert min(took) < 1


# The data module


@pytest.mark.parametrize("camera", ["image_aux1", "image_main"])
def test_records_are_clips_with_actions(root, camera):
    data = ready(BAIR(str(root), camera, frames=16, batch_size=7))
    files = {"traj_0_to_3": 4, "traj_4_to_6": 3}
    names = [f"{file}/{n}" for file, count in files.items() for n in range(count)]
    assert keys(data.train_clips) == names
    assert keys(data.test_clips) == ["traj_0_to_1/0", "traj_0_to_1/1"]
    (batch,) = batches(data, data.train_dataloader())
    assert batch["video"].shape == (7, 16, 3, 64, 64)
    assert batch["action"].shape == (7, 16, 4)
    for n in range(7):
        name, number = batch["key"][n].split("/")
        pictures, actions = sequence(int(number) + 4 * (name == "traj_4_to_6"))
        frames = batch["frames"][n].numpy()
        assert np.array_equal(np.diff(frames), np.ones(15))
        assert np.array_equal(batch["action"][n].numpy(), actions[frames])
        shown = (batch["video"][n].movedim(1, -1) + 1) * 127.5
        expected = pictures if camera == "image_aux1" else 255 - pictures
        assert np.abs(shown.numpy() - expected[frames]).max() < 0.01
    (held,) = batches(data, data.val_dataloader())
    assert held["video"].shape == (2, 30, 3, 64, 64)
    assert np.array_equal(held["action"][1].numpy(), sequence(8)[1])


def test_frames_are_resized_and_pairs_are_made(root):
    data = ready(BAIR(str(root), size=32), "predict")
    first, second = batches(data, data.predict_dataloader())
    assert first["source"].shape == (1, 3, 32, 32)
    assert first["driving"].shape == (1, 30, 3, 32, 32)
    assert (first["key"], second["key"]) == (
        ["traj_0_to_1/0__traj_0_to_1/1"], ["traj_0_to_1/1__traj_0_to_1/0"])  # fmt: skip


def test_workers_give_the_same_batches(root):
    seen = []
    for workers in (0, 2):
        data = ready(BAIR(str(root), frames=4, batch_size=2, num_workers=workers))
        seen.append([(b["key"], b["frames"].tolist(), b["video"].sum().item())
                     for b in data.train_dataloader()])  # fmt: skip
    assert seen[0] == seen[1]
    assert len(seen[0]) == 3


def test_max_clips_counts_records(root):
    few = [keys(ready(BAIR(str(root), max_clips=count)).train_clips) for count in (1, 3, 5, 9)]
    assert [len(names) for names in few] == [1, 3, 5, 7]
    assert few[1] == keys(ready(BAIR(str(root), max_clips=3)).train_clips)


def test_no_record_is_read_to_find_out_what_there_is(root, monkeypatch):
    """The table beside the data knows where every record lies, and notices a changed file."""
    data = BAIR(str(root))
    data.prepare_data()

    def forbidden(path):
        raise AssertionError(f"{path} is looked into")

    with monkeypatch.context() as patch:
        patch.setattr("lmdvid.video.scan.record_lengths", forbidden)
        patch.setattr("subprocess.Popen", forbidden)
        assert len(ready(data, "fit").train_clips) == 7
    write(root / "train/traj_4_to_6.tfrecords", range(3))
    os.utime(root / "train/traj_4_to_6.tfrecords", ns=(1, 1))
    data = ready(BAIR(str(root), batch_size=7))
    (batch,) = batches(data, data.train_dataloader())
    place = batch["key"].index("traj_4_to_6/1")
    assert np.array_equal(batch["action"][place].numpy(), sequence(1)[1])


def test_a_very_long_index_is_kept(tmp_path):
    path = tmp_path / "many.tfrecords"
    pictures, _ = sequence(0, frames=1, side=2)
    tfrecords.write(path, [tfrecords.push(pictures)] * 50_000, google_crc32c.value)
    first, again = scan_clips(tmp_path, [path]), scan_clips(tmp_path, [path])
    assert len(first.clips[0].records) > 131_072  # what csv reads by itself
    assert (again.clips, again.looked_into) == (first.clips, 0)


# Damage


def test_a_flipped_bit_leaves_out_its_sequence_and_is_named(root, caplog):
    path = root / "train/traj_0_to_3.tfrecords"
    place = 16 + record_lengths(path)[0] + 5000  # in record 1
    flip(path, place)
    data = ready(BAIR(str(root), frames=2, batch_size=7, max_unreadable=0.2))
    assert not caplog.messages  # nothing has read it yet
    drawn = batches(data, data.train_dataloader()) + batches(data, data.train_dataloader())
    assert len(drawn) == 2
    assert all(len(b["key"]) == 7 and "traj_0_to_3/1" not in b["key"] for b in drawn)
    (message,) = caplog.messages
    assert f"cannot read {path}: record 1: the CRC of its data is wrong" in message
    assert list(data.unreadable) == [f"{path}/1"]
    data = ready(BAIR(str(root), frames=2, batch_size=7, max_unreadable=0.1))
    with pytest.raises(DataError, match=r"1 of 7 clips cannot be read[^:]*:\n.*record 1"):
        batches(data, data.train_dataloader())


def test_the_first_record_of_a_file_fails_as_any_other(root, caplog):
    path = root / "train/traj_0_to_3.tfrecords"
    flip(path, 5000)
    data = ready(BAIR(str(root), frames=2, batch_size=7, max_unreadable=0.2))
    assert len(data.train_clips) == 7
    assert not caplog.messages
    (batch,) = batches(data, data.train_dataloader())
    assert "traj_0_to_3/0" not in batch["key"]
    assert list(data.unreadable) == [f"{path}/0"]


def test_two_damaged_records_of_one_file_count_as_two(root):
    path = root / "train/traj_0_to_3.tfrecords"
    for number in (1, 2):
        flip(path, number * (16 + record_lengths(path)[0]) + 5000)
    data = ready(BAIR(str(root), frames=2, batch_size=7, samples_per_clip=4, max_unreadable=0.2))
    with pytest.raises(DataError, match=r"2 of 7 clips cannot be read"):
        batches(data, data.train_dataloader())


@pytest.mark.parametrize("how", ["cut", "flipped"])
def test_what_follows_damaged_framing_is_counted_as_lost(root, caplog, how):
    path = root / "train/traj_0_to_3.tfrecords"
    second = 16 + record_lengths(path)[0]
    if how == "cut":
        os.truncate(path, second + 100_000)
    else:
        flip(path, second)
    lost = 1 if how == "cut" else 3
    with pytest.raises(DataError, match=rf"{lost} of {4 + lost} clips cannot be read") as error:
        ready(BAIR(str(root)))
    assert str(error.value).count("record 1: its length is damaged, or the file ends") == 1
    data = ready(BAIR(str(root), max_unreadable=0.5))
    assert keys(data.train_clips) == ["traj_0_to_3/0", *(f"traj_4_to_6/{n}" for n in range(3))]
    (message,) = caplog.messages
    assert ("about 2 records behind it are lost" in message) == (how == "flipped")


def test_a_file_without_a_whole_record(root):
    (root / "train/traj_4_to_6.tfrecords").write_bytes(b"not a record at all")
    with pytest.raises(DataError, match=r"traj_4_to_6.tfrecords: no TFRecord file"):
        ready(BAIR(str(root)))


# Conversions


def test_pictures_arrays_and_videos(tmp_path):
    """The same sequence in each of them, in one folder; none of them has actions."""
    pictures, _ = sequence(0, frames=5)
    smooth = np.repeat(np.repeat(pictures[:, ::16, ::16], 16, 1), 16, 2)
    for split in ("train", "test"):
        for t in range(5):
            write_image(tmp_path / split / f"traj_0_to_255/0/{t}.png", torch.from_numpy(smooth[t]))
        np.save(tmp_path / split / "seq_00000_obs.npy", smooth)
        write_video(tmp_path / split / "000000.mp4", torch.from_numpy(smooth), 25, crf=4)
    data = ready(BAIR(str(tmp_path), frames=4, batch_size=3, eval_frames=5))
    names = ["000000.mp4", "seq_00000_obs.npy", "traj_0_to_255/0"]
    assert keys(data.train_clips) == keys(data.test_clips) == names
    (batch,) = batches(data, data.test_dataloader())
    shown = ((batch["video"].movedim(2, -1) + 1) * 127.5).numpy()
    assert np.abs(shown[1:] - smooth).max() < 0.01
    assert np.abs(shown[0] - smooth).mean() < 12
    assert "action" not in batch
    write(tmp_path / "train/traj_0_to_0.tfrecords", [0])  # a batch has actions, or none of it
    data = ready(BAIR(str(tmp_path), frames=4, batch_size=4, eval_frames=5))
    (batch,) = batches(data, data.train_dataloader())
    assert "action" not in batch
    assert sorted(batch["key"]) == [*names[:2], "traj_0_to_0/0", names[2]]


def test_arrays_are_clips_of_their_own(tmp_path):
    pictures, _ = sequence(0, frames=5)
    np.save(tmp_path / "a.npy", pictures)
    info = probe(tmp_path / "a.npy")
    assert (info.frames, info.width, info.height, info.kind, info.fps) == (5, 64, 64, "array", 25)
    frames = read_clip(tmp_path / "a.npy", [4, 0, 4], backend="decord")
    assert np.array_equal(frames.numpy(), pictures[[4, 0, 4]])
    assert np.array_equal(torch.stack([*stream_frames(tmp_path / "a.npy")]).numpy(), pictures)
    with pytest.raises(VideoReadError, match=r"frame 5 of 5"):
        read_clip(tmp_path / "a.npy", [5])
    whole = (tmp_path / "a.npy").read_bytes()
    for content, reason in (
        (whole[:999], "no whole .npy file"),
        (b"text", "no whole .npy file"),
        (whole[:12], "no whole .npy file"),
        (b"", "the file is empty"),
    ):
        (tmp_path / "a.npy").write_bytes(content)
        with pytest.raises(VideoReadError, match=reason):
            probe(tmp_path / "a.npy")
    for array in (pictures[0], pictures.astype(np.float32), pictures[..., :2], pictures[:0]):
        np.save(tmp_path / "a.npy", array)
        with pytest.raises(VideoReadError, match=r"frames are uint8 \(T, H, W, 3\)"):
            probe(tmp_path / "a.npy")


def test_errors(tmp_path):
    with pytest.raises(DataError, match="camera is 'wrist'; choose from image_aux1, image_main"):
        BAIR(str(tmp_path), camera="wrist")  # type: ignore[arg-type]
    with pytest.raises(DataError, match=r"BAIR reads TFRecords, videos, .npy files and folders"):
        ready(BAIR(str(tmp_path)))
