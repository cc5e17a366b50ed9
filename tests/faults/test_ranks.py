"""Two processes with B clips each do what one with 2 B does."""

import os
import signal
import subprocess
import sys

import pytest
import torch
from runs import ALL, EVERY, ROOT, Run, experiment, final, long, prepare, together
from test_resume import differences

from lmdvid.tasks.inmodegan import InMoDeGAN
from lmdvid.tasks.lia import LIA

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("system", ["lia", "inmodegan"] if ALL else ["lia"])
def test_losses_and_gradients_of_two_processes_are_those_of_one(zygote, clips, tmp_path, system):
    """With B a multiple of 4, so that the groups of the minibatch deviation are the same ones."""
    measured = []
    for ranks, batch in ((1, 8), (2, 4)):
        configuration = experiment(system, clips, ranks=ranks, batch=batch)
        configuration["data"]["init_args"] |= {"crop": 1.0, "flip": False, "jitter": 0.0}
        configuration["model"]["init_args"] |= {"noise": "none"} if system == "inmodegan" else {}
        configuration["trainer"] |= {"max_steps": 1, "limit_val_batches": 0}
        configuration["trainer"]["callbacks"].append({"class_path": "runs.Measured"})
        folder = prepare(tmp_path / f"ranks{ranks}", configuration)
        runs = together(zygote, folder, ranks) if ranks > 1 else [Run(zygote, folder)]
        assert [run.wait() for run in runs] == [0] * ranks, runs[0].said
        measured.append([torch.load(folder / f"measured{rank}.pt") for rank in range(ranks)])
    (one,), two = measured

    names = {name for name in one["losses"] if name.startswith(("generator/", "discriminator/"))}
    assert {"generator/adversarial", "discriminator/r1"} <= names or {
        "generator/adversarial_image",
        "discriminator/r1_video_2",
    } <= names
    for name in names:
        mean = sum(each["losses"][name] for each in two) / 2
        assert mean == pytest.approx(one["losses"][name], rel=1e-5, abs=1e-6), name
        assert two[0]["losses"][name] != two[1]["losses"][name]  # other clips in each
    largest = {
        network: max(
            gradient.abs().max().item()
            for name, gradient in one["gradients"].items()
            if name.startswith(network) and gradient is not None
        )
        for network in ("generator", "discriminator")
    }
    for name, gradient in one["gradients"].items():
        if gradient is None:
            continue
        scale = largest[name.split(".")[0]]
        for each in two:  # the same in both, averaged
            found = each["gradients"][name]
            torch.testing.assert_close(found, gradient, rtol=1e-5, atol=1e-5 * scale, msg=name)


@long
def test_shares_that_do_not_come_out_even_end_together(zygote, clips, tmp_path):
    """24 samples for two processes with 5 clips a batch: two batches each, then the next epoch."""
    configuration = experiment("lia", clips, ranks=2, batch=5)
    configuration["trainer"]["max_steps"] = 8
    folder = prepare(tmp_path / "uneven", configuration)
    runs = together(zygote, folder, 2)
    assert [run.wait() for run in runs] == [0, 0], runs[0].said
    final(folder, 8)
    lines = [(folder / f"keys{rank}.jsonl").read_text().splitlines() for rank in range(2)]
    assert [len(each) for each in lines] == [8, 8]
    assert lines[0][-1].startswith("[3, 8, ")  # the fourth epoch


NONFINITE = """
import math

from lmdvid.tasks.lia import LIA


class Treacherous(LIA):
    def generator_step(self, batch):
        terms, fake, real = super().generator_step(batch)
        if self.global_rank == 1 and self.trainer.fit_loop.total_batch_idx == 2:
            terms["l1"] = terms["l1"] * math.inf
        return terms, fake, real
"""


