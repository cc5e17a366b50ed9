"""Folders of videos to scores: what is read, named, kept, shared, shown and refused."""

import json
import multiprocessing

import numpy as np
import pytest
import torch

from lmdvid import cli, commands, evaluate, loggers
from lmdvid.commands import UsageError
from lmdvid.metrics import protocols
from lmdvid.metrics.frechet import FrechetDistance
from lmdvid.metrics.protocols import PROTOCOLS, Protocol, ProtocolError, check_comparable, protocol
from lmdvid.networks.features import VideoFeatures


class Means(VideoFeatures):
    """Mean colour and mean change of a clip: six numbers, quickly."""

    dim = 6
    frames = 2
    resize = "none"
    digest = "ab" * 32
    clips = 0

    def __init__(self, weights=None):
        super().__init__()

    def embed(self, video):
        Means.clips += len(video)
        change = video.diff(dim=1).abs().mean((1, 3, 4))
        return torch.cat([video.mean((1, 3, 4)), change], dim=1)


class FrameMeans(Means):
    dim = 3
    per_frame = True

    def embed(self, video):
        return video.flatten(0, 1).mean((2, 3))


BY = Protocol(name="fd_means_4f", about="of this test", features="means", frames=4, limit=99)


@pytest.fixture(autouse=True)
def _networks(monkeypatch):
    monkeypatch.setitem(protocols.NETWORKS, "means", Means)
    monkeypatch.setitem(protocols.NETWORKS, "frame_means", FrameMeans)
    monkeypatch.setattr(Means, "clips", 0)


def write_clips(folder, count, seed, frames=7):
    """Arrays of frames as files; returns them by name."""
    folder.mkdir(parents=True, exist_ok=True)
    generator = np.random.default_rng(seed)
    clips = {}
    for index in range(count):
        level = generator.integers(40, 200, 3)
        clip = np.clip(level + generator.integers(-30, 30, (frames, 8, 10, 3)), 0, 255)
        np.save(folder / f"{index:02d}.npy", clip.astype(np.uint8))
        clips[f"{index:02d}.npy"] = folder / f"{index:02d}.npy"
    return clips


@pytest.fixture
def sets(tmp_path):
    return write_clips(tmp_path / "real", 13, 0), write_clips(tmp_path / "fake", 11, 1)


def rows(clips, side, by=BY):
    """Features worked out clip by clip, without the code under test."""
    found = []
    for key, path in clips.items():
        frames = np.load(path)
        video = frames[by.indices(key, len(frames), side)] / 127.5 - 1
        change = np.abs(np.diff(video, axis=0)).mean((0, 1, 2))
        found.append(np.concatenate([video.mean((0, 1, 2)), change]))
    return torch.tensor(np.stack(found))


def test_scores_are_those_of_the_chosen_frames(sets):
    result = evaluate.evaluate(*sets, BY, batch_size=4)
    metric = FrechetDistance(6)
    metric.update(rows(sets[0], "real"), real=True)
    metric.update(rows(sets[1], "fake"), real=False)
    assert result["scores"]["fd_means_4f"] == pytest.approx(metric.compute().item(), rel=1e-4)
    assert set(result["scores"]) == {"fd_means_4f", "kvd", "precision", "recall"}
    assert result["counts"] == {"real_clips": 13, "fake_clips": 11}
    assert result["weights"] == {"means": Means.digest}
    assert result["network"] == {"name": "means", "dim": 6, "resize": "none"}
    assert result["bias"]["note"].startswith("fewer samples than twice")
    assert result["bias"]["fewer"].startswith("13 real and 11 generated clips, not 99 of each: ")
    json.dumps(result)
    single = evaluate.evaluate(*sets, BY, batch_size=1)
    assert single["scores"] == pytest.approx(result["scores"], rel=1e-4)


