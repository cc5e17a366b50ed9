"""Clips packed into shards: the same batches as from files, here and in object storage."""

import errno
import fcntl
import json
import logging
import multiprocessing
import os
import resource
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from multiprocessing import forkserver
from pathlib import Path

import numpy as np
import pytest
import torch
from litdata import StreamingDataset
from storage import Storage

from data_modules import shards
from data_modules.bair import BAIR
from data_modules.base import DataError, VideoDataModule
from data_modules.clips import Clips
from data_modules.index import find_clips
from data_modules.mug import MUG
from data_modules.packing import Written, merge_shards, write_shards
from data_modules.sampling import Encoded, read_frames, read_square
from data_modules.shards import Chunks, Shards
from data_modules.voxceleb import VoxCeleb
from data_modules.watchdog import Watchdog, watched
from lmdvid import cli
from lmdvid.video import VideoReadError, content, write_image, write_video

CHUNK = 9_000  # bytes; two clips fill one
TRAINING = ["id0#a.mp4", "id0#b.mp4", "id1#a.mp4", "id2#a.mp4", "id2#b.mp4"]


def noise(seed: int, frames: int = 8) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    small = torch.randint(256, (frames, 3, 4, 4), generator=generator).float()
    large = torch.nn.functional.interpolate(small, (32, 32), mode="bilinear")
    return large.to(torch.uint8).permute(0, 2, 3, 1).contiguous()


@pytest.fixture(scope="module")
def source(tmp_path_factory) -> Path:
    """Clips of several people for training; a folder of pictures and a gif held out."""
    folder = tmp_path_factory.mktemp("source")
    for seed, name in enumerate(TRAINING):
        write_video(folder / "train" / name, noise(seed), 25)
    for number, picture in enumerate(noise(8, 10)):
        (folder / "test/id8#a.mp4").mkdir(parents=True, exist_ok=True)
        write_image(folder / f"test/id8#a.mp4/{number}.png", picture)
    write_video(folder / "test/id9#a.gif", noise(9), 25)
    return folder


