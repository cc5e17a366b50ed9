"""How the tasks train: one step by hand, step counting, precision, resuming, scoring, sampling."""

import math
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import lightning as L
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.strategies import FSDPStrategy
from torch.utils.data import DataLoader, Dataset
from torchmetrics.functional.image import structural_similarity_index_measure

from lmdvid import losses
from lmdvid.callbacks import PredictionVideos, SampleVideos, moments, stack
from lmdvid.networks.layers import ImageDiscriminator
from lmdvid.networks.lia import Generator
from lmdvid.tasks.adversarial import (
    NonFiniteLossError,
    PrecisionError,
    PredictionError,
    StrategyError,
)
from lmdvid.tasks.animation import reconstruction_scores
from lmdvid.tasks.lia import LIA
from lmdvid.video import probe, read_clip

SMALL = {"size": 32, "dim": 16, "directions": 3, "width": 0.02, "perceptual": "none"}


class Squares(Dataset):
    """Clips of a bright square that moves; deterministic."""

    def __init__(self, clips: int = 8, frames: int = 2, cross: bool = False, bad: bool = False):
        self.clips, self.frames, self.cross, self.bad = clips, frames, cross, bad

    def __len__(self):
        return self.clips

    def __getitem__(self, index):
        def clip(shade):
            video = torch.full((self.frames, 3, 32, 32), -0.5)
            for t in range(self.frames):
                left = (5 * index + 3 * t) % 20
                video[t, :, 8:20, left : left + 12] = shade
            return video

        item = {"video": clip(0.7), "key": f"clip{index}", "frames": torch.arange(self.frames)}
        if self.cross:
            item |= {"cross_driving": clip(0.2), "cross_truth": clip(0.7), "cross_key": "other"}
        if self.bad and index == 5:
            item["video"][1] = math.nan
        return item


class Data(L.LightningDataModule):
    def __init__(self, **options):
        super().__init__()
        self.options = options

    def train_dataloader(self):
        return DataLoader(Squares(**self.options), batch_size=4)

    def val_dataloader(self):
        return DataLoader(Squares(3, 5, cross=True), batch_size=2)

    test_dataloader = val_dataloader

    def predict_dataloader(self):
        item = Squares(1, 5)[0]
        pair = {"source": item["video"][0], "driving": item["video"], "key": "a"}
        return DataLoader([pair], batch_size=1)


def trainer(folder, **options) -> L.Trainer:
    defaults = {
        "accelerator": "cpu",
        "devices": 1,
        "default_root_dir": folder,
        "logger": CSVLogger(folder, name="run"),
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "log_every_n_steps": 1,
        "num_sanity_val_steps": 0,
    }
    return L.Trainer(**{**defaults, **options})


pytestmark = [
    pytest.mark.filterwarnings("ignore:The dirpath has changed"),
    pytest.mark.filterwarnings("ignore:.*does not have many workers.*"),
    pytest.mark.filterwarnings("ignore:.*module.* in eval mode.*"),
    pytest.mark.filterwarnings("ignore:.*only imitates bf16.*"),
]


def test_optimisers_are_the_originals():
    generator, discriminator = LIA(**SMALL).configure_optimizers()
    assert generator.defaults["lr"] == pytest.approx(0.0016)
    assert generator.defaults["betas"] == pytest.approx((0.0, 0.9919919678228657))
    assert discriminator.defaults["lr"] == pytest.approx(0.0018823529411764706)
    assert discriminator.defaults["betas"] == pytest.approx((0.0, 0.9905854573074332))
    assert isinstance(generator.defaults["betas"][0], float)


@pytest.mark.parametrize("r1", [0.0, 10.0])
def test_a_step_equals_one_written_plainly(tmp_path, r1):
    """Generator first; then the discriminator on the same, detached picture."""
    task = LIA(**SMALL, r1=r1, sparsity=0.1, discriminator_every=16)
    arguments = dict(SMALL)
    arguments.pop("perceptual")
    generator = Generator(**arguments)
    discriminator = ImageDiscriminator(32, SMALL["width"])
    generator.load_state_dict(task.generator.state_dict())
    discriminator.load_state_dict(task.discriminator.state_dict())
    trainer(tmp_path, max_steps=1, limit_val_batches=0).fit(task, Data())

    batch = next(iter(Data().train_dataloader()))["video"]
    source, target = batch[:, 0], batch[:, 1]
    adam_g = torch.optim.Adam(generator.parameters(), 0.0016, betas=(0.0, 0.99**0.8))
    adam_d = torch.optim.Adam(
        discriminator.parameters(), 0.002 * 16 / 17, betas=(0.0, 0.99 ** (16 / 17))
    )
    picture, alpha = generator(source, target)
    fooled = torch.log1p(torch.exp(-discriminator(picture))).mean()
    ((picture - target).abs().mean() + fooled + 0.1 * alpha.abs().mean()).backward()
    adam_g.step()
    adam_d.zero_grad()
    real = target.clone().requires_grad_()
    real_logits = discriminator(real)
    loss = torch.log1p(torch.exp(-real_logits)).mean()
    loss = loss + torch.log1p(torch.exp(discriminator(picture.detach()))).mean()
    if r1:
        gradient = torch.autograd.grad(real_logits.sum(), real, create_graph=True)[0]
        loss = loss + 16 * r1 / 2 * gradient.square().sum(dim=(1, 2, 3)).mean()
    loss.backward()
    adam_d.step()
    for ours, plain in [(task.generator, generator), (task.discriminator, discriminator)]:
        for name, value in ours.state_dict().items():
            torch.testing.assert_close(value, plain.state_dict()[name], atol=2e-4, rtol=1e-3)


