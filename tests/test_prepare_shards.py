"""A set that several machines prepare in parts, and whose records are united."""

import pytest
import torch

from data_modules.index import find_clips
from lmdvid import cli
from lmdvid.prepare import PrepareError, Settings, Shard, locked, prepare_clips
from lmdvid.video import write_video

SMALL = Settings(size=32)


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    folder = tmp_path_factory.mktemp("source")
    for i in range(6):
        frames = torch.full((3, 48, 40, 3), 40 * i, dtype=torch.uint8)
        write_video(folder / f"train/id{i}#v#0#9.mp4", frames, 25)
    (folder / "train/broken.mp4").write_bytes(b"no video")
    return folder


def test_an_original_belongs_to_one_shard_whatever_else_there_is():
    names = [f"train/{i}.mp4" for i in range(1000)]
    shards = [Shard(number, 7) for number in range(1, 8)]
    held = [[name for name in names if shard.holds(name)] for shard in shards]
    assert sorted(name for part in held for name in part) == sorted(names)
    assert all(100 < len(part) < 190 for part in held)
    assert Shard.parse("3/7").holds(held[2][0])


@pytest.mark.parametrize("text", ["0/4", "5/4", "1", "1/0", "a/b", "-1/2"])
def test_shards_that_make_no_sense(text):
    with pytest.raises(PrepareError, match=r"shard is"):
        Shard.parse(text)


def test_parts_and_the_whole_exclude_each_other(tmp_path, capsys):
    """Whichever comes first; parts are prepared at once."""
    busy = "another run is writing"
    with locked(tmp_path, ".1of2"):
        with locked(tmp_path, ".2of2"):
            pass
        for mark in (".1of2", ""):
            with pytest.raises(PrepareError, match=busy), locked(tmp_path, mark):
                pass
        for table in ("lmdvid_clips.1of2.csv", ".lmdvid_prepared.1of2.jsonl"):
            (tmp_path / table).touch()
            assert cli.main(["prepare", "merge", "--output", str(tmp_path)]) == 2
            assert busy in capsys.readouterr().err
            (tmp_path / table).unlink()
    with (
        locked(tmp_path, ""),
        pytest.raises(PrepareError, match=busy),
        locked(tmp_path, ".1of2"),
    ):
        pass
    with locked(tmp_path, ""):
        pass


def test_two_machines_prepare_a_set_which_is_then_one(source, tmp_path, capsys):
    clips, output = find_clips(source), tmp_path / "out"
    parts = [
        prepare_clips(clips, source, output, SMALL, jobs=1, shard=Shard(number, 2))
        for number in (1, 2)
    ]
    made = [set(part.made) for part in parts]
    assert not made[0] & made[1]
    assert made[0]
    assert made[1]
    assert made[0] | made[1] == {f"train/id{i}#v#0#9.mp4" for i in range(6)}
    assert sum(len(part.failed) for part in parts) == 1
    assert not parts[0].strangers + parts[1].strangers
    unaware = prepare_clips(clips, source, output, SMALL, jobs=1)
    assert sum("move it away" in reason for reason in unaware.failed.values()) == 6

    assert cli.main(["prepare", "merge", "--output", str(output)]) == 0
    assert "2 shards united: 6 files are known" in capsys.readouterr().out
    assert "broken.mp4" in (output / "prepare_failed.txt").read_text()
    assert sorted(p.name for p in output.iterdir()) == [
        ".lmdvid_lock",
        ".lmdvid_prepared.jsonl",
        "prepare_failed.txt",
        "train",
    ]
    whole = prepare_clips(clips, source, output, SMALL, jobs=1)
    assert sorted(whole.kept) == sorted(made[0] | made[1])
    assert not whole.made
    again = prepare_clips(clips, source, output, SMALL, jobs=1, shard=Shard(1, 3))
    assert not again.made
    assert cli.main(["prepare", "merge", "--output", str(tmp_path / "nosuch")]) == 2
    assert "holds no record of a shard" in capsys.readouterr().err
