"""Scores of `lightning test`: what is stored, and what a probe reads off puppets."""

import json

import lightning as L
import pytest
import torch
from torch.utils.data import DataLoader

from data_modules import puppetry
from lmdvid.callbacks import ProbeScores, StoreScores
from lmdvid.metrics.probe import PictureProbe, leakage

SIZE, FRAMES, STRANGERS = 32, 6, 1000


def puppet(seed: int, poses=None) -> dict:
    """A clip of a puppet as a data module gives it to training."""
    who = puppetry.identity(seed, "head")
    path = puppetry.pose_path(seed, 60, "head")[:: 60 // FRAMES] if poses is None else poses
    video = puppetry.render(who, path, SIZE, "head")
    return {"video": torch.from_numpy(video), "pose": torch.from_numpy(path),
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
        self.log("test/constant", 3.0, batch_size=len(batch["video"]))
        source = batch["video"][:, 0]
        panels = {
            "source": source,
            "driving": batch["cross_driving"],
            "truth": batch["cross_truth"],
            "still": source[:, None].expand_as(batch["video"]),
        }
        return {**panels, "result": panels[self.shows]}


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


def test_file_adds_the_scores_of_a_protocol(testing, tmp_path):
    path = tmp_path / "out" / "scores.json"
    store = StoreScores(str(path), protocol="reconstruction")
    scores = run(Task("still"), Data([], testing), tmp_path, store)
    expected = torch.stack(
        [(c["video"][:1] - c["cross_truth"]).abs().mean() / 2 for c in testing]
    ).mean()
    assert scores["reconstruction_l1"] == pytest.approx(expected.item(), rel=1e-5)
    stored = json.loads(path.read_text())
    assert stored["protocol"]["pixels"] == "video"
    assert stored["scores"]["constant"] == 3
    with pytest.raises(ValueError, match="fvd2048_16f does not compare videos with the truth"):
        run(Task("still"), Data([], testing), tmp_path, StoreScores(protocol="fvd2048_16f"))


def test_probe_needs_what_is_known(testing, tmp_path):
    unknown = [{"video": testing[0]["video"]}]
    with pytest.raises(ValueError, match="needs identity and pose in every batch"):
        run(Task("truth"), Data(unknown, testing), tmp_path, ProbeScores())


def test_probe_that_can_read_nothing(training, testing, tmp_path):
    generator = torch.Generator().manual_seed(0)
    noise = [{**c, "pose": torch.randn(c["pose"].shape, generator=generator)} for c in training[:8]]
    with pytest.raises(ValueError, match="of 8 identities are too few to read any pose"):
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
    with pytest.raises(ValueError, match="4 groups of pictures or more, not 3"):
        probe.fit(features, targets, torch.arange(200) % 3)


def test_leakage_is_the_share_of_the_way():
    own, other = torch.randn(5, 4), torch.randn(5, 4)
    for share in (0.0, 0.3, 1.0):
        total, weight = leakage(own + share * (other - own), own, other)
        assert (total / weight).item() == pytest.approx(share, abs=1e-6)