def test_backward_of_the_navigator_is_exact_under_autocast(tmp_path):
    """bf16-mixed: the basis' gradient equals the one computed outside autocast."""
    task = LIA(**{**SMALL, "dim": 64})
    gradients = {}
    for precision in ("32-true", "bf16-mixed"):
        run = trainer(tmp_path, precision=precision, max_steps=1, limit_val_batches=0)

        class Probe(LIA):
            def generator_step(self, batch):
                w = self.generator.navigator(torch.ones(4, 64), batch["video"][:, 0, :, 0, 0])
                fake = w.sum() * 0 + batch["video"][:, 1] * self.generator.encoder.code.weight.sum()
                return {"probe": (w * torch.arange(64.0)).square().mean()}, fake, fake.detach()

        probe = Probe(**{**SMALL, "dim": 64}, adversarial=0.0)
        probe.load_state_dict(task.state_dict())
        run.fit(probe, Data(clips=4))
        gradients[precision] = probe.generator.navigator.weight.grad
    torch.testing.assert_close(gradients["bf16-mixed"], gradients["32-true"], rtol=1e-4, atol=1e-4)


def test_lazy_r1_counts_steps_across_epochs(tmp_path, monkeypatch):
    calls = []

    def penalty(images, logits, gamma):
        calls.append(gamma)
        return logits.sum() * 0

    monkeypatch.setattr(losses, "r1_penalty", penalty)
    task = LIA(**SMALL, r1=10.0, discriminator_every=16)
    trainer(tmp_path, max_epochs=9, limit_val_batches=0).fit(task, Data())  # 2 batches an epoch
    assert len(calls) == 2


def test_svd_signs_follow_training(tmp_path):
    task = LIA(**SMALL, orthogonal="svd", lr=0.05)
    before = task.generator.navigator.signs.clone()
    trainer(tmp_path, max_steps=4, limit_val_batches=0).fit(task, Data())
    navigator = task.generator.navigator
    assert not torch.equal(navigator.signs, before)
    torch.testing.assert_close(navigator.signs, navigator.basis().detach().T)


@pytest.mark.slow
def test_two_processes_train_with_identical_weights(tmp_path):
    """Both networks and the average, on two gloo processes; each sees other clips."""
    script = tmp_path / "two.py"
    script.write_text(TWO_PROCESSES.format(tests=str(Path(__file__).parent), folder=str(tmp_path)))
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, str(script)], env=environment, capture_output=True, text=True, timeout=240
    )
    assert done.returncode == 0, done.stderr[-3000:]
    first, second = (torch.load(tmp_path / f"rank{i}.pt") for i in range(2))
    assert first["step"] == 3
    assert first["clips"] != second["clips"]
    for name, value in first["state"].items():
        assert torch.equal(value, second["state"][name]), name


TWO_PROCESSES = """
import sys

import torch

sys.path.insert(0, {tests!r})
import test_tasks as t


class Recorder(t.LIA):
    clips = []

    def training_step(self, batch, batch_idx):
        self.clips = [*self.clips, *batch["key"]]
        super().training_step(batch, batch_idx)


t.L.seed_everything(3, verbose=False)
task = Recorder(**t.SMALL, r1=1.0, discriminator_every=2)
strategy = "ddp_find_unused_parameters_true"
run = t.trainer({folder!r}, devices=2, strategy=strategy, max_steps=3, limit_val_batches=0)
run.fit(task, t.Data(clips=24))
content = {{"state": task.state_dict(), "step": run.global_step, "clips": task.clips}}
torch.save(content, {folder!r} + f"/rank{{run.global_rank}}.pt")
"""