@pytest.fixture(scope="module")
def packed(source, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("packed") / "vox"
    assert pack(source, folder).failed == {}
    return folder


def pack(source: Path, output: Path) -> Written:
    return write_shards(find_clips(source), source, output, CHUNK)


def data_of(root: Path | str, kind: type[VideoDataModule] = VoxCeleb, **options) -> VideoDataModule:
    options = {"size": 32, "batch_size": 2, "eval_frames": 4} | options
    data = kind(str(root), **options)
    data.prepare_data()
    data.setup()
    return data


def batches(data: VideoDataModule) -> list[dict]:
    return [*data.train_dataloader(), *data.val_dataloader(), *data.predict_dataloader()]


def assert_same(found: list[dict], expected: list[dict]) -> None:
    assert len(found) == len(expected) > 0
    for one, other in zip(found, expected, strict=True):
        assert one.keys() == other.keys()
        for name, value in one.items():
            if isinstance(value, torch.Tensor):
                assert torch.equal(value, other[name])
            else:
                assert value == other[name]


# Packing


def test_litdata_reads_what_is_packed(source, packed):
    table = Shards(str(packed))
    names = [*find_clips(source)]
    items = StreamingDataset(str(packed))
    assert len(items) == len(names) == 7
    assert [bytes(items[n]) for n in range(7)] == [content(source / name) for name in names]
    assert [table.content(packed / name)() for name in names] == [
        content(source / name) for name in names
    ]
    sizes = [path.stat().st_size for path in packed.glob("chunk-*.bin")]
    assert 2 < len(sizes) < 7


def test_the_command_names_what_it_leaves_out(source, tmp_path, capsys):
    folder = tmp_path / "clips"
    shutil.copytree(source, folder)
    (folder / "train/broken.mp4").write_bytes(b"no video")
    line = ["prepare", "shards", "--input", str(folder), "--output", str(tmp_path / "out")]
    assert cli.main([*line, "--chunk-mb", "0.009"]) == 1
    said = capsys.readouterr()
    assert f"cannot read {folder}/train/broken.mp4: not a video, or damaged" in said.err
    chunks = len([*(tmp_path / "out").glob("chunk-*.bin")])
    words = f"7 clips packed into {chunks} chunks, of which"
    assert f"{words} 0 were there already, 1 failed (listed in" in said.out
    assert "broken.mp4: not a video" in (tmp_path / "out/prepare_failed.txt").read_text()
    (folder / "train/broken.mp4").unlink()
    assert cli.main([*line, "--chunk-mb", "0.009"]) == 0
    assert f"{words} {chunks} were there already, 0 failed" in capsys.readouterr().out
    assert not (tmp_path / "out/prepare_failed.txt").exists()
    for more, message in (
        (["--size", "64"], "--size: not for shards"),
        (["--chunk-mb", "0"], "--chunk-mb: must be above 0"),
    ):
        with pytest.raises(SystemExit):
            cli.main([*line, *more])
        assert message in capsys.readouterr().err
    assert cli.main([*line[:4], "--output", str(folder / "out")]) == 2
    assert "contain each other" in capsys.readouterr().err


def test_a_run_that_was_killed_goes_on_where_it_stopped(source, packed, tmp_path):
    output = tmp_path / "out"
    script = (
        "import os, pathlib, signal, sys\n"
        "from data_modules.index import find_clips\n"
        "from data_modules.packing import write_shards\n"
        "source, output = map(pathlib.Path, sys.argv[1:])\n"
        "def until_killed(pieces, count):\n"
        "    for number, piece in enumerate(pieces):\n"
        "        if number == 3:\n"
        "            os.kill(os.getpid(), signal.SIGKILL)\n"
        "        yield piece\n"
        f"write_shards(find_clips(source), source, output, {CHUNK}, progress=until_killed)\n"
    )
    killed = subprocess.run([sys.executable, "-c", script, str(source), str(output)])
    assert killed.returncode == -9
    assert len([*output.glob("chunk-*.bin")]) == 3
    with pytest.raises(DataError, match="holds shards that are not complete"):
        data_of(output)
    chunks = sorted(output.glob("chunk-*.bin"))
    chunks[0].write_bytes(chunks[0].read_bytes()[:-1])  # as a disk without power leaves it
    done = pack(source, output)
    assert (done.kept, done.made) == (2, len([*packed.glob("chunk-*.bin")]) - 2)
    assert sorted(p.name for p in output.iterdir()) == sorted(p.name for p in packed.iterdir())
    for path in packed.iterdir():
        if path.name != "index.json":  # it has the time
            assert path.read_bytes() == (output / path.name).read_bytes()


def test_another_original_makes_another_chunk(source, tmp_path):
    folder, output = tmp_path / "clips", tmp_path / "out"
    shutil.copytree(source, folder)
    before = pack(folder, output)
    write_video(folder / "train/id0#b.mp4", noise(77, 9), 25)
    after = pack(folder, output)
    assert (after.made, after.kept) == (1, before.made - 1)
    assert len([*output.glob("chunk-*.bin")]) == before.made  # the old one is deleted
    clip = output / "train/id0#b.mp4"
    assert Shards(str(output)).content(clip)() == (folder / "train/id0#b.mp4").read_bytes()


def test_no_clip_is_lost_that_is_not_given_again(source, packed, tmp_path):
    """A smaller input, in one or in parts, and a folder that litdata alone has made."""
    output = Path(shutil.copytree(packed, tmp_path / "out"))
    before = {path.name: path.read_bytes() for path in output.iterdir()}
    some = {name: path for name, path in find_clips(source).items() if "id0" not in name}
    lost = r"2 of 7 clips packed in .*out are not among .* \(such as train/id0#a.mp4\) and would be"
    with pytest.raises(DataError, match=lost):
        write_shards(some, source, output, CHUNK)
    assert {path.name: path.read_bytes() for path in output.iterdir()} == before
    write_shards(some, source, output, CHUNK, ".1of1")
    with pytest.raises(DataError, match=lost):
        merge_shards(output, [".1of1"])
    assert len(Shards(str(output)).find(output, {".mp4", ".gif"})) == 7
    for name in ("index.json", "lmdvid_clips.csv"):
        (output / name).unlink()
    assert merge_shards(output, [".1of1"]) == write_shards(some, source, output, CHUNK).clips == 5

    foreign = tmp_path / "foreign"
    foreign.mkdir()
    for names in (["chunk-0-0.bin"], ["index.json", "chunk-0123456789abcdef.bin"]):
        for name in names:
            (foreign / name).write_bytes(b"theirs")
        with pytest.raises(DataError, match=rf"did not make \({names[0]}\), which it would over"):
            pack(source, foreign)
        assert sorted(path.name for path in foreign.iterdir()) == sorted(names)
        for name in names:
            (foreign / name).unlink()


def test_a_list_that_leads_nowhere_is_a_failure_of_its_own(source, tmp_path):
    folder = Path(shutil.copytree(source, tmp_path / "clips"))
    (folder / "x.csv").symlink_to("nowhere")
    done = pack(folder, tmp_path / "out")
    assert done.clips == 7
    assert done.failed == {"x.csv": f"cannot read {folder}/x.csv: no such file or directory"}
    assert len(Shards(str(tmp_path / "out")).find(tmp_path / "out", {".mp4", ".gif"})) == 7


def test_pictures_whose_names_are_no_text(source, tmp_path):
    folder, output = tmp_path / "clips", tmp_path / "out"
    clip = folder / "train/id0#a.mp4"
    shutil.copytree(source / "test/id8#a.mp4", clip)
    expected = data_of(folder, Clips, holdout=0.0).train_clips[0]
    pictures = read_square(expected, range(10), 32, "auto")
    for path in clip.iterdir():
        path.rename(os.fsdecode(os.fsencode(clip / f"\udcff_{path.name}")))
    assert pack(folder, output).failed == {}
    found = data_of(output, Clips, holdout=0.0).train_clips[0]
    assert torch.equal(read_square(found, range(10), 32, "auto"), pictures)


def test_machines_pack_parts_of_a_set(source, packed, tmp_path, capsys):
    output = tmp_path / "out"
    line = ["prepare", "shards", "--input", str(source), "--output", str(output)]
    merge = ["prepare", "merge", "--output", str(output)]
    assert cli.main([*line, "--shard", "1/2"]) == 0
    assert cli.main(merge) == 1
    assert "lmdvid_clips.2of2.csv is missing: that part was not" in capsys.readouterr().err
    with pytest.raises(DataError, match="not complete"):
        data_of(output)
    assert cli.main([*line, "--shard", "2/2"]) == 0
    assert cli.main(merge) == 0
    assert "2 parts united: 7 clips are packed" in capsys.readouterr().out
    names = {"index.json", "lmdvid_clips.csv", ".lmdvid_lock"}
    assert {p.name for p in output.iterdir() if not p.name.startswith("chunk")} == names
    assert_same(batches(data_of(output)), batches(data_of(packed)))
    assert len(StreamingDataset(str(output))) == 7
    # A part may be empty, and the set may be divided anew.
    assert write_shards({}, source, output, CHUNK, ".1of2").clips == 0
    write_shards(find_clips(source), source, output, CHUNK, ".2of2")
    assert merge_shards(output, [".1of2", ".2of2"]) == 7
    assert_same(batches(data_of(output)), batches(data_of(packed)))


# Reading


@pytest.mark.parametrize("backend", ["auto", "pyav"])
def test_shards_give_the_batches_of_files(source, packed, backend):
    options = {"backend": backend, "identity_sampling": True}
    files, packs = (data_of(root, **options) for root in (source, packed))
    assert [clip.key for clip in packs.train_clips] == TRAINING
    assert [clip.identity for clip in packs.test_clips] == ["id8", "id9"]
    assert_same(batches(packs), batches(files))
    for split in ("random", "time"):
        options = {"split": split, "holdout": 0.5}
        files, packs = (data_of(root, Clips, **options) for root in (source, packed))
        assert_same(batches(packs), batches(files))


@pytest.mark.slow
def test_workers_read_shards(source, packed):
    assert_same(batches(data_of(packed, num_workers=2)), batches(data_of(source)))


def test_lists_and_arrays_are_packed_too(tmp_path):
    folder, output = tmp_path / "mug", tmp_path / "out"
    rows = {"train": [], "val": []}
    for number, (person, part) in enumerate((("001", "train"), ("002", "train"), ("003", "val"))):
        clip = f"{person}/take{number}"
        write_video(folder / f"{clip}.mp4", noise(number), 25)
        rows[part].append(f"{clip},anger")
    for part, lines in rows.items():
        text = "\n".join(["video,category", *lines, f"{part}/gone,fear", ""])
        (folder / f"{part}_none_neutral.csv").write_text(text)
    pack(folder, output)
    files, packs = (data_of(root, MUG, frames=4) for root in (folder, output))
    assert packs.labels == {"001/take0.mp4": 1, "002/take1.mp4": 1, "003/take2.mp4": 1}
    expected = batches(files)
    assert_same(batches(packs), expected)
    lists = [str(folder / f"{part}_none_neutral.csv") for part in rows]  # not of the shards
    options = {"frames": 4, "train_list": lists[0], "test_list": lists[1]}
    assert_same(batches(data_of(output, MUG, **options)), expected)
    with pytest.raises(DataError, match=r"no data: .*gone.csv does not exist"):
        data_of(output, MUG, **options | {"test_list": str(folder / "gone.csv")})

    folder, output = tmp_path / "bair", tmp_path / "bair_out"
    for number, part in enumerate(("train", "train", "test")):
        (folder / part).mkdir(parents=True, exist_ok=True)
        np.save(folder / part / f"{number}.npy", noise(number).numpy())
    line = ["prepare", "shards", "--input", str(folder), "--output", str(output)]
    assert cli.main(line) == 0
    files, packs = (data_of(root, BAIR, frames=4) for root in (folder, output))
    assert_same(batches(packs), batches(files))


@pytest.fixture
def copy(packed, tmp_path) -> Path:
    """Shards to damage."""
    return Path(shutil.copytree(packed, tmp_path / "copy"))


def test_damaged_bytes_are_found_by_their_checksum(copy, caplog):
    data = data_of(copy, max_unreadable=0.5)
    victim = next(clip for clip in data.train_clips if clip.key == "id1#a.mp4")
    place = victim.content.__self__  # type: ignore[union-attr]
    chunk = copy / place.chunk
    content = bytearray(chunk.read_bytes())
    content[place.offset + place.size // 2] ^= 1
    chunk.write_bytes(content)
    for batch in data.train_dataloader():
        assert "id1#a.mp4" not in batch["key"]
    reason = f"cannot read {copy}/train/id1#a.mp4: its bytes in {chunk.name} are damaged; copy that"
    assert data.unreadable.keys() == {victim.path}
    assert caplog.text.count(reason) == 1
    with pytest.raises(DataError, match=r"1 of 5 clips cannot be read, more than max_unreadable"):
        list(data_of(copy).train_dataloader())


def test_shards_that_are_not_whole(copy, packed):
    chunk = sorted(copy.glob("chunk-*.bin"))[0]
    whole = chunk.read_bytes()
    chunk.write_bytes(whole[:-3])
    with pytest.raises(DataError, match=rf"{chunk.name} has {len(whole) - 3} of {len(whole)} byt"):
        data_of(copy)
    chunk.unlink()
    with pytest.raises(DataError, match=rf"{chunk.name} is missing: copy the shards again"):
        data_of(copy)
    chunk.write_bytes(whole)
    data = data_of(copy)
    for path in copy.glob("chunk-*.bin"):
        path.unlink()
    with pytest.raises(DataError, match=r"cannot read .*/chunk-\w+.bin: no such file"):
        list(data.train_dataloader())
    for name, text, message in (
        ("index.json", None, "holds no whole set of shards"),
        ("index.json", "{]", "index.json is no index of chunks"),
        ("index.json", '{"chunks": [{"filename": "../x", "chunk_bytes": 1}]}', "which is no chunk"),
        (
            "index.json",
            '{"chunks": [{"filename": "x", "chunk_bytes": Infinity}]}',
            "no index of ch",
        ),
        ("lmdvid_clips.csv", (",25,", ",1e99999999,"), "'1e99999999' is no frame rate such as"),
        ("lmdvid_clips.csv", "path,size\n", "its columns are others"),
        ("lmdvid_clips.csv", ("train/", "/etc/"), "no clip below the root"),
        ("lmdvid_clips.csv", (",3,chunk", ",2,chunk"), "another version of lmdvid wrote it"),
        ("lmdvid_clips.csv", (".bin,", ".bim,"), "is in no chunk of index.json"),
    ):
        shutil.rmtree(copy)
        shutil.copytree(packed, copy)
        path = copy / name
        if text is None:
            path.unlink()
        else:
            path.write_text(path.read_text().replace(*text) if isinstance(text, tuple) else text)
        with pytest.raises(DataError, match=message):
            data_of(copy)


def test_without_litdata_the_error_says_what_to_install(source, tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "litdata", None)
    for name in [name for name in sys.modules if name.startswith("litdata.")]:
        monkeypatch.delitem(sys.modules, name)
    shards._downloader_of.cache_clear()
    line = ["prepare", "shards", "--input", str(source), "--output", str(tmp_path / "out")]
    assert cli.main(line) == 1
    assert "shards are written by litdata: pip install 'lmdvid[streaming]'" in (
        capsys.readouterr().err
    )
    with pytest.raises(DataError, match=r"s3://bucket/vox is read by litdata: pip install"):
        data_of("s3://bucket/vox")
    with pytest.raises(DataError, match="shards are in a folder, or in storage like s3://bucket"):
        data_of("https://bucket/vox")


@pytest.mark.parametrize(
    ("scheme", "package"), [("gs", "google-cloud-storage"), ("azure", "azure-storage-blob")]
)
def test_what_other_storage_needs(scheme, package, monkeypatch):
    """Its own package; and it is not asked for its first byte, for which it may send all."""
    from litdata.streaming import downloader

    shards._downloader_of.cache_clear()
    absent = f"_{'GOOGLE' if scheme == 'gs' else 'AZURE'}_STORAGE_AVAILABLE"
    monkeypatch.setattr(downloader, absent, False)
    with pytest.raises(DataError, match=rf"is read by {package}, which is not .*: pip install"):
        data_of(f"{scheme}://bucket/vox")

    class Other:
        def download_file(self, url, target):
            Path(target).write_text(url)

    monkeypatch.setattr(shards, "_downloader", lambda root: Other())
    with pytest.raises(DataError, match=rf"{scheme}://bucket/vox/index.json is no index"):
        data_of(f"{scheme}://bucket/vox")


@pytest.mark.parametrize("sign", "#?")
def test_addresses_with_signs_that_end_them(sign):
    with pytest.raises(DataError, match=rf"cannot fetch s3://bucket/vox\{sign}1/index.json: addr"):
        data_of(f"s3://bucket/vox{sign}1")


def test_a_gpu_gets_the_bytes(source, packed):
    """What decodes there is given the whole file, as it is."""
    clip = data_of(packed).train_clips[0]
    found = read_frames(clip, [3, 1], 32, "auto", decoder=object())  # type: ignore[arg-type]
    assert isinstance(found, Encoded)
    assert (found.path, found.frames) == (f"{packed}/train/id0#a.mp4", [3, 1])
    assert found.data == (source / "train/id0#a.mp4").read_bytes()


# Object storage


@pytest.fixture(scope="module")
def storage():
    started = Storage()
    yield started
    started.close()


@pytest.fixture
def remote(storage, packed, tmp_path, monkeypatch) -> str:
    for name, value in storage.variables.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(shards, "_PAUSES", (0.05, 0.1))
    monkeypatch.setattr(shards, "_FIRST_PAUSES", (0.05,))
    shards._downloader_of.cache_clear()
    return storage.upload(packed, "vox")


def copies(folder: Path) -> list[Path]:
    return sorted(folder.glob("cache/lmdvid/shards/vox_*/chunk-*.bin"))


def test_object_storage_gives_the_batches_of_files(remote, packed, source, tmp_path):
    expected = batches(data_of(source))
    data = data_of(remote)
    assert data.train_clips[0].path == "s3://bucket/vox/train/id0#a.mp4"
    assert not copies(tmp_path)
    assert_same(batches(data), expected)
    kept = copies(tmp_path)
    assert len(kept) >= 3
    assert all(path.read_bytes() == (packed / path.name).read_bytes() for path in kept)
    # What is damaged, cut off or deleted here is fetched again, also in the middle of a run.
    kept[0].write_bytes(bytes(kept[0].stat().st_size))
    kept[1].write_bytes(b"")
    kept[2].unlink()
    assert_same(batches(data), expected)
    shutil.rmtree(tmp_path / "cache")
    assert_same(batches(data), expected)
    assert [path.name for path in copies(tmp_path)] == [path.name for path in kept]
    # A smaller cache keeps the first chunks alone.
    total = sum(path.stat().st_size for path in kept)
    data = data_of(remote, cache_gb=total / 2 / 1e9)
    assert_same(batches(data), expected)
    assert 0 < len(copies(tmp_path)) < len(kept)
    assert_same(batches(data_of(remote, cache_gb=0)), expected)
    assert not copies(tmp_path)


def test_a_disk_that_takes_no_copies(remote, source, tmp_path, monkeypatch, caplog):
    data = data_of(remote)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2000, limits[1]))
    try:
        found = batches(data)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert_same(found, batches(data_of(source)))
    assert "cannot take copies of chunks (file too large): clips of s3://bucket/vox are" in (
        caplog.text
    )
    monkeypatch.setattr(shards, "_ROOM", 1e18)  # more than this disk has
    assert_same(batches(data_of(remote)), found)
    assert caplog.text.count("copies of chunks (no space left on device)") == 1
    assert not copies(tmp_path)


