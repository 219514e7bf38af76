"""Check on a GPU what the documents say of one, in about 8 minutes.

    python benchmarks/on_gpu.py
    python benchmarks/on_gpu.py --DEVICE=cpu --TRAIN_FRACTION=0.02 --SIZES=28 --SECONDS=0.2

Prints the table of docs/RESULTS.md, "On a GPU". The second command rehearses it on a CPU. All runs
are on phantoms, in a temporary folder. Every constant below can be changed here or on the command
line.
"""

import os
import shutil
import statistics
import subprocess
import sys
import tempfile
from functools import partial
from pathlib import Path
from time import perf_counter, sleep

os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # for deterministic kernels

import tools
import torch
from torch.profiler import ProfilerActivity, profile
from torch.utils._pytree import tree_leaves

import train_model
from common import checkpoint, ema, hardware, settings
from common.cuda_graph import Step
from common.data import dataset
from common.errors import UserError

# --- Checks ---
DEVICE = "cuda"  # cpu: a rehearsal ["cuda", "cpu"]
TRAIN_FRACTION = 1.0  # of the phantoms, for the runs [0.01 to 1.0]
SIZES = "28,64,128,224"  # pixels, of the steps that are timed
BATCH_SIZES = "64,256"  # images per step, of the steps that are timed
SECONDS = 1.5  # to time a step for [0.01 to 100.0]


def main():
    device = hardware.choose_device(DEVICE)
    tools.print_head("check", "result", "s")
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        for name, result in runs(device):
            row(name, result)
        os.chdir("/")
    for size in tools.whole_numbers("SIZES", SIZES):
        for batch in tools.whole_numbers("BATCH_SIZES", BATCH_SIZES):
            for dtype in ("bfloat16", "float32"):
                name = f"a step, {size} pixels, {batch} images, {dtype}"
                row(name, partial(time_steps, size, batch, dtype, device))
    print(f"\n{tools.source(device)}")


def row(name, check):
    start = perf_counter()
    try:
        result = check()
    except (Exception, UserError) as error:  # the other checks are wanted all the same
        result = f"failed, {type(error).__name__}: {' '.join(str(error).split())[:140]}"
    tools.print_row(name, result.replace("|", "/"), f"{perf_counter() - start:.0f}")


def runs(device):
    """Yield (name, check) for what needs runs of train_model.py."""
    here, cpu = {"DEVICE": DEVICE}, {"DEVICE": "cpu", "DTYPE": "float32"}
    for dtype in ("bfloat16", "float32"):
        yield f"2 epochs, {device}, {dtype}", partial(train, dtype, **here, DTYPE=dtype)
    yield "2 epochs, cpu, float32", partial(train, "cpu", **cpu)
    yield "2 epochs once more, default kernels", partial(train, "again", **here)
    yield "and again", partial(alike, "again2", "again", here)
    torch.use_deterministic_algorithms(True)
    yield "2 epochs, deterministic kernels", partial(train, "straight", **here)
    yield "killed and resumed, the same kernels", killed_and_resumed
    plain = {"CUDA_GRAPHS": False, **here}
    yield "without CUDA graphs, the same kernels", partial(alike, "plain", "straight", plain)
    torch.use_deterministic_algorithms(False)
    yield f"{device} -> cpu, then 3 epochs", partial(move, "straight", "cpu", 3)
    yield f"-> {device} again, then 4 epochs", partial(move, "straight", DEVICE, 4)


def of_run(name, **constants):
    """Return the constants of a run, the same for all but for those given."""
    constants = {"DTYPE": "auto", "EPOCHS": 2, "METRIC_IMAGES": 1000, **constants}
    constants |= {"DATASET": "phantom", "TRAIN_FRACTION": TRAIN_FRACTION, "RUN_NAME": name}
    return {"CUDA_GRAPHS": True, "THREADS": 1, **constants}


def train(name, **constants):
    """Train a run in this process. Returns its last row, in words."""
    with open(os.devnull, "w") as quiet:
        out, err, sys.stdout, sys.stderr = sys.stdout, sys.stderr, quiet, quiet
        try:
            tools.train(**of_run(name, **constants))
        finally:
            sys.stdout, sys.stderr = out, err
    last = checkpoint.load(f"models/{name}/checkpoint.pt", checkpoint.CHECKPOINT)["history"][-1]
    speed = f"{last['images_per_second']:,.0f} images/s"
    return f"{speed}, loss {last['loss']:.4f}, coverage {last['coverage']:.2f}"


