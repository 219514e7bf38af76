"""How many threads to compute with on a computer that may be busy with other programs.

The threads of an operation wait for the last of them. One that the scheduler has put aside, because
another program has its core, stops all: two threads are then slower than one.
"""

import os
import re
import time
from pathlib import Path

import psutil
import torch

from common.hardware import processes

ROUNDS = 3  # of timing, after one that builds what later ones find built


def choose_threads(wanted, trial, kept=0):
    """Set the number of threads of torch. Returns the number and, in words, why.

    wanted: THREADS of a script, 0: auto; trial: a function to time, which changes nothing that
    counts; kept: the number with which a run began, or 0.
    """
    default = torch.get_num_threads()
    number, why = default, "OMP_NUM_THREADS" if "OMP_NUM_THREADS" in os.environ else ""
    if wanted:
        number, why = wanted, "THREADS"
    elif not why and processes() == 1:
        idle, cores = idle_cores()
        number, why = max(1, min(default, round(idle))), f"{idle:.1f} of {cores} cores are idle"
        times = measure(trial, {number, kept or 1})
        best = min(times, key=times.get)
        if kept:
            number, why = kept, "as when the run began"
            if times[kept] > 2 * times[best]:
                gain = f"{times[kept] / times[best]:.1f} times as fast"
                why += f"; --THREADS={best} would now be {gain}"
        elif len(times) > 1:
            number = best
            why += "; threads and time: " + ", ".join(f"{n} x {t:.3f} s" for n, t in times.items())
    torch.set_num_threads(number)
    return number, why


def measure(trial, numbers):
    """Return {number of threads: mean seconds of a trial}, timed in turns; {n: 0} for one n."""
    times = dict.fromkeys(sorted(numbers), 0.0)
    for turn in range(ROUNDS + 1) if len(times) > 1 else ():
        for number in times:
            torch.set_num_threads(number)
            start = time.perf_counter()
            trial()
            times[number] += (turn > 0) * (time.perf_counter() - start) / ROUNDS
    return times


def idle_cores(seconds=0.3):
    """Return how many cores nobody uses, a float, and how many this process may use.

    A container's share of the processor time is respected.
    """
    busy = psutil.cpu_percent(seconds, percpu=True)
    allowed = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else range(len(busy))
    limit, quota = float(len(allowed)), Path("/sys/fs/cgroup/cpu.max")
    if quota.exists() and re.fullmatch(r"\d+ \d+", text := quota.read_text().strip()):
        limit = min(limit, int(text.split()[0]) / int(text.split()[1]))
    # A container can number its cores anew: one that is not listed counts as idle.
    idle = sum(1 - (busy[core] if core < len(busy) else 0) / 100 for core in allowed)
    return min(idle, limit), len(allowed)
