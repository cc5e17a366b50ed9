"""Which gradients processes send each other."""

from typing import Any

from torch import Tensor
from torch.distributed import GradBucket, ProcessGroup
from torch.distributed.algorithms.ddp_comm_hooks import default_hooks
from torch.futures import Future
from torch.nn.parallel import DistributedDataParallel


def send_what_learns(model: Any) -> None:
    """Let the processes of a training average the gradients of the network that learns alone.

    Every backward pass is of one network, while the other rests with `requires_grad` off; DDP would
    send the zeros of that one, too. A hook that whoever trains has chosen is left in place.

    Args:
        model: what the trainer's strategy has made of a task.
    """
    if isinstance(model, DistributedDataParallel) and not model._comm_hooks:
        model.register_comm_hook(model.process_group, _average_what_learns)


def _average_what_learns(group: ProcessGroup, bucket: GradBucket) -> Future[Tensor]:
    if any(parameter.requires_grad for parameter in bucket.parameters()):
        return default_hooks.allreduce_hook(group, bucket)
    zeros = bucket.buffer()
    future: Future[Tensor] = Future(devices=[zeros.device] if zeros.is_cuda else None)
    future.set_result(zeros)
    return future
