"""Losses and gradients that are no numbers: stopped at, left out, returned from."""

import csv
import math
from functools import partial
from pathlib import Path

import lightning as L
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from test_resume import differences
from test_tasks import SMALL, Squares, trainer
from torch.utils.data import DataLoader

from lmdvid.callbacks import ContinuedLog
from lmdvid.pretrained import save_network
from lmdvid.tasks.finite import finite_gradient, poison
from lmdvid.tasks.fomm import FOMM
from lmdvid.tasks.g3an import G3AN
from lmdvid.tasks.imaginator import ImaGINator
from lmdvid.tasks.inmodegan import InMoDeGAN
from lmdvid.tasks.lia import LIA
from lmdvid.tasks.mraa import MRAA
from lmdvid.tasks.nonfinite import NonFiniteLossError

pytestmark = [
    pytest.mark.filterwarnings("ignore:The dirpath has changed"),
    pytest.mark.filterwarnings("ignore:.*does not have many workers.*"),
    pytest.mark.filterwarnings("ignore:.*module.* in eval mode.*"),
    pytest.mark.filterwarnings("ignore:.*mid-epoch.*"),
    pytest.mark.filterwarnings("ignore:.*no `val_dataloader`.*"),
]


class Batches(L.LightningDataModule):
    """Two clips a batch, in order; NaN in a pixel of the batches in `bad`."""

    def __init__(
        self,
        count: int,
        bad: tuple[int, ...] = (),
        without: tuple[int, ...] = (),
        frames: int = 2,
    ):
        super().__init__()
        self.items = []
        squares = Squares(2 * count, frames)
        for batch in range(count):
            for clip in (2 * batch, 2 * batch + 1):
                item = {**squares[clip], "label": clip % 2}
                if batch in bad and clip % 2:
                    item["video"][1, 0, 3, 3] = math.nan
                if batch not in without:
                    self.items.append(item)

    def train_dataloader(self):
        return DataLoader(self.items, batch_size=2)  # pyright: ignore[reportArgumentType]


def plain():
    return LIA(**SMALL, r1=1.0, discriminator_every=2, nonfinite="skip", nonfinite_limit=2)


def fit(folder, data, make=plain, callbacks=(), resume=None, **options):
    L.seed_everything(3, verbose=False)
    task = make()
    fitting = trainer(
        folder,
        max_epochs=1,
        callbacks=[ContinuedLog(), *callbacks],
        enable_checkpointing=bool(callbacks),
        **options,
    )
    fitting.fit(task, data, ckpt_path=resume, weights_only=True)
    state = [task.state_dict(), [o.state_dict() for o in fitting.optimizers], fitting.global_step]
    return state, fitting


