"""Gradients of the network that learns are averaged; those of the one that rests are not sent."""

import pytest
import torch
from torch import distributed, nn
from torch.distributed.algorithms.ddp_comm_hooks import default_hooks
from torch.nn.parallel import DistributedDataParallel

from lmdvid.tasks.gradients import send_what_learns


@pytest.mark.parametrize(
    ("device", "backend"),
    [("cpu", "gloo"), pytest.param("cuda", "nccl", marks=pytest.mark.gpu)],
)
def test_only_the_network_that_learns_is_sent(tmp_path, monkeypatch, device, backend):
    """A process alone; `tests/faults/test_ranks.py` has two, and whole trainings."""
    if device == "cuda" and not torch.cuda.is_available():
        pytest.skip("torch finds no GPU")
    sent = []
    average = default_hooks.allreduce_hook

    def counted(group, bucket):
        sent.append(bucket.buffer().numel())
        return average(group, bucket)

    monkeypatch.setattr(default_hooks, "allreduce_hook", counted)
    distributed.init_process_group(
        backend, init_method=f"file://{tmp_path / 'store'}", rank=0, world_size=1
    )
    try:
        networks = nn.Linear(4, 4, bias=False), nn.Linear(4, 2, bias=False)
        both = nn.Sequential(*networks).to(device)
        model = DistributedDataParallel(both, find_unused_parameters=True, bucket_cap_mb=1e-5)
        send_what_learns(model)
        send_what_learns(model)  # one hook is all that DDP takes
        x = torch.ones(3, 4, device=device)
        for learns, size in ((0, 16), (1, 8), (0, 16)):
            for number, network in enumerate(networks):
                network.requires_grad_(number == learns)
            model(x).square().sum().backward()
            assert sent.pop() == size
            assert not sent
            weight = networks[learns].weight
            (expected,) = torch.autograd.grad(both(x).square().sum(), weight)
            torch.testing.assert_close(weight.grad, expected)
            assert networks[1 - learns].weight.grad is None
            weight.grad = None
    finally:
        distributed.destroy_process_group()