def test_bias_and_extrapolation_where_there_are_enough(tmp_path):
    sets = write_clips(tmp_path / "real", 24, 0, 4), write_clips(tmp_path / "fake", 24, 1, 4)
    result = evaluate.evaluate(*sets, BY, extrapolate=True)
    assert 0 < result["bias"]["expected"] < 10
    assert result["scores"]["fd_means_4f_extrapolated"] < result["scores"]["fd_means_4f"]
    whole = Protocol("fd_means_4f", "", "means", frames=4)
    found = evaluate.evaluate(*sets, whole)["scores"]
    assert found == {"fd_means_4f": pytest.approx(result["scores"]["fd_means_4f"], rel=1e-9)}
    with pytest.raises(ProtocolError, match="it cannot be extrapolated"):
        evaluate.evaluate(*sets, whole, extrapolate=True)
    before = Means.clips
    few = Protocol("fd_means_4f", "", "means", frames=4, limit=23)
    with pytest.raises(
        ProtocolError, match=r"takes 23 clips, but .* 6 features needs 24: leave it"
    ):
        evaluate.evaluate(*sets, few, extrapolate=True)
    fewer = dict(list(sets[1].items())[:23])
    with pytest.raises(evaluate.EvaluationError, match="needs 24 clips of each side; there are 23"):
        evaluate.evaluate(sets[0], fewer, BY, extrapolate=True)
    assert Means.clips == before
    frames = Protocol("fid", "", "frame_means", frames=2, fake_window="spread")
    result = evaluate.evaluate(*sets, frames)
    assert result["counts"] == {"real_frames": 48, "fake_frames": 48}
    assert set(result["scores"]) == {"fid"}
    assert "not independent" in result["bias"]["note"]


def test_what_cannot_be_used_is_named_and_counted(sets):
    real, fake = sets
    real["03.npy"].write_bytes(b"no array")
    np.save(fake["05.npy"], np.zeros((3, 8, 10, 3), np.uint8))
    fake["07.npy"].unlink()
    result = evaluate.evaluate(real, fake, BY)
    assert result["counts"] == {"real_clips": 12, "fake_clips": 9}
    assert list(result["sets"]["real"]["broken"]) == ["03.npy"]
    assert list(result["sets"]["fake"]["broken"]) == ["07.npy"]
    assert result["sets"]["fake"]["too_short"] == ["05.npy"]
    for path in list(real.values())[:11]:
        path.write_bytes(b"")
    with pytest.raises(evaluate.EvaluationError, match=r"(?s)2 real and 9 gen.* least 4 .*00\.npy"):
        evaluate.evaluate(real, fake, BY)
    with pytest.raises(evaluate.EvaluationError, match="no generated video"):
        evaluate.evaluate(real, {}, BY)


def test_the_limit_takes_the_first_names(sets):
    limited = Protocol("few", "", "means", frames=4, limit=6)
    result = evaluate.evaluate(*sets, limited)
    first = [dict(list(clips.items())[:6]) for clips in sets]
    assert result["scores"]["few"] == evaluate.evaluate(*first, BY)["scores"]["fd_means_4f"]
    assert result["sets"]["real"]["found"] == 13
    assert result["sets"]["real"]["looked_at"] == 6


def test_the_limit_counts_clips_that_can_be_used(sets, tmp_path):
    real, fake = sets
    np.save(real["01.npy"], np.zeros((3, 8, 10, 3), np.uint8))  # too short
    real["04.npy"].write_bytes(b"no array")
    real["07.npy"].write_bytes(b"no array")  # behind the first six, but tried
    limited = Protocol("few", "", "means", frames=4, limit=6)
    result = evaluate.evaluate(real, fake, limited, cache=tmp_path / "cache")
    used = {k: p for k, p in real.items() if k[:2] in ("00", "02", "03", "05", "06", "08")}
    expected = evaluate.evaluate(used, fake, limited)
    assert result["scores"] == pytest.approx(expected["scores"], rel=1e-9)
    assert result["counts"] == {"real_clips": 6, "fake_clips": 6}
    report = result["sets"]["real"]
    assert report["looked_at"] == 9
    assert report["decoded"] == 6
    assert report["too_short"] == ["01.npy"]
    assert list(report["broken"]) == ["04.npy", "07.npy"]
    # The kept statistics know of the three clips behind the first six, too.
    again = evaluate.evaluate(real, fake, limited, cache=tmp_path / "cache")
    assert again["real_from_cache"]
    assert {k: again[k] for k in ("scores", "counts", "real_content")} == {
        k: result[k] for k in ("scores", "counts", "real_content")
    }
    assert again["sets"]["real"] == report | {"decoded": 0}
    write_clips(tmp_path / "other", 9, 5)["08.npy"].replace(real["08.npy"])
    changed = evaluate.evaluate(real, fake, limited, cache=tmp_path / "cache")
    assert not changed["real_from_cache"]
    assert changed["scores"] != result["scores"]