@long
def test_one_process_bad_numbers_let_all_leave_the_batch_out(zygote, clips, tmp_path):
    configuration = experiment("lia", clips, ranks=2)
    configuration["model"]["class_path"] = "treacherous.Treacherous"
    configuration["model"]["init_args"]["nonfinite"] = "skip"
    configuration["trainer"]["max_steps"] = 4
    folder = prepare(tmp_path / "bad", configuration)
    (folder / "treacherous.py").write_text(NONFINITE)
    runs = together(zygote, folder, 2)
    assert [run.wait() for run in runs] == [0, 0], runs[1].said
    content = final(folder, 4)
    assert all(v.isfinite().all() for v in content["state_dict"].values())
    assert "loss is not finite at step 2 (l1 inf" in runs[1].said
    assert "gradient is not finite at step 2 (l1 " in runs[0].said
    assert len((folder / "keys0.jsonl").read_text().splitlines()) == 5


@pytest.mark.parametrize("system", ["lia", "inmodegan"] if ALL else ["lia"])
def test_a_step_sends_what_the_scaling_model_counts_and_no_zeros(
    zygote, clips, tmp_path, monkeypatch, system
):
    """What rests in a backward pass is not sent, which changes no bit of the weights."""
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    from scaling import bytes_per_step  # pyright: ignore[reportMissingImports]

    ended, sent = [], []
    for everything in (False, True):
        configuration = experiment(system, clips, ranks=2)
        configuration["trainer"] |= {
            "max_steps": EVERY,
            "limit_val_batches": 0,
            "strategy": {
                "class_path": "lightning.pytorch.strategies.DDPStrategy",
                # Both networks of a real experiment are many buckets of 25 MB.
                "init_args": {"find_unused_parameters": True, "bucket_cap_mb": 0.01},
            },
        }
        counting = {"class_path": "runs.Sent", "init_args": {"everything": everything}}
        configuration["trainer"]["callbacks"].append(counting)
        folder = prepare(tmp_path / f"sent{everything}", configuration)
        runs = together(zygote, folder, 2)
        assert [run.wait() for run in runs] == [0, 0], runs[0].said
        ended.append(final(folder, EVERY))
        sent.append([int((folder / f"sent{rank}").read_text()) for rank in range(2)])
    assert differences(*ended) == []

    task = {"lia": LIA, "inmodegan": InMoDeGAN}[system](**configuration["model"]["init_args"])
    trained = sum(
        4 * parameter.numel() for parameter in task.parameters() if parameter.requires_grad
    )
    without, everything = sent
    assert everything == [2 * trained * EVERY] * 2
    assert without == [bytes_per_step(task, [0.01 * 2**20]) * EVERY] * 2
    assert without[0] < 1.2 * trained * EVERY  # the rest are buckets that both networks share


@long
def test_torchrun_starts_anew_after_a_process_was_killed(clips, undisturbed, tmp_path):
    """Its agent and workers as on a cluster; the line of `docs/scaling.md`, at its smallest."""
    configuration = experiment("lia", clips, ranks=2)
    configuration["trainer"]["callbacks"].append({"class_path": "runs.KilledOnce"})
    folder = prepare(tmp_path / "elastic", configuration)
    command = [sys.executable, "-m", "torch.distributed.run"]
    command += ["--standalone", "--nproc-per-node=2", "--max-restarts=2"]
    command += ["-m", "lmdvid", "fit", "--config", "run.yaml", "--ckpt_path", "last"]
    environment = {
        "PYTHONPATH": f"{ROOT}:{ROOT / 'tests/faults'}",
        "OMP_NUM_THREADS": "1",
        "TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1",
    }
    with (folder / "out.txt").open("w") as output:
        agent = subprocess.Popen(
            command,
            cwd=folder,
            env=os.environ | environment,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    try:
        assert agent.wait(250) == 0, (folder / "out.txt").read_text()
    finally:
        if agent.poll() is None:
            os.killpg(agent.pid, signal.SIGKILL)
            agent.wait()
    said = (folder / "out.txt").read_text()
    assert (folder / "killed").exists()
    assert "--ckpt_path last: no checkpoint of this experiment yet" in said
    assert "--ckpt_path last: runs/run/version_0/checkpoints/" in said
    assert differences(final(undisturbed("lia", ranks=2)), final(folder)) == []
