"""Which device, dtype and number of threads are taken, and what is said about it.

There is no GPU here: torch.cuda is replaced by what it would answer.
"""

import contextlib
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import refusal, rewrite

from common import errors, hardware, log, threads

CHECKPOINT = Path("models/phantom/checkpoint.pt")


# Devices


def test_the_tests_see_no_gpu():
    assert os.environ["CUDA_VISIBLE_DEVICES"] == "" and not torch.cuda.is_available()


NO_KERNELS = (
    "CUDA error: no kernel image is available for execution on the device\n"
    "CUDA kernel errors might be asynchronously reported at some other API call"
)
TROUBLES = {  # built with CUDA, a device is there, what the first kernel raises, what is said
    "no CUDA": (False, False, AssertionError("Torch not compiled with CUDA enabled"), "is built w"),
    "no driver": (True, False, RuntimeError("Found no NVIDIA driver on your system."), "no NVIDIA"),
    "an old GPU": (True, True, RuntimeError(NO_KERNELS), "no kernels for Tesla P100, only for sm_"),
    "a busy GPU": (True, True, RuntimeError("CUDA error: devices are busy"), "does not answer"),
}


@pytest.fixture(params=TROUBLES.values(), ids=TROUBLES)
def trouble(request, monkeypatch):
    """A torch whose first kernel fails. Returns whether a device is there, and the cause."""
    built, there, error, cause = request.param

    def ones(*_, **__):
        raise error

    monkeypatch.setattr(torch, "ones", ones)
    monkeypatch.setattr(torch.backends.cuda, "is_built", lambda: built)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: there)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda *_: "Tesla P100")
    monkeypatch.setattr(torch.cuda, "get_arch_list", lambda: ["sm_75", "sm_80"])
    return there, cause


def test_a_gpu_that_does_not_work_is_named_with_the_cause(trouble):
    message = refusal(hardware.choose_device, "cuda")
    assert message.startswith("error: DEVICE=cuda: ") and trouble[1] in message
    assert message.endswith('Legal are "cpu" and "auto"')


def test_auto_then_takes_the_cpu_and_says_why_if_there_is_a_gpu(trouble, capsys):
    there, cause = trouble
    assert hardware.choose_device("auto").type == "cpu"
    said = capsys.readouterr().out
    assert there == ("the CPU is used, not the GPU: " in said and cause in said)


def test_a_gpu_that_computes_is_taken(monkeypatch):
    ones = torch.ones
    monkeypatch.setattr(torch, "ones", lambda n, device: ones(n))
    assert hardware.choose_device("auto").type == "cuda"


def test_a_second_gpu_that_would_be_idle_is_told(monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _: "Tesla T4")
    described = hardware.describe(torch.device("cuda"))
    assert described == "cuda, Tesla T4, 1 of 2 (torchrun --nproc-per-node=2 uses all)"


def test_bfloat16_on_a_device_that_emulates_it_is_told(run, train, monkeypatch):
    small = train("--EPOCHS=1", "--DTYPE=bfloat16")
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: False)
    resumed = run("train_model.py", *small, "--EPOCHS=2")
    assert resumed.status == 0 and "\ndtype      bfloat16\n" in resumed.text
    assert "bfloat16 is emulated on this device" in resumed.text
    assert "--DTYPE=float32" in resumed.text
    other = run("train_model.py", *small, "--EPOCHS=1", "--RUN_NAME=other")
    assert other.status == 0 and "emulated" not in other.text  # auto takes float32


@pytest.mark.parametrize("library", ["CUBLAS", "CUDNN"])
def test_a_library_without_memory_names_the_batch_size(library):
    error = RuntimeError(f"{library} error: {library}_STATUS_ALLOC_FAILED when calling `create`")
    with (
        pytest.raises(errors.UserError, match="too little memory. Lower BATCH_SIZE"),
        errors.short_of_memory("BATCH_SIZE"),
    ):
        raise error


