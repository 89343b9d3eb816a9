"""Training by gradient descent, as a generator of epochs.

    for epoch in train(network, inputs, labels, settings=Training(epochs=30), seed=0):
        print(epoch.number, epoch.loss)

The `for` is the caller's, who prints, saves or breaks off there; so there are no callbacks.
All parameters of the network are trained. What is frozen is not switched off in here: it lies
below a cut, and the loop is given the top alone.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.modules.batchnorm import _BatchNorm

from topwork.errors import DataError, PlanError, UsageError
from topwork.learn.optimizers import Training, make_optimizer, rate_at


@dataclass(frozen=True)
class Epoch:
    """What one pass over the training data came to.

    Attributes:
        number: 1 for the first epoch.
        loss: mean cross-entropy in nats over the samples, each scored just before its step.
        accuracy: share of samples that were right in that same scoring.
        rate: learning rate of the epoch's last step.
        seconds: wall time, validation included.
        validation_loss: mean cross-entropy after the epoch; None without validation data.
        validation_accuracy: share right after the epoch; None without validation data.
    """

    number: int
    loss: float
    accuracy: float
    rate: float
    seconds: float
    validation_loss: float | None = None
    validation_accuracy: float | None = None


def train(
    network: nn.Module,
    inputs: Tensor,
    labels: Tensor,
    *,
    settings: Training,
    validation: tuple[Tensor, Tensor] | None = None,
    seed: int,
) -> Iterator[Epoch]:
    """Train all parameters of `network` in place; yield after every epoch.

    Nothing happens before the first epoch is asked for. At each yield the network is in eval
    mode. Order and dropout depend on the seed alone, so that a run can be repeated bit for bit
    whatever the global random state, which is left as it was.

    Args:
        network: a whole network or the top above a cut; maps [b, ...] to scores [b, classes].
        inputs: [n, ...] floating point, images or cached codes, on the network's device.
        labels: [n] int64, from 0 to classes - 1, on the same device.
        settings: how to train.
        validation: inputs and labels to score after every epoch; nothing is learned from them.
        seed: of order and dropout.

    Raises:
        DataError: no samples, labels that do not pair with them, or inputs that are not finite.
        UsageError: a parameter that takes no gradient.
        PlanError: a loss that is no longer finite.

    >>> corners = torch.tensor([[0.0, 1.0], [1.0, 0.0]])
    >>> settings = Training(epochs=99)
    >>> *_, last = train(nn.Linear(2, 2), corners, torch.arange(2), settings=settings, seed=0)
    >>> last.number, last.accuracy
    (99, 1.0)
    """
    _check(network, inputs, labels)
    optimizer = make_optimizer(network, settings)
    shuffler = torch.Generator().manual_seed(seed)
    steps = math.ceil(len(inputs) / settings.batch_size)
    for number in range(1, settings.epochs + 1):
        started = time.perf_counter()
        order = torch.randperm(len(inputs), generator=shuffler).to(inputs.device)
        noise_seed = int(torch.randint(2**62, (), generator=shuffler))
        loss = right = torch.zeros((), device=inputs.device)
        with _eval_mode_afterwards(network), own_randomness(noise_seed, inputs.device):
            network.train()
            for step, batch in enumerate(order.tensor_split(steps), start=(number - 1) * steps):
                for group in optimizer.param_groups:
                    group["lr"] = rate_at(step, steps, settings)
                if len(batch) == 1:  # It has no variance. Steps of one come last in an epoch.
                    _use_running_statistics(network)
                scores = network(inputs[batch])
                batch_loss = functional.cross_entropy(scores, labels[batch])
                optimizer.zero_grad()
                batch_loss.backward()
                optimizer.step()
                loss = loss + batch_loss.detach() * len(batch)
                right = right + (scores.argmax(1) == labels[batch]).sum()
        if not loss.isfinite():
            raise _explanation(inputs, number, settings)
        scored = evaluate(network, *validation) if validation else (None, None)
        seconds = time.perf_counter() - started
        means = (float(loss) / len(inputs), float(right) / len(inputs))
        yield Epoch(number, *means, optimizer.param_groups[0]["lr"], seconds, *scored)


@torch.no_grad()
def evaluate(network: nn.Module, inputs: Tensor, labels: Tensor) -> tuple[float, float]:
    """Return mean cross-entropy (nats) and accuracy; leaves the network in eval mode."""
    network.eval()
    scores = torch.cat([network(batch) for batch in inputs.split(256)])
    accuracy = (scores.argmax(1) == labels).double().mean()
    return float(functional.cross_entropy(scores, labels)), float(accuracy)


def _use_running_statistics(network: nn.Module) -> None:
    for module in network.modules():
        if isinstance(module, _BatchNorm):
            module.eval()


@contextmanager
def _eval_mode_afterwards(network: nn.Module) -> Iterator[None]:
    try:
        yield
    finally:
        network.eval()


@contextmanager
def own_randomness(seed: int, device: torch.device) -> Iterator[None]:
    """Seed what dropout draws from; put the global state back afterwards."""
    devices = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices):
        torch.default_generator.manual_seed(seed)
        for cuda_device in devices:
            with torch.cuda.device(cuda_device):
                torch.cuda.manual_seed(seed)
        yield


def _check(network: nn.Module, inputs: Tensor, labels: Tensor) -> None:
    if len(inputs) == 0 or labels.shape != inputs.shape[:1]:
        raise DataError(
            f"training data: {len(inputs)} samples and labels of shape {list(labels.shape)}; "
            f"give at least one sample, and one label for each"
        )
    for name, parameter in network.named_parameters():
        if not parameter.requires_grad:
            raise UsageError(
                f"training: parameter {name} takes no gradient; "
                f"to freeze layers, cut the network above them and train its top"
            )


def _explanation(inputs: Tensor, number: int, settings: Training) -> DataError | PlanError:
    if not inputs.isfinite().all():
        return DataError("training data: inputs hold NaN or infinity; leave those samples out")
    return PlanError(
        f"training: the loss is not finite in epoch {number}; "
        f"lower the learning rate (now {settings.rate:g}) or lengthen the warm-up"
    )