def test_a_set_that_was_too_small_is_looked_at_again_when_it_grows(sets, tmp_path):
    real, fake = sets
    for name in ("00.npy", "12.npy"):
        real[name].write_bytes(b"no array")
    limited = Protocol("few", "", "means", frames=4, limit=12)
    first = evaluate.evaluate(real, fake, limited, cache=tmp_path / "cache")
    assert first["counts"]["real_clips"] == 11
    real |= {"13.npy": fake["00.npy"]}
    second = evaluate.evaluate(real, fake, limited, cache=tmp_path / "cache")
    assert second["counts"]["real_clips"] == 12
    assert not second["real_from_cache"]


@pytest.mark.slow
def test_workers_decode_the_same(sets):
    result = evaluate.evaluate(*sets, BY, workers=1)
    assert result["scores"] == pytest.approx(evaluate.evaluate(*sets, BY)["scores"], rel=1e-9)
    assert result["sets"]["real"]["decoded"] == 13


class TestCache:
    def test_the_second_run_embeds_no_real_clip(self, sets, tmp_path):
        sets[0]["02.npy"].write_bytes(b"broken")
        first = evaluate.evaluate(*sets, BY, cache=tmp_path / "cache")
        assert Means.clips == 12 + 11
        second = evaluate.evaluate(*sets, BY, cache=tmp_path / "cache")
        assert Means.clips == 12 + 11 + 11
        assert second["real_from_cache"]
        assert second["sets"]["real"]["decoded"] == 0
        assert second["scores"] == first["scores"]
        assert second["counts"] == first["counts"]
        assert second["sets"]["real"]["broken"] == first["sets"]["real"]["broken"]
        check_comparable(first, second)

    def test_frames_are_kept_as_sums(self, sets, tmp_path):
        by = Protocol("fid", "", "frame_means", frames=2)
        first = evaluate.evaluate(*sets, by, cache=tmp_path)
        assert evaluate.evaluate(*sets, by, cache=tmp_path)["scores"] == first["scores"]

    @pytest.mark.parametrize("change", ["content", "protocol", "weights", "damage"])
    def test_anything_else_is_made_anew(self, sets, tmp_path, monkeypatch, change):
        cache = tmp_path / "cache"
        evaluate.evaluate(*sets, BY, cache=cache)
        by = BY
        if change == "content":
            np.save(sets[0]["00.npy"], np.full((7, 8, 10, 3), 9, np.uint8))
        elif change == "protocol":
            by = Protocol("fd_means_4f", "", "means", frames=4, limit=99, seed=1)
        elif change == "weights":
            monkeypatch.setattr(Means, "digest", "cd" * 32)
        else:
            (file,) = cache.iterdir()
            file.write_bytes(file.read_bytes()[:100])
        result = evaluate.evaluate(*sets, by, cache=cache)
        assert not result["real_from_cache"]
        assert result["scores"] == evaluate.evaluate(*sets, by)["scores"]


