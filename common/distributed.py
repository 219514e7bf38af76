"""One run trained by several processes that torchrun starts: one per GPU, or with gloo on CPUs.

    torchrun --nproc-per-node=4 train_model.py

BATCH_SIZE stays that of the whole step. All processes draw the same order of images and the same
latents, each computes its part, and the gradients are averaged: all make the same step. BatchNorm
normalises by the part of a process; its running statistics are averaged. What else is random, as
the shifts of dcgan.Texture, is the same in all processes too: they have one random state, which is
what a checkpoint holds, so a run goes on with any number of processes. DistributedDataParallel
would not do: it raises where a network with BatchNorm runs twice before one backward.

The first process alone reads and writes the run's folder, prints and measures: what it alone does
stands behind `if distributed.is_first()`. Without torchrun nothing here does anything.
"""

import contextlib
import os
import sys
from datetime import timedelta
from types import SimpleNamespace

import torch
import torch.distributed as dist

from common import files, script
from common.errors import UserError
from common.hardware import processes

TIMEOUT = timedelta(hours=1)  # one process can keep the others waiting so long, with a download
# What gloo and NCCL say of a lost connection, among other words, in lower case.
LOST = ("connection", "broken pipe", "timed out", "timeout", "remote process exited")


def launch(main):
    """Return main as it is or, under torchrun, a function that joins the others and then runs it.

    What ends one process ends all of them; only the one in which it happened first tells it.
    """
    if not (dist.is_available() and dist.is_torchelastic_launched()):
        return main
    nowhere, stderr = script.Output(None), sys.stderr
    if os.environ["RANK"] != "0":
        sys.stdout = sys.stderr = nowhere

    def run(constants):
        store, rank, n = next(dist.rendezvous("env://"))
        try:
            join(store, rank, n, constants)
            main(constants)
        except (Exception, UserError):
            told = False
            with contextlib.suppress(RuntimeError):  # torchrun is gone, and the store with it
                told = store.add("errors", 1) > 1
            sys.stderr = nowhere if told else stderr
            raise
        except SystemExit:  # after a signal: sync_signals has told all processes
            dist.destroy_process_group()
            raise
        dist.destroy_process_group()

    return run


def join(store, rank, n, constants):
    """Make this process one of the n that train a run. Raises UserError.

    store: what torchrun lends them to find each other; constants: those of train_model.py.
    """
    if constants["BATCH_SIZE"] % n:
        raise UserError(
            f"BATCH_SIZE={constants['BATCH_SIZE']}: legal is a multiple of {n}, the processes that "
            "torchrun started"
        )
    backend = "gloo"
    if constants["DEVICE"] != "cpu" and torch.cuda.is_available():
        gpu, gpus = int(os.environ["LOCAL_RANK"]), torch.cuda.device_count()
        if gpu >= gpus:
            started = os.environ["LOCAL_WORLD_SIZE"]
            raise UserError(
                f"torchrun started {started} processes here, and torch finds {gpus} CUDA devices. "
                f"Use --nproc-per-node={gpus}, or train with --DEVICE=cpu"
            )
        torch.cuda.set_device(gpu)
        if dist.is_nccl_available():
            backend = "cpu:gloo,cuda:nccl"
    dist.init_process_group(backend, store=store, rank=rank, world_size=n, timeout=TIMEOUT)


@contextlib.contextmanager
def rank0_first():
    """Let the first process finish the block before the others begin it."""
    if not is_first():
        broadcast(None)  # returns when the first process gets there
    yield
    if is_first():
        broadcast(None)


def broadcast(value):
    """Return the value that the first process has."""
    values = [value]
    if processes() > 1:
        with peer_errors():
            dist.broadcast_object_list(values)
    return values[0]


@contextlib.contextmanager
def peer_errors():
    """Raise a UserError if the connection to another process is lost in the block."""
    try:
        yield
    except RuntimeError as error:  # of gloo and NCCL
        cause = " ".join(str(error).split())
        if not any(words in cause.lower() for words in LOST):
            raise
        raise UserError(
            f"another process of this run has ended, and so does this one ({cause[:160]}). "
            "The last checkpoint is kept: the same command resumes the run."
        ) from None


def is_first():
    return processes() == 1 or dist.get_rank() == 0


def lock(folder):
    """Lock the folder of the run, as files.lock does, for all processes of the run."""
    return files.lock(folder) if is_first() else contextlib.nullcontext()


def command():
    """Return what a script of this run was started with, up to its name."""
    if processes() == 1:
        return "python"
    return f"torchrun --nproc-per-node={os.environ['LOCAL_WORLD_SIZE']}"


def local_rows(rows):
    """Return the rows of a step that this process computes: (B, ...) -> (B / processes, ...)."""
    return rows.chunk(processes())[dist.get_rank()] if processes() > 1 else rows


def randn(n, *size, device):
    """torch.randn for the n rows of this process, its part of what all of them draw alike."""
    return local_rows(torch.randn(n * processes(), *size, device=device))


def average_gradients(network):
    """Average the gradients of a network over the processes."""
    average([p.grad for p in network.parameters() if p.grad is not None])


def average_statistics(statistics, *networks):
    """Average a tensor and the running statistics of networks' BatchNorm. Returns the tensor."""
    named = (pair for network in networks for pair in network.named_buffers())
    average([statistics, *(buffer for name, buffer in named if "running" in name)])
    return statistics


def average(tensors):
    """Average float tensors over the processes, in place, by one all_reduce for all of them."""
    if processes() == 1:
        return
    flat = torch.cat([tensor.flatten() for tensor in tensors])
    with peer_errors():
        dist.all_reduce(flat)
    pieces = flat.div_(processes()).split([tensor.numel() for tensor in tensors])
    pairs = zip(tensors, pieces, strict=True)
    torch._foreach_copy_(tensors, [piece.view_as(tensor) for tensor, piece in pairs])


def sync_signals(signals):
    """Return what the signals of any process ask all of them for, after the same step.

    signals: of this process, as script.catch_signals yields.
    """
    if processes() == 1:
        return signals
    save, stop = signals.save, signals.stop or 0
    if save:  # not otherwise: a signal may have come since
        signals.save = False
    asked = torch.tensor([int(save), stop])  # on the CPU: a GPU would have to finish its step
    with peer_errors():
        dist.all_reduce(asked, dist.ReduceOp.MAX)
    save, stop = asked.tolist()
    return SimpleNamespace(save=bool(save or stop), stop=stop or None)
