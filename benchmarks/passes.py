"""A call of a loss, forward alone or with its backward pass, as something that can be timed."""

import torch
from cases import Call
from limits import empty_caches_of_gpu, read_once
from timing import Run
from torch import Tensor


def run_of(call: Call, logits: Tensor) -> Run:
    """Before each run the logits are in the caches of a CPU, as far as they fit, and in none of a GPU's."""
    return Run(call, before=empty_caches_of_gpu if logits.is_cuda else read_once(logits), on_gpu=logits.is_cuda)


def forward(call: Call, logits: Tensor, labels: Tensor) -> Run:
    inputs = logits.detach(), labels
    return run_of(lambda: call(*inputs), logits)


def forward_backward(call: Call, logits: Tensor, labels: Tensor) -> Run:
    def run() -> None:
        torch.autograd.backward(call(logits, labels))
        logits.grad = None  # so that each run pays for freeing its own gradient

    return run_of(run, logits)


PASSES = {"forward": forward, "forward + backward": forward_backward}