class TestPairs:
    def test_by_video_and_by_frame(self, tmp_path):
        real, fake = {}, {}
        (tmp_path / "r").mkdir()
        (tmp_path / "f").mkdir()
        for name, frames, gap in (("a", 20, 10), ("b", 4, 20)):
            true = np.full((frames, 12, 12, 3), 100, np.uint8)
            np.save(tmp_path / "r" / f"{name}.npy", true)
            np.save(tmp_path / "f" / f"{name}.npy", true + np.uint8(gap))
            real[f"{name}.npy"] = tmp_path / "r" / f"{name}.npy"
            fake[f"{name}.npy"] = tmp_path / "f" / f"{name}.npy"
        found = evaluate.evaluate(real, fake, "reconstruction")
        assert found["scores"]["l1"] == pytest.approx(15 / 255, rel=1e-5)
        assert found["counts"] == {"videos": 2}
        found = evaluate.evaluate(real, fake, "fomm_reconstruction")
        assert found["scores"]["l1"] == pytest.approx((20 * 10 + 4 * 20) / 24 / 255, rel=1e-5)
        assert found["scores"]["akd"] is None
        assert found["counts"] == {"frames": 24}
        np.save(fake["a.npy"], np.zeros((19, 12, 12, 3), np.uint8))
        found = evaluate.evaluate(real, fake, "reconstruction")
        assert found["sets"]["fake"]["broken"] == {
            "a.npy": "it has not as many frames as the real video"
        }
        with pytest.raises(evaluate.EvaluationError, match=r"1 of 2 real ones have no gen.* is b"):
            evaluate.evaluate(real, {"a.npy": fake["a.npy"]}, "reconstruction")

    def test_detections(self, tmp_path):
        clips = write_clips(tmp_path / "real", 1, 0, 2)
        truth = np.array([[[10.0, 20], [30, 40]], [[11, 19], [31, 39]]])
        np.savez(tmp_path / "real.npz", **{"00": truth, "detector": np.array("fan")})
        np.savez(tmp_path / "fake.npz", **{"00": truth + np.array([3, 1])})
        files = {"keypoints": (tmp_path / "fake.npz", tmp_path / "real.npz")}
        result = evaluate.evaluate(clips, clips, "fomm_reconstruction", detections=files)
        assert result["scores"]["akd"] == pytest.approx(2)
        assert (result["scores"]["mkr"], result["scores"]["aed"]) == (0, None)
        assert result["detectors"]["keypoints"]["real"]["detector"] == "fan"
        with pytest.raises(evaluate.EvaluationError, match="reconstruction uses no keypoints"):
            evaluate.evaluate(clips, clips, "reconstruction", detections=files)
        assert result["counts"]["keypoints_frames"] == 2
        np.savez(tmp_path / "other.npz", **{"00": truth + 5})
        better = evaluate.evaluate(
            clips, clips, "fomm_reconstruction",
            detections={"keypoints": (tmp_path / "other.npz", tmp_path / "real.npz")},
        )  # fmt: skip
        check_comparable(result, better)
        np.savez(tmp_path / "other.npz", **{"00": truth + 5, "detector": np.array("another")})
        worse = evaluate.evaluate(
            clips, clips, "fomm_reconstruction",
            detections={"keypoints": (tmp_path / "other.npz", tmp_path / "real.npz")},
        )  # fmt: skip
        with pytest.raises(ProtocolError, match=r"None.* and .*another"):
            check_comparable(result, worse)
        np.savez(tmp_path / "fake.npz", other=truth)
        with pytest.raises(evaluate.EvaluationError, match="keypoints: 1 clips have no detections"):
            evaluate.evaluate(clips, clips, "fomm_reconstruction", detections=files)
        np.savez(tmp_path / "real.npz", other=truth)
        with pytest.raises(
            evaluate.EvaluationError, match=r"real\.npz must have the 1 clips .* other is only"
        ):
            evaluate.evaluate(clips, clips, "fomm_reconstruction", detections=files)

    def test_wrong_detections_cost_no_embedding(self, sets, tmp_path):
        by = Protocol("fd", "", "means", frames=4, detections=("identity",))
        rows = {name[:-4]: np.ones((7, 3)) for name in sets[1]}
        np.savez(tmp_path / "fake.npz", **rows)
        np.savez(tmp_path / "real.npz", **rows)  # lacks two of the real ones
        files = {"identity": (tmp_path / "fake.npz", tmp_path / "real.npz")}
        with pytest.raises(
            evaluate.EvaluationError, match=r"the 13 clips of the real .* 11 is only"
        ):
            evaluate.evaluate(*sets, by, detections=files)
        assert Means.clips == 0
        for name in ("11.npy", "12.npy"):
            sets[0][name].write_bytes(b"broken")
        result = evaluate.evaluate(*sets, by, detections=files)
        assert list(result["scores"]) == ["fd", "aed", "csim", "missed"]
        assert result["scores"]["csim"] == pytest.approx(1)
        assert result["counts"]["identity_frames"] == 77

    def test_names(self, tmp_path):
        """A folder's dot is part of its name; two videos of one name are refused."""
        clips = write_clips(tmp_path / "real", 2, 0, 2)
        named = {"v.1": clips["00.npy"], "v.2": clips["01.npy"]}
        assert evaluate.evaluate(named, named, "reconstruction")["counts"] == {"videos": 2}
        twice = {"a.npy": clips["00.npy"], "a.mp4": clips["01.npy"]}
        with pytest.raises(
            evaluate.EvaluationError, match=r"generated videos a\.mp4 and a\.npy are"
        ):
            evaluate.evaluate({"a.npy": clips["00.npy"]}, twice, "reconstruction")


