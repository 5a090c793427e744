"""Train a SegFormer of random weights by Trainer of transformers, with the model's own loss and with that of segloss.

    pip install transformers accelerate
    python examples/hf_trainer.py              # a few steps both ways: one minute on two cores
    python examples/hf_trainer.py --steps 2    # does it run at all?

Before and after differ by one argument of Trainer. It prints the losses of each step, which are the same,
and their largest difference.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Callable, Sequence

import torch
from segformer import network, scenes
from torch import nn
from transformers import PrinterCallback, Trainer, TrainingArguments

from segloss.transformers import SemanticSegmentationLoss

Samples = list[dict[str, torch.Tensor]]


def trainer_before(model: nn.Module, arguments: TrainingArguments, samples: Samples) -> Trainer:
    return Trainer(model, arguments, train_dataset=samples)


def trainer_after(model: nn.Module, arguments: TrainingArguments, samples: Samples) -> Trainer:
    return Trainer(model, arguments, train_dataset=samples, compute_loss_func=SemanticSegmentationLoss(model))


def train(trainer_of: Callable[..., Trainer], steps: int) -> list[float]:
    """The loss of each step."""
    torch.manual_seed(0)
    model, _ = network()
    images, labels = scenes(8, torch.Generator().manual_seed(0))
    samples = [{"pixel_values": x, "labels": y} for x, y in zip(images, labels.long(), strict=True)]
    with tempfile.TemporaryDirectory() as folder:
        arguments = TrainingArguments(
            folder,
            max_steps=steps,
            per_device_train_batch_size=2,
            learning_rate=1e-3,
            logging_steps=1,
            save_strategy="no",
            report_to="none",
            use_cpu=True,
            disable_tqdm=True,
        )
        trainer = trainer_of(model, arguments, samples)
        trainer.remove_callback(PrinterCallback)
        trainer.train()
    return [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]


def main(arguments: Sequence[str] | None = None) -> list[list[float]]:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=12)
    steps = parser.parse_args(arguments).steps
    all_losses = []
    for name, trainer_of in {"the model's loss": trainer_before, "segloss": trainer_after}.items():
        losses = train(trainer_of, steps)
        print(f"{name:17}", *(f"{loss:.6f}" for loss in losses))
        all_losses.append(losses)
    print(f"The losses differ by at most {max(abs(a - b) for a, b in zip(*all_losses, strict=True)):.1e}")
    return all_losses


if __name__ == "__main__":
    main()
