"""Scores of `lightning test`: what is stored, and what a probe reads off puppets."""

import json
import math

import lightning as L
import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from data_modules import puppetry
from data_modules.puppets import Puppets
from lmdvid.callbacks import ProbeScores, SampleVideos, ScoresError, StoreScores
from lmdvid.evaluate import evaluate
from lmdvid.metrics import protocols
from lmdvid.metrics.detections import DetectionsError
from lmdvid.metrics.probe import PictureProbe, ProbeError, leakage
from lmdvid.metrics.protocols import Protocol, ProtocolError, check_comparable
from lmdvid.networks import WeightsError
from lmdvid.networks.features import VideoFeatures, published
from lmdvid.video import to_uint8

SIZE, FRAMES, STRANGERS = 32, 6, 1000


def puppet(seed: int, poses=None) -> dict:
    """A clip of a puppet as a data module gives it to training."""
    who = puppetry.identity(seed, "head")
    path = puppetry.pose_path(seed, 60, "head")[:: 60 // FRAMES] if poses is None else poses
    video = puppetry.render(who, path, SIZE, "head")
    return {"video": torch.from_numpy(video), "key": str(seed), "pose": torch.from_numpy(path),
            "identity": torch.from_numpy(who)}  # fmt: skip


def as_float(video):
    return video.movedim(-1, -3) / 127.5 - 1


@pytest.fixture(scope="module")
def training():
    return [puppet(seed) for seed in range(50)]


@pytest.fixture(scope="module")
def testing():
    clips = [puppet(STRANGERS + seed) for seed in range(6)]
    samples = []
    for index, clip in enumerate(clips):
        driver = clips[(index + 1) % len(clips)]
        truth = puppet(STRANGERS + index, driver["pose"].numpy())["video"]
        samples.append(
            {
                **clip,
                "video": as_float(clip["video"]),
                "cross_driving": as_float(driver["video"]),
                "cross_truth": as_float(truth),
            }
        )
    return samples


class Data(L.LightningDataModule):
    def __init__(self, training, testing):
        super().__init__()
        self.sets = training, testing

    def train_dataloader(self):
        return DataLoader(self.sets[0], batch_size=4)

    def test_dataloader(self):
        return DataLoader(self.sets[1], batch_size=2)


class Task(L.LightningModule):
    """An animation that shows one of the clips it is given."""

    def __init__(self, shows: str):
        super().__init__()
        self.shows = shows
        self.weight = torch.nn.Parameter(torch.zeros(1))

    def test_step(self, batch, batch_idx):
        weight = len(batch["video"]) * self.trainer.world_size  # as tasks do
        self.log("test/constant", 3.0, batch_size=weight, sync_dist=True)
        self.log("test/mean", batch["video"].mean(), batch_size=weight, sync_dist=True)
        source = batch["video"][:, 0]
        panels = {
            "source": source,
            "driving": batch["cross_driving"],
            "truth": batch["cross_truth"],
            "still": source[:, None].expand_as(batch["video"]),
        }
        panels["result"] = panels[self.shows]
        compared = {"own": (panels["still"], batch["video"])}
        compared["other"] = (panels["result"], batch["video"])
        return {**panels, "compared": compared}


def run(task, data, tmp_path, *callbacks):
    trainer = L.Trainer(
        accelerator="cpu", logger=False, callbacks=[*callbacks], enable_progress_bar=False,
        enable_model_summary=False, default_root_dir=tmp_path, barebones=False,
    )  # fmt: skip
    (scores,) = trainer.test(task, data, verbose=False)
    return {name.removeprefix("test/"): value for name, value in scores.items()}


def test_probe_tells_pose_and_identity(training, testing, tmp_path, capsys):
    data = Data(training, testing)
    path = tmp_path / "scores.json"
    perfect = run(Task("truth"), data, tmp_path, ProbeScores(300), StoreScores(str(path)))
    assert perfect["pose_error"] == perfect["identity_leak"] == 0
    assert perfect["pose_coordinates"] >= 3
    assert perfect["identity_coordinates"] >= 2
    # What the probe itself gets wrong is well below what standing still does.
    assert perfect["probe_pose_error"] < 0.75 * perfect["still_pose_error"]
    stored = json.loads(path.read_text())
    assert stored["scores"] == pytest.approx(perfect)
    assert stored["clips"] == 6
    assert f"wrote {path}" in capsys.readouterr().out

    wrong = run(Task("driving"), data, tmp_path, ProbeScores(300))
    assert wrong["identity_leak"] == pytest.approx(1)
    still = run(Task("still"), data, tmp_path, ProbeScores(300))
    assert still["pose_error"] == pytest.approx(still["still_pose_error"])
    assert abs(still["identity_leak"]) < 0.25
    assert wrong["pose_error"] < still["pose_error"]


class Means(VideoFeatures):
    """Mean colour of every frame: quick."""

    dim = 3
    per_frame = True
    resize = "none"
    digest = "ab" * 32

    def __init__(self, weights=None):
        super().__init__()

    def embed(self, video):
        return video.flatten(0, 1).mean((2, 3))


class ClipMeans(Means):
    dim = 6
    per_frame = False

    def embed(self, video):
        colour = video.mean((1, 3, 4))
        return torch.cat([colour, video.diff(dim=1).abs().mean((1, 3, 4))], dim=1)


class Missing(Means):
    def __init__(self, weights=None):
        published.I3D.load(weights)


@pytest.fixture
def quick(monkeypatch):
    """Protocols of networks that need no time, or a file that is not there."""
    monkeypatch.delenv("LMDVID_WEIGHTS", raising=False)
    for name, network in (("means", Means), ("clip_means", ClipMeans), ("missing", Missing)):
        monkeypatch.setitem(protocols.NETWORKS, name, network)
    found = [
        Protocol("frames", "", "means", frames=4, real_window="spread", fake_window="spread"),
        Protocol("clips", "", "clip_means", frames=3, limit=5),
        Protocol("cross", "", "means", frames=2, motion="other", detections=("identity",)),
        Protocol("absent", "", "missing"),
        protocols.PROTOCOLS["reconstruction"],
        protocols.PROTOCOLS["fomm_reconstruction"],
    ]
    monkeypatch.setattr(protocols, "PROTOCOLS", {p.name: p for p in found})


def as_folder(folder, videos):
    """The videos as arrays on disk, for the other way to score them."""
    folder.mkdir()
    clips = {}
    for name, video in videos.items():
        np.save(folder / f"{name}.npy", to_uint8(video).numpy())
        clips[f"{name}.npy"] = folder / f"{name}.npy"
    return clips


def same_scores(a: dict, b: dict) -> bool:
    values = [{k: math.nan if v is None else v for k, v in r["scores"].items()} for r in (a, b)]
    return values[0] == pytest.approx(values[1], rel=1e-4, abs=1e-9, nan_ok=True)


def test_protocols_give_what_evaluating_folders_gives(testing, tmp_path, quick):
    named = [{**clip, "key": f"{index}.npy"} for index, clip in enumerate(testing)]
    store = StoreScores(str(tmp_path / "s.json"), ["reconstruction", "frames", "clips", "cross"])
    scores = run(Task("driving"), Data([], named), tmp_path, store)
    real = as_folder(tmp_path / "real", {c["key"][:-4]: c["video"] for c in named})
    still = {c["key"][:-4]: c["video"][:1].expand_as(c["video"]) for c in named}
    still = as_folder(tmp_path / "still", still)
    driving = as_folder(tmp_path / "driving", {c["key"][:-4]: c["cross_driving"] for c in named})
    stored = json.loads((tmp_path / "s.json").read_text())
    results = {result["protocol"]["name"]: result for result in stored["protocols"]}
    for name, fake in (("reconstruction", still), ("frames", still), ("cross", driving)):
        expected = evaluate(real, fake, name)
        assert same_scores(results[name], expected)
        assert results[name]["counts"] == expected["counts"]
        for part in ("protocol", "network", "weights", "detectors", "bias"):
            assert results[name][part] == expected[part]
    expected = evaluate(real, still, "clips")
    assert expected["counts"] == results["clips"]["counts"] == {"real_clips": 5, "fake_clips": 5}
    assert same_scores(results["clips"], expected)
    # The table and the file agree, and a score that nothing was measured for is in neither.
    assert scores["reconstruction_l1"] == pytest.approx(results["reconstruction"]["scores"]["l1"])
    assert scores["cross"] == pytest.approx(results["cross"]["scores"]["cross"], rel=1e-5)
    assert results["cross"]["scores"]["csim"] is None
    assert "cross_csim" not in scores
    assert stored["scores"] == pytest.approx(scores)
    assert stored["clips"] == 6
    given = {
        name: results["clips"][name] for name in ("split", "codec", "size_given", "frames_given")
    }
    assert given == {"split": "test", "codec": "none: generated frames are compared as they are",
                     "size_given": ["32 x 32"], "frames_given": [FRAMES, FRAMES]}  # fmt: skip
    with pytest.raises(ProtocolError, match=r"real_content: .* frames_given: "):
        check_comparable(results["clips"], expected)
    check_comparable(results["clips"], json.loads(json.dumps(results["clips"])))


def test_installed_detectors_are_asked(testing, tmp_path, monkeypatch, quick):
    (tmp_path / "my_faces.py").write_text(
        "import numpy as np\n"
        "def embed(frames):\n"
        "    found = frames[:, 16:, 8:24].mean((1, 2)) / 255\n"
        "    found[-1] = np.nan if len(found) > 1 else found[-1]\n"
        "    return found\n"
        "def points(frames):\n"
        "    return np.stack([frames[:, 16, 8:10, 0], frames[:, 16, 8:10, 1]], -1)\n"
        "def scalar(frames):\n"
        "    return 3\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    named = [{**clip, "key": str(index)} for index, clip in enumerate(testing)]
    path = str(tmp_path / "scores.json")
    detectors = {"identity": "my_faces.embed", "keypoints": "my_faces.points"}
    store = StoreScores(path, ["cross", "fomm_reconstruction"], detectors=detectors)
    scores = run(Task("driving"), Data([], named), tmp_path, store)
    cosines = []
    for clip in named:
        made, source = (
            to_uint8(v).numpy()[:, 16:, 8:24].mean((1, 2)) / 255
            for v in (clip["cross_driving"], clip["video"][:1])
        )
        # The last frame of a video, not of the source picture, has no face.
        pairs = made[:-1], np.repeat(source, FRAMES - 1, 0)
        norms = [np.linalg.norm(x, axis=1) for x in pairs]
        cosines += ((pairs[0] * pairs[1]).sum(1) / norms[0] / norms[1]).tolist()
    assert scores["cross_csim"] == pytest.approx(np.mean(cosines), rel=1e-4)
    assert scores["cross_missed"] == pytest.approx(1 / FRAMES)
    assert scores["fomm_reconstruction_akd"] > 0
    stored = json.loads((tmp_path / "scores.json").read_text())
    assert stored["protocols"][0]["detectors"] == {"identity": {"detector": "my_faces.embed"}}
    with pytest.raises(DetectionsError, match=r"gives \(\) of 6 frames"):
        run(Task("driving"), Data([], named), tmp_path,
            StoreScores(path, ["cross"], detectors={"identity": "my_faces.scalar"}))  # fmt: skip
    with pytest.raises(DetectionsError, match="no_such: No module named"):
        run(Task("driving"), Data([], named), tmp_path,
            StoreScores(path, ["cross"], detectors={"identity": "nowhere.no_such"}))  # fmt: skip
    with pytest.raises(DetectionsError, match="no detector of keypoints, but of identity"):
        StoreScores(protocols=["cross"], detectors={"keypoints": "no.such"})


def test_nothing_found_costs_only_its_own_scores(testing, tmp_path, monkeypatch, quick):
    (tmp_path / "blind.py").write_text(
        "import numpy as np\ndef embed(frames):\n    return np.full((len(frames), 3), np.nan)\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    named = [{**clip, "key": str(index)} for index, clip in enumerate(testing)]
    path = tmp_path / "scores.json"
    store = StoreScores(str(path), ["cross"], detectors={"identity": "blind.embed"})
    with pytest.raises(ScoresError, match=r"no aed, csim, missed: Identity.* no frame has a face"):
        run(Task("driving"), Data([], named), tmp_path, store)
    (result,) = json.loads(path.read_text())["protocols"]
    assert result["scores"]["cross"] > 0
    assert result["scores"]["csim"] is None
    store = StoreScores(str(path), published=["cross"], detectors={"identity": "blind.embed"})
    run(Task("driving"), Data([], named), tmp_path, store)  # may be left out
    assert "no frame has a face" in json.loads(path.read_text())["left_out"]["cross"]


def test_limits_fail_the_test_after_storing(testing, tmp_path, quick):
    class Endless(Task):
        def test_step(self, batch, batch_idx):
            self.log("test/endless", math.inf, batch_size=2)
            return super().test_step(batch, batch_idx)

    named = [{**clip, "key": str(index)} for index, clip in enumerate(testing)]
    path = tmp_path / "scores.json"
    limits = {"fail_above": {"constant": 3.5}, "fail_below": {"reconstruction_psnr": 1.0}}
    run(
        Endless("still"),
        Data([], named),
        tmp_path,
        StoreScores(str(path), ["reconstruction"], **limits),
    )
    stored = path.read_text()
    assert json.loads(stored)["scores"]["endless"] is None
    assert "Infinity" not in stored
    path.unlink()
    limits = {
        "fail_above": {"constant": 2.5, "nosuch": 1},
        "fail_below": {"reconstruction_ssim": 2},
    }
    with pytest.raises(ScoresError) as failed:
        run(
            Task("still"),
            Data([], named),
            tmp_path,
            StoreScores(str(path), ["reconstruction"], **limits),
        )
    for line in ("constant is 3, the highest value allowed is 2.5", "there is no score nosuch",
                 "the lowest value allowed is 2"):  # fmt: skip
        assert line in str(failed.value)
    assert json.loads(path.read_text())["scores"]["constant"] == 3


def test_panels_of_a_test_are_kept_only_to_be_written(testing, tmp_path):
    samples = SampleVideos()
    kept = []

    class Kept(L.Callback):
        def on_test_epoch_end(self, trainer, module):
            kept.append(len(samples._rows))

    run(Task("still"), Data([], testing), tmp_path, Kept(), samples)
    assert kept == [0]


def test_missing_weights_are_named_or_refused_early(testing, tmp_path, capsys, quick, monkeypatch):
    class Untouched(Task):
        def test_step(self, batch, batch_idx):
            raise AssertionError("nothing is generated")

    with pytest.raises(WeightsError, match=r"i3d_pretrained_400\.pt: no path given and LMDVID_W"):
        run(Untouched("still"), Data([], testing), tmp_path, StoreScores(protocols=["absent"]))
    path = tmp_path / "scores.json"
    store = StoreScores(str(path), ["reconstruction"], published=["absent", "frames"])
    named = [{**clip, "key": str(index)} for index, clip in enumerate(testing)]
    scores = run(Task("still"), Data([], named), tmp_path, store)
    assert {"reconstruction_l1", "frames"} <= set(scores)
    assert "left out, without their weights: absent (`lmdvid weights`" in capsys.readouterr().out
    assert "i3d_pretrained_400.pt" in json.loads(path.read_text())["left_out"]["absent"]
    # A file that is there, but is another one, is no reason to go on without it.
    (tmp_path / "i3d_pretrained_400.pt").write_bytes(b"a web page")
    monkeypatch.setenv("LMDVID_WEIGHTS", str(tmp_path))
    with pytest.raises(WeightsError, match="is not the published file"):
        run(Untouched("still"), Data([], testing), tmp_path, StoreScores(published=["absent"]))


def test_what_cannot_be_compared(testing, tmp_path, quick):
    with pytest.raises(ProtocolError, match="no protocol fvd; there are frames, "):
        StoreScores(protocols=["fvd"])

    class Noise(Task):
        def test_step(self, batch, batch_idx):
            return {"compared": {"noise": (batch["video"], batch["video"])}}

    named = [{**clip, "key": str(index)} for index, clip in enumerate(testing)]
    for name, message in (
        ("reconstruction", "videos of the kind own, but Noise gives noise; leave the protocol out"),
        ("cross", "the kind other, but Noise gives noise; leave the protocol out"),
    ):
        with pytest.raises(ProtocolError, match=message):
            run(Noise("still"), Data([], named), tmp_path, StoreScores(protocols=[name]))

    class Untouched(Task):
        def test_step(self, batch, batch_idx):
            raise AssertionError("nothing is generated")

    alone = [{k: v for k, v in clip.items() if k != "cross_driving"} for clip in named]
    with pytest.raises(ProtocolError, match=r"cross compares .* set data.init_args.cross true"):
        run(Untouched("still"), Data([], alone), tmp_path, StoreScores(protocols=["cross"]))
    path = tmp_path / "scores.json"
    with pytest.raises(ScoresError, match="at least 4 of each are needed"):
        run(Noise("still"), Data([], named[:2]), tmp_path, StoreScores(str(path), ["clips"]))
    assert "at least 4 of each are needed" in json.loads(path.read_text())["left_out"]["clips"]


class OneThread(L.Callback):
    """A forked process hangs in the threads that its parent had."""

    def setup(self, trainer, pl_module, stage):
        torch.set_num_threads(1)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*multi-threaded, use of fork:DeprecationWarning")
@pytest.mark.filterwarnings("ignore:.*does not have many workers.*")
def test_two_processes_score_as_one(tmp_path, quick):
    """Five clips by two processes: each once, with probes that have learnt the same."""
    threads = torch.get_num_threads()
    for devices, strategy in ((1, "auto"), (2, "ddp_fork")):
        data = Puppets(
            str(tmp_path), size=32, train_identities=110, test_identities=5, clip_frames=12,
            batch_size=2, frames=6, eval_frames=6, backend="pyav",
        )  # fmt: skip
        file = tmp_path / f"{devices}.json"
        store = StoreScores(str(file), ["reconstruction", "frames", "clips"])
        trainer = L.Trainer(
            accelerator="cpu", devices=devices, strategy=strategy, logger=False,
            callbacks=[OneThread(), ProbeScores(600), store], enable_progress_bar=False,
            enable_model_summary=False,
        )  # fmt: skip
        trainer.test(Task("driving"), data, verbose=False)
    torch.set_num_threads(threads)
    one, two = (json.loads((tmp_path / f"{n}.json").read_text()) for n in (1, 2))
    assert two["clips"] == one["clips"] == 5
    wanted = {"pose_error", "identity_leak", "clips", "frames", "reconstruction_l1"}
    assert wanted <= set(one["scores"])
    assert two["scores"] == pytest.approx(one["scores"], rel=1e-3, abs=1e-5)
    for a, b in zip(one["protocols"], two["protocols"], strict=True):
        check_comparable(a, b)


def test_probe_needs_what_is_known(testing, tmp_path):
    unknown = [{"video": testing[0]["video"]}]
    with pytest.raises(ProbeError, match="needs identity and pose in every batch"):
        run(Task("truth"), Data(unknown, testing), tmp_path, ProbeScores())


def test_probe_that_can_read_nothing(training, testing, tmp_path):
    generator = torch.Generator().manual_seed(0)
    noise = [{**c, "pose": torch.randn(c["pose"].shape, generator=generator)} for c in training[:8]]
    with pytest.raises(ProbeError, match="of 8 identities are too few to read any pose"):
        run(Task("truth"), Data(noise, testing), tmp_path, ProbeScores())


def test_probe_finds_what_is_linear():
    torch.manual_seed(0)
    probe = PictureProbe()
    features = torch.randn(200, 30, dtype=torch.float64)
    targets = torch.cat([5 + 2 * features[:, :2], torch.randn(200, 1)], 1)
    probe.fit(features, targets, torch.arange(200) // 2)
    assert probe.readable.tolist() == [True, True, False]
    predicted = probe._predict(features)[:, probe.readable]
    torch.testing.assert_close(predicted, probe.normalise(targets), atol=0.1, rtol=0)
    with pytest.raises(ProbeError, match="4 groups of pictures or more, not 3"):
        probe.fit(features, targets, torch.arange(200) % 3)


def test_leakage_is_the_share_of_the_way():
    own, other = torch.randn(5, 4), torch.randn(5, 4)
    for share in (0.0, 0.3, 1.0):
        total, weight = leakage(own + share * (other - own), own, other)
        assert (total / weight).item() == pytest.approx(share, abs=1e-6)