class TestProtocols:
    def test_windows(self):
        by = PROTOCOLS["fvd2048_128f_subsample8f"]
        assert (by.frames, by.stride, by.ddof, by.limit) == (16, 8, 0, 2048)
        assert by.indices("a", 127, "fake") is None
        assert by.indices("a", 128, "fake") == list(range(0, 128, 8))
        starts = {by.indices(str(i), 133, "real")[0] for i in range(200)}
        assert starts == set(range(6))
        assert by.indices("a", 500, "real") == by.indices("a", 500, "real")
        centre = PROTOCOLS["video_fid_resnext"]
        assert centre.indices("a", 40, "fake") == list(range(12, 28))
        assert centre.indices("a", 16, "real") == list(range(16))
        spread = PROTOCOLS["fid_frames"].indices("a", 4, "real")
        assert spread == [0] * 4 + [1] * 4 + [2] * 4 + [3] * 4

    def test_names(self):
        assert all(name == p.name for name, p in PROTOCOLS.items())
        assert all(
            p.features is None or p.features in protocols.NETWORKS for p in PROTOCOLS.values()
        )
        with pytest.raises(ProtocolError, match="no protocol fvd; there are fd_effnetlite0_16f, "):
            protocol("fvd")

    def test_only_like_results_are_compared(self, sets):
        result = evaluate.evaluate(*sets, BY)
        check_comparable(result, json.loads(json.dumps(result)))
        fewer = evaluate.evaluate(sets[0], dict(list(sets[1].items())[:9]), BY)
        with pytest.raises(ProtocolError, match=r"counts\.fake_clips: 11 and 9"):
            check_comparable(result, fewer)
        other = evaluate.evaluate(*sets, Protocol("fd_means_4f", "", "means", frames=5))
        with pytest.raises(ProtocolError, match=r"protocol\.frames: 4 and 5"):
            check_comparable(result, other)


def _share(rank, folder, sets, queue):
    import torch.distributed as dist

    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=3)
    try:
        for _ in range(2):
            queue.put((rank, evaluate.evaluate(*sets, BY, cache=folder / "cache")))
        few = [dict(list(clips.items())[:4]) for clips in sets]
        pairs = [{k: p for k, p in few[0].items() if k != "00.npy"}, few[1]]
        queue.put((rank, evaluate.evaluate(*pairs, "reconstruction")))
    finally:
        dist.destroy_process_group()


def test_three_processes_agree_with_one(sets, tmp_path):
    sets[0]["04.npy"].write_bytes(b"broken")
    few = [dict(list(clips.items())[:4]) for clips in sets]
    pairs = [{k: p for k, p in few[0].items() if k != "00.npy"}, few[1]]
    alone = evaluate.evaluate(*sets, BY), evaluate.evaluate(*pairs, "reconstruction")
    context = multiprocessing.get_context("fork")
    queue = context.Queue()
    workers = [
        context.Process(target=_share, args=(rank, tmp_path, sets, queue)) for rank in range(3)
    ]
    for worker in workers:
        worker.start()
    found = [queue.get(timeout=60) for _ in range(9)]
    for worker in workers:
        worker.join(30)
        assert worker.exitcode == 0
    for rank in range(3):
        mine = [result for r, result in found if r == rank]
        assert [r["real_from_cache"] for r in mine] == [False, True, False]
        for result, expected in zip(mine, (alone[0], alone[0], alone[1]), strict=True):
            assert result["scores"] == pytest.approx(expected["scores"], rel=1e-5)
            assert result["counts"] == expected["counts"]
            assert result["sets"]["real"]["broken"] == expected["sets"]["real"]["broken"]
        assert mine[0]["sets"] == alone[0]["sets"]


