"""The device to compute on, and the dtype to compute in."""

import os
import platform
import re
from datetime import date
from pathlib import Path

import psutil
import torch
import torch.distributed as dist

from common.errors import UserError


def choose_device(name):
    """Return the torch.device of a name; "auto": CUDA where it works. Raises UserError."""
    trouble = cuda_trouble() if name in ("auto", "cuda") else None
    if name == "cuda" and trouble:
        raise UserError(f'DEVICE=cuda: {trouble}. Legal are "cpu" and "auto"')
    if name == "auto":
        if trouble and (torch.cuda.is_available() or Path("/dev/nvidia0").exists()):
            print(f"the CPU is used, not the GPU: {trouble}")
        name = "cpu" if trouble else "cuda"
    try:
        return torch.device(name)
    except RuntimeError as error:  # settings.py lets it pass if the comment has no legal values
        raise UserError(f"DEVICE={name}: {error}") from None


def cuda_trouble():
    """Return why torch cannot compute on a GPU here, or None. Tries it, with one small kernel."""
    try:
        torch.ones(2, device="cuda").sum().item()
    except (AssertionError, RuntimeError) as error:  # of torch's Python; of CUDA and the driver
        cause = str(error).split("\n")[0].strip().rstrip(".")
        if not torch.backends.cuda.is_built():
            return "this torch is built without CUDA; pytorch.org says how to install one with it"
        if "no kernel image" in cause:
            return (
                f"this torch has no kernels for {torch.cuda.get_device_name()}, only for "
                f"{' '.join(torch.cuda.get_arch_list())}; install another version of torch"
            )
        if not torch.cuda.is_available():
            return f"no NVIDIA driver, or one too old for CUDA {torch.version.cuda} ({cause})"
        return f"the GPU does not answer, or another program has it ({cause})"
    return None


def processes():
    """Return the number of processes that train this run: 1, unless torchrun started more."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def describe(device):
    """Return the name of a device, for the start-up summary and reports."""
    each = f"{processes()} processes, each on " if processes() > 1 else ""
    if device.type == "cuda":
        gpus = torch.cuda.device_count()
        idle = f", 1 of {gpus} (torchrun --nproc-per-node={gpus} uses all)"
        name = torch.cuda.get_device_name(device)
        return f"{each}cuda, {name}{idle if gpus > processes() == 1 else ''}"
    threads = torch.get_num_threads()
    return f"{each}cpu, {threads} {'thread' if threads == 1 else 'threads'}"


def free_memory():
    """Return the bytes of memory that are free, at most the limit of a container on Linux."""
    free, container = psutil.virtual_memory().available, Path("/sys/fs/cgroup/memory.max")
    if container.exists() and (limit := container.read_text().strip()).isdigit():
        return min(free, int(limit))
    return free


def place(images, device):
    """Return images on the device, or as they are if they would fill half of its free memory."""
    if device.type == "cuda" and images.nbytes > torch.cuda.mem_get_info(device)[0] / 2:
        print(f"the images stay in memory: {images.nbytes / 1e9:.1f} GB are too much for {device}")
        return images
    return images.to(device)


def fetch(images, labels, indices):
    """Return images[indices] and labels[indices] on the device of the labels, waiting for nothing.

    images: where `place` left them; indices: on the CPU.
    """
    if not labels.is_cuda:
        return images[indices], labels[indices]
    there = indices.pin_memory().to(labels.device, non_blocking=True)
    if images.is_cuda:
        return images[there], labels[there]
    return images[indices].pin_memory().to(labels.device, non_blocking=True), labels[there]


def cpu_name():
    cpuinfo = Path("/proc/cpuinfo")  # Linux only, where platform.processor() is often empty
    names = re.findall(r"model name\s*: (.+)", cpuinfo.read_text()) if cpuinfo.exists() else []
    return names[0] if names else platform.processor() or platform.machine()


def machine(device):
    """Return the hardware, the versions and today's date, {heading: text}, for reports."""
    return {
        "Hardware": f"{describe(device)}; {cpu_name()}, {os.cpu_count()} virtual cores",
        "Versions": f"Python {platform.python_version()}, torch {torch.__version__}, "
        + platform.system(),
        "Last trained": date.today().isoformat(),
    }


def choose_dtype(dtype, device):
    """Return the name of the dtype of convolutions; "auto": bfloat16 where it is fast.

    Raises UserError.
    """
    if not isinstance(getattr(torch, dtype, None), torch.dtype) and dtype != "auto":
        raise UserError(f"DTYPE={dtype}: torch has no such dtype")
    if device.type == "cuda":
        fast = torch.cuda.is_bf16_supported(including_emulation=False)
    else:
        # Without these instructions bfloat16 is emulated, slower than float32.
        fast = getattr(torch.cpu, "_is_avx512_bf16_supported", lambda: False)()
    if dtype == "bfloat16" and not fast:
        print(
            "bfloat16 is emulated on this device, up to ten times slower than float32. A run keeps "
            "its dtype: resume it where bfloat16 is fast, or train anew with --DTYPE=float32 and "
            "another RUN_NAME."
        )
    return dtype if dtype != "auto" else "bfloat16" if fast else "float32"


def keep_random(device):
    """Return the context manager after which torch's random state is what it was before."""
    return torch.random.fork_rng([device] if device.type == "cuda" else [])


def autocast(device, dtype):
    """Return the context manager in which convolutions compute in a dtype, as "bfloat16"."""
    return torch.autocast(device.type, getattr(torch, dtype), enabled=dtype != "float32")