def test_one_global_step_per_batch(tmp_path):
    checkpoints = ModelCheckpoint(
        tmp_path / "checkpoints", "{step}", every_n_train_steps=2, save_top_k=-1
    )
    task = LIA(**SMALL)
    run = trainer(tmp_path, max_steps=5, callbacks=[checkpoints], limit_val_batches=0)
    run.fit(task, Data(clips=16))
    assert run.global_step == 5
    assert task.generator_ema.n_updates == 5
    names = sorted(p.name for p in (tmp_path / "checkpoints").iterdir())
    assert names == ["step=2.ckpt", "step=4.ckpt"]


def test_the_discriminator_rests_without_adversarial_loss(tmp_path):
    task = LIA(**SMALL, adversarial=0.0)
    before = {k: v.clone() for k, v in task.discriminator.state_dict().items()}
    run = trainer(tmp_path, max_steps=3, limit_val_batches=0)
    run.fit(task, Data(clips=16))
    assert run.global_step == 3
    assert all(torch.equal(v, before[k]) for k, v in task.discriminator.state_dict().items())


def test_it_learns(tmp_path):
    task = LIA(**{**SMALL, "width": 0.05}, adversarial=0.0, lr=0.01, ema=0.9)
    video = torch.stack([Squares()[i]["video"] for i in range(8)])
    L.seed_everything(0, verbose=False)
    before = losses.l1(task(video[:, 0], video[:, 1:])[:, 0], video[:, 1])
    trainer(tmp_path, max_steps=60, limit_val_batches=0).fit(task, Data())
    after = losses.l1(task(video[:, 0], video[:, 1:])[:, 0], video[:, 1])
    assert after < 0.5 * before


def test_bf16_mixed_trains_and_bf16_true_is_refused(tmp_path):
    task = LIA(**SMALL, r1=1.0, discriminator_every=1)
    trainer(tmp_path, precision="bf16-mixed", max_steps=2, limit_val_batches=1).fit(task, Data())
    assert all(p.dtype == torch.float32 and p.isfinite().all() for p in task.parameters())
    with pytest.raises(PrecisionError, match=r"bf16-true.*Use bf16-mixed"):
        trainer(tmp_path, precision="bf16-true", max_steps=1).fit(LIA(**SMALL), Data())


def test_strategies_that_split_the_weights_are_refused():
    task = LIA(**SMALL)
    task._trainer = SimpleNamespace(strategy=FSDPStrategy(), precision="32-true")
    with pytest.raises(StrategyError, match=r"FSDPStrategy splits the weights.*: use ddp_find"):
        task.setup("fit")


def test_resuming_equals_an_undisturbed_run(tmp_path):
    def fit(folder, steps, resume=None):
        L.seed_everything(1, verbose=False)
        task = LIA(**SMALL)
        checkpoints = ModelCheckpoint(
            folder / "kept", "{step}", every_n_train_steps=1, save_top_k=-1
        )
        run = trainer(folder, max_steps=steps, callbacks=[checkpoints], limit_val_batches=0)
        run.fit(task, Data(), ckpt_path=resume, weights_only=True)
        return task

    whole = fit(tmp_path / "whole", 4)
    fit(tmp_path / "half", 2)
    resumed = fit(tmp_path / "rest", 4, tmp_path / "half" / "kept" / "step=2.ckpt")
    for name, value in whole.state_dict().items():
        assert torch.equal(value, resumed.state_dict()[name]), name


def test_non_finite_loss_names_the_clips(tmp_path):
    checkpoints = ModelCheckpoint(tmp_path / "kept", "last", every_n_train_steps=1)
    run = trainer(tmp_path, max_steps=4, callbacks=[checkpoints], limit_val_batches=0)
    task = LIA(**SMALL)
    with pytest.raises(NonFiniteLossError, match=r"step 1 .*clip4, clip5, clip6, clip7"):
        run.fit(task, Data(bad=True))
    assert (tmp_path / "kept" / "last.ckpt").exists()
    assert all(p.isfinite().all() for p in task.parameters())


def test_frozen_features_stay_out_of_checkpoints(tmp_path):
    arguments = {**SMALL, "perceptual": "efficientnet"}
    checkpoints = ModelCheckpoint(tmp_path / "kept", "last", every_n_train_steps=1)
    run = trainer(tmp_path, max_steps=1, callbacks=[checkpoints], limit_val_batches=0)
    run.fit(LIA(**arguments), Data(clips=4))
    content = torch.load(tmp_path / "kept" / "last.ckpt", weights_only=True)
    assert not any("perceptual" in key for key in content["state_dict"])
    assert content["lmdvid_generator"]["config"]["size"] == 32
    run = trainer(tmp_path, max_steps=2, limit_val_batches=0)
    run.fit(
        LIA(**arguments),
        Data(clips=4),
        ckpt_path=tmp_path / "kept" / "last.ckpt",
        weights_only=True,
    )
    assert run.global_step == 2


