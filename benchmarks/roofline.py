"""Compare a training step with this machine's fastest convolutions, and profile its time.

    python benchmarks/roofline.py

Counts the floating-point operations of one step of train_model.py; measures the rate at which this
machine computes large convolutions and the time of a step, in turns, so that other load on the
machine affects both equally; and profiles the operations of a step. Prints markdown, writes
nothing. The images are noise: the time of no operation here depends on their content.

Every constant below can be changed here or on the command line.
"""

import shlex
import statistics
import sys
from pathlib import Path
from time import perf_counter

import numpy as np
import torch
from torch.nn.functional import conv2d
from torch.profiler import ProfilerActivity, profile
from torch.utils.flop_counter import FlopCounterMode

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
import compare
import recipes

from common import hardware, settings

# --- Measuring ---
DEVICE = "auto"  # auto: CUDA where there is one ["auto", "cpu", "cuda"]
ROUNDS = 7  # measurements of each convolution and of the step, in turns [1 to 1000]
STEPS = 10  # training steps in a round, and in the profile [1 to 1000]
BATCH_SIZE = 64  # images in a large convolution [1 to 4096]

# Large convolutions: input and output channels, kernel, stride, height and width of the input.
SHAPES = [(128, 128, 3, 1, 28), (64, 128, 4, 2, 28), (256, 256, 3, 1, 14), (128, 256, 4, 2, 14)]

# Kinds of operations: of the first one, a word is in the profiler's name of the operation.
KINDS = {
    "convolution": ["conv"],
    "linear": ["mm", "linear"],
    "batch norm": ["batch_norm", "batchnorm"],
    "activation": ["relu", "tanh", "threshold", "clamp_min"],
    "loss": ["cross_entropy", "crossentropy", "sigmoid"],
    "optimizer": ["adam", "optimizer"],
    "moving average": ["lerp"],
    "data and latents": ["index", "randperm", "normal", "randn", "div_", "sub_"],
    "copies, dtype conversions": ["copy", "aten::to", "contiguous", "clone"],
}


def main():
    device = hardware.choose_device(DEVICE)
    noise = np.random.default_rng(0).integers(256, size=(1024, 28, 28), dtype=np.uint8)
    ours = recipes.ours(noise, device, seed=0)
    operations = count(ours["step"], ours["networks"])
    total = sum(operations.values())

    convolutions = {}  # (dtype, pass, shape): function and its operations
    for dtype in (torch.bfloat16, torch.float32):
        for shape in SHAPES:
            for way, function in large_convolution(dtype, shape, device).items():
                convolutions[dtype, way, shape] = function, sum(count(function).values())
    rates, step_seconds = {key: [] for key in convolutions}, []
    for _ in range(ROUNDS):
        for key, (function, work) in convolutions.items():
            rates[key].append(work / time(function, 1, device))
        step_seconds.append(time(ours["step"], STEPS, device))

    print("| operations of a step | Gflop |\n| --- | --- |")
    for name, number in (operations | {"all": total}).items():
        print(f"| {name} | {number / 1e9:.2f} |")
    rate = total / statistics.median(step_seconds)
    milliseconds = compare.median_and_range([1000 * seconds for seconds in step_seconds], 1)
    print(f"\nA step of {ours['batch']} images in {ours['dtype']}: {milliseconds} ms, ", end="")
    print(f"{rate / 1e9:.0f} Gflop/s.\n")

    print("| large convolutions | Gflop/s | shape | share that a step reaches |")
    print("| --- | --- | --- | --- |")
    medians = {key: statistics.median(measured) for key, measured in rates.items()}
    for kind in dict.fromkeys(key[:2] for key in medians):
        best, shape = max((value, key[2]) for key, value in medians.items() if key[:2] == kind)
        inputs, outputs, kernel, stride, pixels = shape
        shape = f"{inputs} to {outputs}, {kernel}x{kernel}, stride {stride}, {pixels} pixels"
        kind = f"{str(kind[0]).removeprefix('torch.')}, {kind[1]}"
        print(f"| {kind} | {best / 1e9:.0f} | {shape} | {rate / best:.0%} |")

    print("\n| time of a step | share | ms a step | most of it |\n| --- | --- | --- | --- |")
    times = profile_step(ours["step"], device)
    total_time = sum(sum(names.values()) for names in times.values())
    for kind, names in times.items():
        most = ", ".join(sorted(names, key=names.get)[:-4:-1])
        own = sum(names.values())
        print(f"| {kind} | {own / total_time:.1%} | {own:.2f} | {most} |")
    print(f"\nMedian (range) of {ROUNDS} rounds, {STEPS} steps in each. ", end="")
    print(f"{compare.machine(device)}.\n\n    python {shlex.join(sys.argv)}")


def count(function, networks=None):
    """Return the floating-point operations of function(), {network and kind: number}.

    A multiplication and an addition are two operations; only convolutions and matrix products are
    counted. networks: {name: module}, of different classes; None counts all operations together.
    """
    with FlopCounterMode(display=False) as counter:
        function()
    by_module = counter.get_flop_counts()
    titles = {type(module).__name__: name for name, module in (networks or {}).items()}
    operations = {}
    for module, title in (titles or {"Global": "all"}).items():
        for operation, number in by_module[module].items():
            way = "backward" if "backward" in str(operation) else "forward"
            kind = f"convolutions {way}" if "conv" in str(operation) else "linear layers, both ways"
            key = f"{title}, {kind}"
            operations[key] = operations.get(key, 0) + number
    return operations


def large_convolution(dtype, shape, device):
    """Return {"forward": function, "forward and backward": function} of a convolution."""
    inputs, outputs, kernel, stride, pixels = shape
    layout = {"device": device, "dtype": dtype, "memory_format": torch.channels_last}
    images = torch.randn(BATCH_SIZE, inputs, pixels, pixels).to(**layout).requires_grad_()
    weights = torch.randn(outputs, inputs, kernel, kernel).to(**layout).requires_grad_()

    def forward():
        return conv2d(images, weights, stride=stride, padding=1)

    gradient = torch.randn_like(forward())

    def forward_and_backward():
        torch.autograd.grad(forward(), (images, weights), gradient)

    return {
        "forward": torch.no_grad()(forward),
        "forward and backward": forward_and_backward,
    }


def time(function, times, device):
    """Return the mean seconds of a call, with a GPU idle before the first and after the last."""
    wait = torch.cuda.synchronize if device.type == "cuda" else lambda: None
    wait()
    start = perf_counter()
    for _ in range(times):
        function()
    wait()
    return (perf_counter() - start) / times


def profile_step(step, device):
    """Return {kind: {operation: milliseconds in a step, without the operations it calls}}."""
    activities = [ProfilerActivity.CPU]
    activities += [ProfilerActivity.CUDA] if device.type == "cuda" else []
    with profile(activities=activities) as profiler:
        time(step, STEPS, device)
    times = {kind: {} for kind in [*KINDS, "other"]}
    for event in profiler.key_averages():
        own = event.self_device_time_total if device.type == "cuda" else event.self_cpu_time_total
        words = (kind for kind, words in KINDS.items() for w in words if w in event.key.lower())
        times[next(words, "other")][event.key] = own / 1000 / STEPS
    return times


if __name__ == "__main__":
    settings.override(globals())
    main()