class TestCommand:
    @pytest.fixture
    def run(self, sets, tmp_path, monkeypatch):
        by = Protocol("fd_effnetlite0_16f", "of this test", "means", frames=4, limit=99)
        monkeypatch.setattr(protocols, "PROTOCOLS", {by.name: by})
        folders = ["--real", str(tmp_path / "real"), "--fake", str(tmp_path / "fake")]
        return lambda *more: commands.run(
            "evaluate", [*folders, "--device", "cpu", *more], "lmdvid"
        )

    def test_shows_stores_and_fails(self, run, sets, tmp_path, capsys):
        sets[0]["03.npy"].write_bytes(b"")
        file = tmp_path / "out" / "result.json"
        assert run("--output", str(file)) == 0
        shown = capsys.readouterr().out
        assert "12 real clips, 11 fake clips" in shown
        assert "1 real clips broken: 03.npy" in shown
        result = json.loads(file.read_text())
        score = result["scores"]["fd_effnetlite0_16f"]
        assert f"{score:.6g}" in shown
        assert run("--fail-above", str(score * 1.01), "--fail-above", "recall=1") == 0
        assert run("--fail-above", str(score * 0.99)) == 1
        assert "FAILED: fd_effnetlite0_16f is" in capsys.readouterr().out
        assert run("--against", str(file)) == 0
        assert "no real clip was decoded" in capsys.readouterr().out
        sets[1]["00.npy"].unlink()
        with pytest.raises(ProtocolError, match="fake_clips: 11 and 10"):
            run("--against", str(file))
        assert run("--fail-below", "recall=0", "--fail-below", "-1") == 0
        assert run("--fail-below", "precision=1.1") == 1
        assert "FAILED: precision is" in capsys.readouterr().out

    def test_refuses(self, run, tmp_path, capsys):
        for line, message in (
            (["--fail-above", "low"], "expected a number such as 120"),
            (["--batch-size", "0"], "argument --batch-size: must be 1 or more"),
        ):
            with pytest.raises(SystemExit):
                run(*line)
            assert message in capsys.readouterr().err
        (tmp_path / "empty").mkdir()
        with pytest.raises(UsageError, match="empty holds no clip"):
            run("--fake", str(tmp_path / "empty"))
        (tmp_path / "r.json").write_text("[]")
        with pytest.raises(UsageError, match="is no result of lmdvid evaluate"):
            run("--against", str(tmp_path / "r.json"))

    def test_logs_to_wandb(self, run, tmp_path, monkeypatch):
        said = []

        class Logger:  # lmdvid's own is tested beside it
            def __init__(self, **options):
                said.append(("options", options))
                self.experiment = self

            def log_hyperparams(self, values):
                said.append(("hyperparams", values))

            def log_metrics(self, values):
                said.append(("metrics", values))

            def finish(self):
                said.append(("finish", None))

        monkeypatch.setattr(loggers, "WandbLogger", Logger)
        file = tmp_path / "result.json"
        assert run("--output", str(file), "--wandb", "faces") == 0
        result = json.loads(file.read_text())
        assert [kind for kind, _ in said] == ["options", "hyperparams", "metrics", "finish"]
        assert said[0][1]["project"] == "faces"
        assert said[0][1]["name"] == "fd_effnetlite0_16f"
        assert said[1][1]["protocol"] == result["protocol"]
        assert said[2][1] == result["scores"]

    @pytest.mark.parametrize(("limit", "code"), [("1e9", 0), ("-1", 1)])
    def test_exit_code_of_the_program(self, sets, tmp_path, capsys, limit, code):
        command = ["evaluate", "--protocol", "reconstruction", "--device", "cpu"]
        command += ["--real", str(tmp_path / "fake"), "--fake", str(tmp_path / "real")]
        assert cli.main([*command, "--fail-above", f"l1={limit}"]) == code
        assert ("FAILED: l1 is" in capsys.readouterr().out) == bool(code)

    def test_a_mistaken_limit_or_comparison_costs_no_result(self, run, sets, tmp_path, capsys):
        file = tmp_path / "result.json"
        for option in ("--fail-above", "--fail-below"):
            with pytest.raises(UsageError, match=r"no score fvd: fd_eff.* has fd_eff.*, kvd, prec"):
                run(option, "fvd=3")
        assert Means.clips == 0  # before anything was embedded
        assert run("--output", str(file)) == 0
        result = json.loads(file.read_text())
        assert result["counts"] == {"real_clips": 13, "fake_clips": 11}
        result["protocol"]["frames"] = 5
        file.write_text(json.dumps(result))
        before = Means.clips
        with pytest.raises(ProtocolError, match=r"protocol\.frames: 5 and 4"):
            run("--against", str(file))
        assert Means.clips == before
        file.write_text(json.dumps({"scores": {}, "protocols": []}))
        with pytest.raises(UsageError, match="is of lightning test, whose videos never were files"):
            run("--against", str(file))

    def test_lists_protocols(self, capsys):
        assert commands.run("evaluate", ["--list"], "lmdvid") == 0
        assert "fvd2048_16f " in capsys.readouterr().out

    def test_weights(self, capsys, tmp_path, monkeypatch):
        monkeypatch.setenv("LMDVID_WEIGHTS", str(tmp_path))
        assert commands.run("weights", ["--check"], "lmdvid") == 0
        shown = capsys.readouterr().out
        assert "intact, SHA-256 579344248a93" in shown
        assert shown.count("\n  absent") == 7
        (tmp_path / "i3d_torchscript.pt").write_bytes(b"a web page")
        assert commands.run("weights", ["--check"], "lmdvid") == 1
        assert "WRONG: " in capsys.readouterr().out