def test_scores_are_what_they_say():
    """PSNR and L1 against numbers worked out by hand, without the source frame."""
    video = Squares(2, 5)[0]["video"][None]
    target = video[:, 1:]
    scores = reconstruction_scores(target + 0.2, target, video[:, 0])
    assert scores["l1"].item() == pytest.approx(0.1)
    assert scores["psnr"].item() == pytest.approx(10 * math.log10(4 / 0.04), rel=1e-4)
    error = (video[:, :1] - target).square().mean().item()
    assert scores["copy_psnr"].item() == pytest.approx(10 * math.log10(4 / error), rel=1e-4)
    perfect = reconstruction_scores(target.double(), target.double(), video[:, 0].double())
    assert perfect["ssim"].item() == pytest.approx(1.0)
    # Of two flat pictures only the means count, on [0, 1]: (2 a b + C) / (a^2 + b^2 + C), C = 1e-4.
    flat = [torch.full((1, 4, 3, 32, 32), 2 * grey - 1).double() for grey in (0.2, 0.6)]
    expected = (2 * 0.2 * 0.6 + 1e-4) / (0.2**2 + 0.6**2 + 1e-4)
    ssim = reconstruction_scores(flat[0], flat[1], video[:, 0].double())["ssim"].item()
    assert ssim == pytest.approx(expected)


@pytest.mark.filterwarnings("ignore:.*bf16.*")
def test_scores_are_exact_in_half_precision_and_pass_over_single_frames(tmp_path):
    """SSIM of what bf16-mixed made, computed in float32; a clip of one frame counts for nothing."""
    made = []

    class Made(L.Callback):
        def on_test_batch_end(self, trainer, module, outputs, batch, *args):
            made.append([v[:, 1:].flatten(0, 1) / 2 + 0.5 for v in outputs["compared"]["own"]])

    clips = [Squares(1, frames, cross=True)[0] for frames in (5, 1)]
    run = trainer(tmp_path, callbacks=[Made()], precision="bf16-mixed")
    run.test(LIA(**SMALL), DataLoader(clips, batch_size=1), verbose=False)
    expected = structural_similarity_index_measure(*made[0], data_range=1.0)
    assert run.callback_metrics["test/ssim"].item() == pytest.approx(expected.item(), abs=1e-5)
    assert run.callback_metrics["test/cross_ssim"].isfinite()


def test_samples_and_scores_reach_the_loggers(tmp_path):
    samples = SampleVideos(clips=3, fps=10, output=str(tmp_path / "out" / "demo.mp4"))
    run = trainer(tmp_path, max_epochs=1, callbacks=[samples])
    task = LIA(**SMALL)
    run.fit(task, Data())
    assert {"val/psnr", "val/ssim", "val/l1", "val/cross_psnr", "val/cross_copy_psnr"} <= set(
        run.callback_metrics
    )
    (video,) = (tmp_path / "run" / "version_0" / "samples").iterdir()
    info = probe(video)
    assert (info.frames, info.width, info.height, info.fps) == (5, 4 * 32, 3 * 32, 10)
    run.test(task, Data(), verbose=False)
    assert probe(tmp_path / "out" / "demo.mp4").frames == 5
    picture = read_clip(tmp_path / "out" / "demo.png", [0])[0]
    assert picture.shape == (3 * 32, 4 * 32, 3)
    # First column: the source picture of each row, the square at its place.
    expected = ((Squares(3, 5)[1]["video"][0] + 1) * 127.5).round().movedim(0, -1)
    assert (picture[32:64, :32].float() - expected).abs().max() <= 1


def test_panels_line_up():
    rows = [torch.full((2, length, 3, 4, 4), i) for i, length in enumerate([5, 3])]
    for row in rows:
        row[1] += 10
    assert stack(rows).shape == (3, 3, 8, 8)
    assert stack(rows)[0, 0, 0, 4] == 10
    assert stack(rows)[0, 0, 4, 0] == 1
    assert moments(rows).shape == (3, 8, 8)


def test_prediction_moves_the_source(tmp_path):
    task = LIA(**SMALL)
    callbacks = [PredictionVideos(str(tmp_path / "made"))]
    (result,) = trainer(tmp_path, callbacks=callbacks).predict(task, Data())
    assert probe(tmp_path / "made" / "a.mp4").frames == 5
    assert result["key"] == ["a"]
    assert result["video"].shape == (1, 5, 3, 32, 32)
    video = Squares(1, 5)[0]["video"]
    torch.testing.assert_close(result["video"], task(video[:1], video[None]))


def test_numbers_are_nothing_to_animate():
    with pytest.raises(PredictionError, match="leave data"):
        LIA(**SMALL).predict_step({"index": torch.arange(2)}, 0)