@pytest.mark.parametrize("on_gpu", [True, False])
def test_images_are_fetched_without_waiting_for_the_gpu(monkeypatch, on_gpu):
    """Tensors of a class of their own say that they lie on a GPU."""

    class OnGpu(torch.Tensor):
        is_cuda = True

    moved = []

    def to(tensor, device, non_blocking=False):
        moved.append((tensor.shape, non_blocking))
        return tensor

    images, labels = torch.arange(10).view(10, 1), torch.arange(10).view(10, 1).as_subclass(OnGpu)
    images = images.as_subclass(OnGpu) if on_gpu else images
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda tensor: tensor)
    monkeypatch.setattr(torch.Tensor, "to", to)
    indices = torch.tensor([7, 2])
    pixels, own_labels = hardware.fetch(images, labels, indices)
    assert pixels.tolist() == own_labels.tolist() == [[7], [2]]
    shapes = [indices.shape] if on_gpu else [indices.shape, pixels.shape]
    assert moved == [(shape, True) for shape in shapes]


def test_a_cpu_keeps_the_random_state_of_the_gpu_for_later(run, train):
    small = train("--EPOCHS=1")
    state = torch.arange(16, dtype=torch.uint8)
    saved = torch.load(CHECKPOINT, weights_only=True)
    rewrite(CHECKPOINT, saved | {"rng_cuda": state})
    assert run("train_model.py", *small, "--EPOCHS=2").status == 0
    assert torch.equal(torch.load(CHECKPOINT, weights_only=True)["rng_cuda"], state)


def test_a_rate_on_a_gpu_becomes_a_number_on_a_cpu(run, train):
    small = train("--EPOCHS=1")
    saved = torch.load(CHECKPOINT, weights_only=True)
    for name in ("optimizer_g", "optimizer_d"):
        saved[name]["param_groups"][0]["lr"] = torch.tensor(1e-4)
    rewrite(CHECKPOINT, saved)
    assert run("train_model.py", *small, "--EPOCHS=2").status == 0
    rate = torch.load(CHECKPOINT, weights_only=True)["optimizer_g"]["param_groups"][0]["lr"]
    assert isinstance(rate, float)


@pytest.mark.gpu
def test_what_is_claimed_of_a_gpu_holds_on_this_one(gpu_environment, start, tmp_path):
    process = start("benchmarks/on_gpu.py", env=gpu_environment, cwd=tmp_path)
    text, _ = process.communicate(timeout=600)
    assert process.returncode == 0 and "differ" not in text, text


# Threads


@pytest.fixture
def two_cores(monkeypatch):
    """Two cores, of which nobody uses two; steps take as long as times says, by threads."""
    state = {"threads": 2, "now": 0.0, "idle": 2.0, "times": {1: 2.0, 2: 1.0}}
    monkeypatch.delenv("OMP_NUM_THREADS")
    monkeypatch.setattr(torch, "get_num_threads", lambda: state["threads"])
    monkeypatch.setattr(torch, "set_num_threads", lambda n: state.update(threads=n))
    monkeypatch.setattr(threads.time, "perf_counter", lambda: state["now"])
    monkeypatch.setattr(threads, "idle_cores", lambda: (state["idle"], 2))

    def trial():
        state["now"] += state["times"][state["threads"]]

    return state, trial


def test_the_faster_number_of_threads_is_taken_and_told(two_cores):
    state, trial = two_cores
    number, why = threads.choose_threads(0, trial)
    assert number == state["threads"] == 2
    assert why == "2.0 of 2 cores are idle; threads and time: 1 x 2.000 s, 2 x 1.000 s"
    state["times"] = {1: 1.0, 2: 6.0}
    assert threads.choose_threads(0, trial)[0] == state["threads"] == 1


def test_where_one_core_is_idle_there_is_nothing_to_time(two_cores):
    state, trial = two_cores
    state["idle"] = 0.2
    assert threads.choose_threads(0, trial) == (1, "0.2 of 2 cores are idle")
    assert state["now"] == 0