def alike(name, other, constants):
    """Train a run and compare it with another, tensor by tensor."""
    train(name, **constants)
    return differences(name, other)


def differences(name, other):
    ours, theirs = (
        checkpoint.load(f"models/{each}/checkpoint.pt", checkpoint.CHECKPOINT)
        for each in (name, other)
    )
    parts = ["generator", "discriminator", "generator_ema", "optimizer_g", "optimizer_d"]
    pairs = zip(
        *(tree_leaves([run[part] for part in parts]) for run in (ours, theirs)), strict=True
    )
    same = [torch.equal(a, b) for a, b in pairs if torch.is_tensor(a)]
    return "bit for bit" if all(same) else f"{same.count(False)} of {len(same)} tensors differ"


def killed_and_resumed():
    code = "import runpy, sys, torch; torch.use_deterministic_algorithms(True); del sys.argv[0]; "
    code += "runpy.run_path(sys.argv[0], run_name='__main__')"
    options = {"DEVICE": DEVICE, "CHECKPOINT_MINUTES": 0.0}
    given = tools.arguments(of_run("cut", **options))
    command = [sys.executable, "-c", code, train_model.__file__, *given]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while not Path("models/cut/generator_epoch_0001.pt").exists() and process.poll() is None:
        sleep(0.02)
    sleep(0.2)
    process.kill()
    process.wait()
    done = checkpoint.load("models/cut/checkpoint.pt", checkpoint.CHECKPOINT)["step"]
    return f"{alike('cut', 'straight', {'DEVICE': DEVICE})}, resumed after step {done}"


def move(name, device, epochs):
    """Let a copy of a run go on, on a device."""
    if not Path("models/moved").exists():
        shutil.copytree(f"models/{name}", "models/moved")
    return train("moved", DEVICE=device, EPOCHS=epochs)


def time_steps(size, batch, dtype, device):
    """Return the times of a step, plain and as a CUDA graph, its launches and the peak memory."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
    images = torch.randint(256, (4 * batch, 1, size, size), dtype=torch.uint8)
    model = train_model.build(train_model.network_args(images, 0), device)
    images = images.to(device)
    labels = torch.zeros(len(images), 0, device=device)
    order, sums = torch.randperm(len(images)), torch.zeros(3, device=device)

    def one(step):
        train_model.set_learning_rate(model, 1)
        pixels, own = hardware.fetch(images, labels, order[:batch])
        sums.add_(step(dataset.to_network(pixels), own))
        ema.update_ema(model.generator_ema, model.generator, 10**6, batch, 10**4)

    step = partial(train_model.train_step, model=model, dtype=dtype)
    one(step)
    plain = seconds(partial(one, step), device)
    told = f"plain {1e3 * plain:.2f} ms, {batch / plain:,.0f} images/s"
    if device.type == "cuda":
        with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as profiler:
            one(step)
            torch.cuda.synchronize()
        told += f", {sum(e.count for e in profiler.key_averages() if 'Launch' in e.key)} launches"
        graph = Step(step, capture=True)
        for _ in range(5):
            one(graph)
        replayed = seconds(partial(one, graph), device)
        told += f"; one CUDA graph {1e3 * replayed:.2f} ms, {batch / replayed:,.0f} images/s"
        told += f"; peak {torch.cuda.max_memory_allocated() >> 20} MiB"
    return told


def seconds(function, device):
    """Return the median seconds of a call over five rounds."""
    wait = torch.cuda.synchronize if device.type == "cuda" else lambda: None
    start = perf_counter()
    function()
    wait()
    times, n = [], max(1, int(SECONDS / 5 / (perf_counter() - start)))
    for _ in range(5):
        start = perf_counter()
        for _ in range(n):
            function()
        wait()
        times.append((perf_counter() - start) / n)
    return statistics.median(times)


if __name__ == "__main__":
    settings.override(globals())
    main()