def test_copies_are_read_when_the_disk_is_full(remote, source, tmp_path, monkeypatch):
    data = data_of(remote)
    first, second = data.train_clips[0], data.train_clips[-1]
    expected = read_square(first, [0], 32, "auto"), read_square(second, [0], 32, "auto")
    copies(tmp_path)[-1].unlink()  # of one of the two
    copied = copies(tmp_path)
    monkeypatch.setattr(shards, "_ROOM", 1e18)
    data = data_of(remote)
    asked: list[str] = []
    downloader = shards._downloader(remote)
    fetch = downloader.download_bytes
    monkeypatch.setattr(
        downloader, "download_bytes", lambda url, *rest: asked.append(url) or fetch(url, *rest)
    )
    for _ in range(2):
        for clip, pictures in zip(data.train_clips[::4], expected, strict=True):
            assert torch.equal(read_square(clip, [0], 32, "auto"), pictures)
    assert len(asked) == 2
    assert len(set(asked)) == 1
    assert copies(tmp_path) == copied


@pytest.mark.parametrize("obstacle", ["a file", "a file above", "no locks"])
def test_a_place_for_copies_that_is_none(remote, source, tmp_path, monkeypatch, caplog, obstacle):
    data = data_of(remote)
    clip = data.train_clips[0]
    folder = clip.content.__self__.chunks.copies  # type: ignore[union-attr]
    reason = {"a file": "file exists", "a file above": "not a directory"}.get(obstacle, "no locks")
    if obstacle == "no locks":

        def flock(*_):
            raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

        monkeypatch.setattr(fcntl, "flock", flock)
    else:
        place = folder if obstacle == "a file" else folder.parent
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_text("in the way")
    expected = data_of(source).train_clips[0]
    assert torch.equal(read_square(clip, [0], 32, "auto"), read_square(expected, [0], 32, "auto"))
    assert f"cannot take copies of chunks ({reason}" in caplog.text