def test_what_the_user_says_counts(two_cores, monkeypatch):
    state, trial = two_cores
    assert threads.choose_threads(3, trial, kept=2) == (3, "THREADS")
    state["threads"] = 2
    monkeypatch.setenv("OMP_NUM_THREADS", "2")
    assert threads.choose_threads(0, trial, kept=1) == (2, "OMP_NUM_THREADS")
    assert state["now"] == 0


def test_a_run_keeps_its_threads_and_says_if_that_is_slow_now(two_cores):
    state, trial = two_cores
    assert threads.choose_threads(0, trial, kept=2) == (2, "as when the run began")
    state.update(idle=0.5, times={1: 1.0, 2: 6.0})
    number, why = threads.choose_threads(0, trial, kept=2)
    assert number == state["threads"] == 2
    assert why == "as when the run began; --THREADS=1 would now be 6.0 times as fast"


def test_a_checkpoint_remembers_the_threads(run, small):
    small += ["--METRIC_IMAGES=0", "--EPOCHS=1"]
    before = torch.get_num_threads()
    try:
        told = run("train_model.py", *small, "--THREADS=2").text
    finally:
        torch.set_num_threads(before)
    assert "device     cpu, 2 threads (THREADS)\n" in told
    assert torch.load(CHECKPOINT, weights_only=True)["settings"]["THREADS"] == 2


def test_idle_cores_are_counted_within_what_the_process_may_use(monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1})
    monkeypatch.setattr(threads.psutil, "cpu_percent", lambda *_, **__: [90.0, 10.0, 1.0])
    assert threads.idle_cores() == (pytest.approx(1.0), 2)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {1, 7})  # a container's own numbers
    assert threads.idle_cores() == (pytest.approx(1.9), 2)


def test_without_counters_all_cores_are_idle(monkeypatch):
    monkeypatch.setattr(threads.psutil, "cpu_percent", lambda *_, **__: [])
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1, 2})
    monkeypatch.setattr(threads, "Path", lambda _: Path("no-such-file"))  # no container's share
    assert threads.idle_cores() == (3.0, 3)


def test_idle_cores_and_free_memory_are_those_of_this_machine():
    idle, cores = threads.idle_cores(0.05)
    assert 0 <= idle <= cores == len(os.sched_getaffinity(0))
    assert 2**20 < hardware.free_memory() < 2**50


# Speed


def test_a_fall_of_the_speed_is_told_once_with_what_helps(monkeypatch):
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    speed = log.Speed()
    lines = [speed.falls(64, seconds) for seconds in (0.1,) * 1000 + (1.0,) * 200]
    (line,) = [line for line in lines if line]
    assert line.startswith("64 images/s, 640 before: ") and "--THREADS=1" in line


def test_a_steady_speed_is_not_told():
    speed = log.Speed()
    random = np.random.default_rng(0)
    assert not any(speed.falls(64, seconds) for seconds in random.uniform(0.05, 0.15, 5000))


def test_a_step_is_timed_without_changing_the_run(run, small, monkeypatch):
    """The throwaway steps come before the seed is set, on networks of their own."""
    small += ["--METRIC_IMAGES=0", "--EPOCHS=1"]
    assert run("train_model.py", *small).status == 0
    before = torch.get_num_threads()
    monkeypatch.delenv("OMP_NUM_THREADS")
    monkeypatch.setattr(threads, "idle_cores", lambda: (2.0, 2))
    measure = threads.measure
    monkeypatch.setattr(threads, "measure", lambda trial, _: measure(trial, {1, 2}) | {1: 0.0})
    with contextlib.ExitStack() as stack:
        stack.callback(torch.set_num_threads, before)
        timed = run("train_model.py", *small, "--RUN_NAME=timed")
    assert timed.status == 0 and "; threads and time: 1 x 0.000 s, 2 x " in timed.text
    weights = [
        torch.load(f"models/{name}/checkpoint.pt", weights_only=True)["generator"]
        for name in ("phantom", "timed")
    ]
    assert all(torch.equal(weights[0][key], weights[1][key]) for key in weights[0])