def rows(fitting: L.Trainer) -> list[dict[str, str]]:
    with Path(fitting.logger.log_dir, "metrics.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def test_a_skipped_batch_leaves_no_trace_in_the_weights(tmp_path, caplog):
    skipping, run = fit(tmp_path / "a", Batches(5, bad=(1, 3)))
    without, _ = fit(tmp_path / "b", Batches(5, without=(1, 3)))
    assert differences(skipping, without) == []
    assert run.global_step == 3
    said = [message for message in caplog.messages if "not finite" in message]
    assert len(said) == 2
    assert "loss is not finite at step 1 (" in said[0]
    assert "clips of this batch: clip2, clip3. It is left out (1 so far, 1 in a row)" in said[0]
    assert "clip6, clip7. It is left out (2 so far, 1 in a row)" in said[1]
    logged = [float(row["nonfinite/skipped"]) for row in rows(run)]
    assert logged == [0, 1, 1, 2, 2]
    assert {row["nonfinite/returns"] for row in rows(run)} == {"0.0"}


KEYPOINTS = {"width": 0.06, "perceptual": "none", "shrink": 1, "blocks": 3, "padding": 3}
THIN = {"width": 0.0625, "motion_noise": 5}
TASKS = {
    "fomm": partial(FOMM, keypoints=3, l1=1.0, **KEYPOINTS),
    "mraa": partial(MRAA, regions=3, l1=1.0, **KEYPOINTS),
    "avd": partial(MRAA, regions=3, stage="avd", **KEYPOINTS),
    "g3an": partial(G3AN, **THIN),
    "imaginator": partial(ImaGINator, classes=["right", "left"], appearance=6, **THIN),
}


@pytest.mark.parametrize("name", TASKS)
def test_nor_in_running_statistics_whatever_the_system(tmp_path, caplog, name):
    """They see a batch before its loss is known."""
    make = partial(TASKS[name], size=32, ema=0.9, nonfinite="skip")
    if name == "avd":
        save_network(make().generator, tmp_path / "first")
        make = partial(make, start_from=str(tmp_path / "first"))
    frames = 16 if name in ("g3an", "imaginator") else 2
    skipping, run = fit(tmp_path / "a", Batches(3, bad=(1,), frames=frames), make)
    without, _ = fit(tmp_path / "b", Batches(3, without=(1,), frames=frames), make)
    assert run.global_step == 2
    assert "clip2, clip3. It is left out (1 so far, 1 in a row)" in caplog.text
    assert differences(skipping, without) == []


def test_a_generator_that_sees_no_clip_has_taken_its_step(tmp_path):
    record = Record()
    make = partial(
        InMoDeGAN,
        size=32,
        frames=4,
        dim=16,
        directions=3,
        speeds=[1],
        video_kind="2d",
        nonfinite="skip",
        **THIN,
    )
    _, run = fit(tmp_path, Batches(3, bad=(1,), frames=4), make, callbacks=[record])
    assert run.global_step == 3
    before, after, last = record.weights
    changed = {name.split(".")[1] for name in differences(before, after)}
    assert changed == {"generator", "generator_ema"}
    assert any("discriminator" in name for name in differences(after, last))
    assert all(value.isfinite().all() for value in last.values())


class Treacherous(LIA):
    """A term that is fine in value or gradient, but not in both, in the third batch."""

    def __init__(self, term: str):
        super().__init__(**SMALL, nonfinite="skip")
        self.term = term

    def generator_step(self, batch):
        terms, fake, real = super().generator_step(batch)
        if "clip4" in batch["key"]:
            weight = next(self.generator.parameters()).sum()
            infinite = torch.tensor(math.inf)
            terms["bad"] = {"root": (weight * 0).sqrt(), "infinite": infinite}[self.term]
        return terms, fake, real


@pytest.mark.parametrize(("term", "what"), [("root", "gradient"), ("infinite", "loss")])
def test_value_and_gradient_are_both_looked_at(tmp_path, caplog, term, what):
    skipping, run = fit(tmp_path / "a", Batches(4), lambda: Treacherous(term))
    without, _ = fit(tmp_path / "b", Batches(4, without=(2,)), lambda: Treacherous(term))
    assert run.global_step == 3
    assert differences(skipping, without) == []
    assert f"{what} is not finite at step 2" in caplog.text


class Hurried(LIA):
    """Waits for nothing, as on a GPU."""

    _waits_for_nothing = True

    def __init__(self):
        super().__init__(**SMALL, r1=1.0, discriminator_every=2)


def test_a_host_that_does_not_wait_sees_it_later_and_the_weights_are_spared(tmp_path):
    """The same weights where nothing is wrong; otherwise the step is seen, and never taken."""
    calm, _ = fit(tmp_path / "a", Batches(5), lambda: LIA(**SMALL, r1=1.0, discriminator_every=2))
    hurried, _ = fit(tmp_path / "b", Batches(5), Hurried)
    assert differences(calm, hurried) == []

    tasks = []

    def made():
        tasks.append(Hurried())
        return tasks[0]

    with pytest.raises(NonFiniteLossError, match=r"at step 1 .*clip2, clip3.*nonfinite: skip"):
        fit(tmp_path / "c", Batches(8, bad=(1,)), made)
    assert 2 <= tasks[0].trainer.global_step <= 4  # two steps later
    assert all(weight.isfinite().all() for weight in tasks[0].state_dict().values())
    # Before anything is written, all is looked at.
    saving = ModelCheckpoint(tmp_path / "e", every_n_train_steps=2)
    with pytest.raises(NonFiniteLossError, match="at step 1"):
        fit(tmp_path / "d", Batches(8, bad=(1,)), Hurried, [saving])
    assert not list((tmp_path / "e").glob("*.ckpt"))


def test_large_gradients_are_no_infinite_ones():
    weight = torch.nn.Parameter(torch.ones(3))
    for scale, finite in ((1e30, True), (math.inf, False), (math.nan, False)):
        weight.grad = torch.full((3,), scale)
        assert finite_gradient([weight]).item() is finite
    for added, gradient in ((0.0, [1.0, 1.0, 0.0]), (math.inf, [math.nan] * 3)):
        loss = (weight * torch.tensor([1.0, 1.0, 0.0])).sum() + added
        found = torch.autograd.grad(poison(loss), weight)[0]
        torch.testing.assert_close(found, torch.tensor(gradient), equal_nan=True)


class Spoil(L.Callback):
    """Makes a weight NaN before a batch."""

    def __init__(self, batch: int):
        self.batch = batch

    def on_train_batch_start(self, trainer, task, batch, batch_idx):
        if batch_idx == self.batch:
            with torch.no_grad():
                next(task.generator.parameters()).fill_(math.nan)


class Record(L.Callback):
    def __init__(self):
        self.weights = []

    def on_train_batch_end(self, trainer, task, *_):
        self.weights.append({k: v.clone() for k, v in task.state_dict().items()})


def test_too_many_in_a_row_return_to_the_last_good_checkpoint(tmp_path, caplog):
    record = Record()
    kept = ModelCheckpoint(tmp_path / "kept", "{step}", every_n_train_steps=2, save_top_k=-1)
    data = Batches(10)
    _, run = fit(tmp_path, data, callbacks=[Spoil(5), record, kept])
    # Steps 1 to 5 are good, batches 5, 6, 7 are left out, the last of them returns to step 4.
    good = torch.load(tmp_path / "kept/step=4.ckpt")["state_dict"]
    assert differences(record.weights[7], good) == []
    assert all(value.isfinite().all() for value in record.weights[-1].values())
    assert differences(record.weights[-1], good) != []  # it learns on
    assert run.global_step == 7
    assert [row["nonfinite/returns"] for row in rows(run)] == ["0.0"] * 7 + ["1.0"] * 3
    assert f"those of {tmp_path}/kept/step=4.ckpt (step 4) again" in caplog.text
    # A checkpoint written later knows of it.
    task = LIA(**SMALL, nonfinite="skip")
    task.on_load_checkpoint(torch.load(tmp_path / "kept/step=6.ckpt"))
    assert task._skipping.state() == {
        "skipped": 3,
        "in_a_row": 0,
        "returns": 1,
        "returned_to": [(f"{tmp_path}/kept/step=4.ckpt", 4)],
    }


def test_without_a_good_checkpoint_it_stops(tmp_path):
    class SpoilAlways(L.Callback):
        on_train_batch_start = Spoil(0).on_train_batch_start

    kept = ModelCheckpoint(tmp_path / "kept", every_n_train_steps=1, save_last=True)
    with pytest.raises(NonFiniteLossError, match=r"number 3 in a row, and no earlier good check"):
        fit(tmp_path, Batches(6), callbacks=[SpoilAlways(), kept])


def test_each_checkpoint_is_returned_to_once(tmp_path, caplog):
    kept = ModelCheckpoint(tmp_path / "kept", "{step}", every_n_train_steps=1, save_top_k=-1)
    # From batch 2 on everything is bad, whatever the weights.
    with pytest.raises(NonFiniteLossError, match="no earlier good checkpoint"):
        fit(tmp_path, Batches(20, bad=tuple(range(2, 20))), callbacks=[kept])
    returns = [message for message in caplog.messages if "again, and training goes on" in message]
    assert [message.split("(step ")[1][0] for message in returns] == ["2", "1"]


def test_stopping_takes_no_step(tmp_path):
    task = LIA(**SMALL)
    record = Record()
    with pytest.raises(NonFiniteLossError, match=r"step 2 .*clip4, clip5.*nonfinite: skip"):
        fit(tmp_path, Batches(4, bad=(2,)), lambda: task, callbacks=[record])
    assert differences(record.weights[-1], dict(task.state_dict())) == []