def test_what_another_process_copies_is_not_waited_for(remote, packed, tmp_path):
    from filelock import FileLock

    place = data_of(remote).train_clips[0].content.__self__  # type: ignore[union-attr]
    place.chunks.copies.mkdir(parents=True, exist_ok=True)
    expected = (packed / place.chunk).read_bytes()[place.offset : place.offset + place.size]
    with FileLock(place.chunks.copies / f"{place.chunk}.lock"):
        assert place.read() == expected
    assert not copies(tmp_path)
    assert place.read() == expected
    assert len(copies(tmp_path)) == 1


def test_a_slow_network_is_no_stuck_worker(packed, tmp_path, monkeypatch):
    """A chunk comes in pieces, for longer in all than a worker may do nothing."""
    index = json.loads((packed / "index.json").read_text())["chunks"][0]
    chunk, size = index["filename"], index["chunk_bytes"]
    data = (packed / chunk).read_bytes()

    def slowly(root, name, target, pauses):
        with Path(f"{target}.tmp").open("wb", buffering=0) as file:
            for start in range(0, size, size // 8):
                file.write(data[start : start + size // 8])
                time.sleep(0.25)
        Path(f"{target}.tmp").replace(target)

    def hang(root, name, target, pauses):
        time.sleep(60)

    def read(fetch):
        monkeypatch.setattr(shards, "fetch_file", fetch)
        monkeypatch.setattr(shards, "_LOOK", 0.05)
        signal.signal(signal.SIGALRM, signal.SIG_DFL)  # the timeout of tests has its own
        watcher(0)
        with watched("s3://bucket/vox/a.mp4"):
            place = Chunks("s3://bucket/vox", {chunk: size}, tmp_path / fetch.__name__, 1e9)
            os._exit(0 if place.read(chunk, 4, 9) == data[4:13] else 1)

    watcher = Watchdog(1, 1)
    codes = []
    for fetch in (slowly, hang):
        worker = multiprocessing.get_context("fork").Process(target=read, args=(fetch,))
        worker.start()
        worker.join(30)
        codes.append(worker.exitcode)
    assert codes == [0, -signal.SIGALRM]
    assert watcher.stuck() == ["s3://bucket/vox/a.mp4"]


@pytest.mark.parametrize(
    ("path", "remedy"),
    [
        ("s3://bucket/vox/a.mp4", "look after the network and"),
        ("/vox/a.mp4", "remove the file, or"),
    ],
)
def test_who_is_stuck_is_told_what_to_do(packed, monkeypatch, path, remedy):
    loader = data_of(packed).train_dataloader()
    loader.watchdog = Watchdog(1, 1)
    monkeypatch.setattr(Watchdog, "stuck", lambda self: [path])

    def killed(self):
        raise RuntimeError("DataLoader worker is killed by signal: Alarm clock")

    monkeypatch.setattr(torch.utils.data.DataLoader, "__iter__", killed)
    with pytest.raises(DataError, match=rf"reading {path} did not end within 1 s: {remedy}"):
        list(loader)


def test_what_storage_refuses(remote, storage, monkeypatch):
    with pytest.raises(DataError, match="there is no bucket nosuch"):
        data_of("s3://nosuch/vox")
    with pytest.raises(DataError, match="s3://bucket/other holds no whole set of shards"):
        data_of("s3://bucket/other")
    with pytest.raises(DataError, match="Invalid bucket name"):
        data_of("s3://no bucket/vox")
    data = data_of(remote)
    chunk = data.train_clips[0].content.__self__.chunk  # type: ignore[union-attr]
    whole = storage.client.get_object(Bucket="bucket", Key=f"vox/{chunk}")["Body"].read()
    storage.client.put_object(Bucket="bucket", Key=f"vox/{chunk}", Body=whole[:-1])
    with pytest.raises(DataError, match=rf"{chunk} has {len(whole) - 1} bytes instead of"):
        list(data.train_dataloader())
    storage.client.delete_object(Bucket="bucket", Key=f"vox/{chunk}")
    with pytest.raises(DataError, match=rf"cannot fetch {remote}/{chunk}: there is no such object"):
        list(data.train_dataloader())
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", os.devnull)
    monkeypatch.setenv("AWS_CONFIG_FILE", os.devnull)
    shards._downloader_of.cache_clear()
    with pytest.raises(DataError, match=r"no credentials .* Set AWS_ACCESS_KEY_ID and AWS_SECRET"):
        data_of(remote)


def test_a_network_that_goes_and_comes(packed, source, tmp_path, monkeypatch, caplog):
    storage = Storage()
    try:
        for name, value in storage.variables.items():
            monkeypatch.setenv(name, value)
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
        shards._downloader_of.cache_clear()
        data = data_of(storage.upload(packed, "gone"), cache_gb=0)
        reading = iter(data.train_dataloader())
        next(reading)
        storage.process.terminate()
        storage.process.wait(60)
        monkeypatch.setattr(shards, "_PAUSES", (0.05, 0.1))
        began = time.monotonic()
        with caplog.at_level(logging.WARNING), pytest.raises(DataError) as error:
            next(reading)
    finally:
        storage.close()
    assert "cannot fetch s3://bucket/gone/chunk-" in str(error.value)
    assert "tried 3 times: Could not connect to the endpoint" in str(error.value)
    assert caplog.text.count("trying again in") == 2
    assert time.monotonic() - began < 10


TINY = """
seed_everything: 0
model:
  class_path: lmdvid.tasks.lia.LIA
  init_args: {size: 32, dim: 16, directions: 3, width: 0.02, perceptual: none}
data:
  class_path: data_modules.voxceleb.VoxCeleb
  init_args: {root: ROOT, size: 32, batch_size: 2, num_workers: WORKERS, eval_frames: 8}
trainer:
  accelerator: cpu
  devices: 1
  max_steps: 4
  max_epochs: -1
  limit_val_batches: 0
  enable_progress_bar: false
  enable_model_summary: false
  logger: false
  callbacks:
    - class_path: lightning.pytorch.callbacks.ModelCheckpoint
      init_args: {dirpath: NAME, save_last: true, every_n_train_steps: 4}
"""


@pytest.fixture
def new_workers(remote):
    """Processes that know this environment; those of other tests come from an older one."""
    forkserver._forkserver._stop()  # type: ignore[attr-defined]


def fit(name: str, root: str | Path, workers: int) -> int:
    """Train for four steps."""
    text = TINY.replace("NAME", name).replace("WORKERS", str(workers))
    Path(f"{name}.yaml").write_text(text)
    return cli.main(["fit", "--config", f"{name}.yaml", "--data.init_args.root", str(root)])


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*does not have many workers.*")
def test_two_workers_train_out_of_object_storage(
    remote, storage, new_workers, source, tmp_path, monkeypatch, capsys
):
    """To the last bit as from files, through the command line and by one argument."""
    monkeypatch.chdir(tmp_path)
    assert fit("files", source, 0) == 0
    assert fit("storage", remote, 2) == 0
    states = [torch.load(f"{name}/last.ckpt")["state_dict"] for name in ("files", "storage")]
    assert states[0].keys() == states[1].keys()
    assert all(torch.equal(value, states[1][name]) for name, value in states[0].items())
    assert len(copies(tmp_path)) > 2

    # A worker that gets no chunk says which.
    shutil.rmtree(tmp_path / "cache")
    for path in storage.client.list_objects_v2(Bucket="bucket", Prefix="vox/chunk")["Contents"]:
        storage.client.delete_object(Bucket="bucket", Key=path["Key"])
    capsys.readouterr()
    assert fit("missing", remote, 1) == 1
    last = capsys.readouterr().err.strip().splitlines()[-1]
    assert "error: cannot fetch s3://bucket/vox/chunk-" in last
    assert "there is no such object in bucket" in last


def test_an_unreadable_clip_keeps_its_address(remote):
    data = data_of(remote)
    clip = data.train_clips[0]
    with pytest.raises(VideoReadError, match=r"cannot read s3://bucket/vox/train/id0#a.mp4: "):
        read_square(replace(clip, content=lambda: b"no video"), [0], 32, "auto")
