"""The benchmarks as a reader runs them, as briefly as can be. Nothing here holds for a speed."""

import csv
import importlib.util
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import REPO, write_phantoms

import train_model

RECIPES = ["ours", "pytorch_example"]
if importlib.util.find_spec("tensorflow"):
    RECIPES.insert(1, "keras_tutorial")


@pytest.fixture
def benchmark(tmp_path, monkeypatch):
    """Run a benchmark in an empty folder, `python benchmarks/script arguments`, to its end."""
    monkeypatch.chdir(tmp_path)

    def run_benchmark(script, *arguments):
        command = [sys.executable, str(REPO / "benchmarks" / script), *arguments]
        return subprocess.run(command, capture_output=True, text=True, timeout=300)

    return run_benchmark


@pytest.fixture
def few_phantoms(benchmark, phantom_dir):
    """256 phantoms of each split in the folder in which the benchmark runs."""
    write_phantoms(phantom_dir, 256)


def test_recipes_are_compared_on_equal_time(benchmark, few_phantoms):
    wanted = ["--DATASET=phantom", f"--RECIPES={','.join(RECIPES)}", "--N_IMAGES=64"]
    result = benchmark("compare.py", *wanted, "--MINUTES=0.02", "--TURN_SECONDS=0.6")
    assert result.returncode == 0, result.stderr
    out = Path("images/benchmarks/compare")
    assert {path.name for path in out.iterdir()} == {
        "compare.md",
        "compare.csv",
        "compare.png",
        "compare.pdf",
        "compare_samples.png",
        "samples",
    }
    text = (out / "compare.md").read_text()
    assert text in result.stdout
    for words in ("N = 64", "k = 5", "seed 0", f"torch {torch.__version__.split('+')[0]}"):
        assert words in text
    assert "benchmarks/compare.py --DATASET=phantom" in text  # the command that repeats it
    for title in ("ours, ", "PyTorch example, float32", "*other real images*", "*Gaussian"):
        assert f"\n| {title}" in text

    with open(out / "compare.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    turns = [(row["turn"], row["recipe"]) for row in rows]
    assert sorted(turns) == sorted((turn, name) for turn in "12" for name in RECIPES)
    for row in rows:
        assert int(row["images"]) == 64 * int(row["steps"]) > 0
        assert float(row["seconds"]) >= 0.6 * int(row["turn"])
        assert 100 < float(row["peak_memory_mb"]) < 100_000
        assert 0 <= float(row["coverage"]) <= 1
        samples = np.load(out / "samples" / f"{row['recipe']}_000{row['turn']}.npy")
        assert samples.shape == (64, 1, 28, 28) and samples.dtype == np.uint8
        assert samples.std() > 0


def test_without_tensorflow_one_line_says_what_to_install(benchmark):
    if "keras_tutorial" in RECIPES:
        pytest.skip("TensorFlow is installed")
    result = benchmark("compare.py")
    assert result.returncode == 1
    assert result.stderr.startswith("error: ") and result.stderr.count("\n") == 1
    assert "requirements-bench.txt" in result.stderr and "--RECIPES=ours" in result.stderr


def test_scaling_tells_what_a_number_of_images_costs(benchmark):
    result = benchmark("scaling.py", "--SIZES=192", "--PIXELS=64,28", "--REPEATS=1")
    assert result.returncode == 0, result.stderr
    header, _, larger, line = result.stdout.splitlines()[:4]
    assert larger.startswith("| 192 | 64 | 3 |")
    row = dict(zip(header.strip("| ").split(" | "), line.strip("| ").split(" | "), strict=True))
    assert row["images"] == "192" and row["steps"] == "3"
    assert 0 < float(row["after imports"]) < float(row["s to first step"])
    assert 0 < float(row["data handling"].rstrip("%")) < 100
    assert 0 < float(row["metrics"].rstrip("%")) < 100
    assert float(row["s per epoch"]) > 0
    assert 100 < float(row["peak memory, MB"].replace(",", "")) < 100_000
    assert list(Path().iterdir()) == []  # nothing is left behind


ABLATIONS = ["--DATASET=phantom", "--EPOCHS=1", "--SEEDS=1", "--N_IMAGES=100"]


@pytest.fixture
def unchanged():
    """Put train_model.py back as it was before a variant of it was trained in this process."""
    before = dict(vars(train_model))
    yield
    vars(train_model).update(before)


def test_variants_are_trained_once_and_compared(run, benchmark, few_phantoms, unchanged):
    names = ["as shipped", "generator from 4x4"]
    for name in names:
        assert (
            run("benchmarks/ablations.py", *ABLATIONS, f"--VARIANTS={name}", "--SEED=0").status == 0
        )
    out = Path("images/benchmarks/ablations")
    trained = {path: path.stat().st_mtime_ns for path in out.rglob("checkpoint.pt")}
    assert len(trained) == 2

    result = run("benchmarks/ablations.py", *ABLATIONS, f"--VARIANTS={', '.join(names)}")
    assert result.status == 0, result.text
    assert all(path.stat().st_mtime_ns == time for path, time in trained.items())
    with open(out / "results.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["variant"] for row in rows] == names
    assert rows[0]["frechet"] != rows[1]["frechet"]
    for row in rows:
        assert f"\n| {row['variant']} | {float(row['precision']):.2f} |" in result.text


def test_a_variant_that_is_unknown_or_fails_is_named(run, benchmark, few_phantoms):
    unknown = run("benchmarks/ablations.py", *ABLATIONS, "--VARIANTS=bigger")
    assert unknown.status == 1 and "legal are as shipped, " in unknown.text

    folder = Path("images/benchmarks/ablations/models/phantom-1-as-shipped-0")
    folder.mkdir(parents=True)
    (folder / "notes.txt").write_text("no run")
    failed = run("benchmarks/ablations.py", *ABLATIONS, "--VARIANTS=as shipped")
    assert failed.status == 1 and "as shipped, seed 0, failed with status 1: see" in failed.text
    assert "no checkpoint.pt to resume" in folder.with_suffix(".txt").read_text()


def test_the_checks_for_a_gpu_are_rehearsed_on_a_cpu(benchmark):
    small = ["--TRAIN_FRACTION=0.02", "--SIZES=28", "--BATCH_SIZES=8", "--SECONDS=0.01"]
    result = benchmark("on_gpu.py", "--DEVICE=cpu", *small)
    assert result.returncode == 0, result.stderr
    assert "failed" not in result.stdout and "differ" not in result.stdout, result.stdout
    for check in ("killed and resumed, the same kernels | bit for bit", "bfloat16 | plain "):
        assert check in result.stdout


def test_a_training_is_measured_beside_busy_programs(benchmark):
    result = benchmark("busy.py", "--BUSY=0,1", "--THREADS=0,1", "--SECONDS=0.2", "--REPORT=False")
    assert result.returncode == 0, result.stderr
    lines = result.stdout.splitlines()
    assert lines[0] == "| busy programs | auto | 1 threads |"
    for number, line in enumerate(lines[2:4]):
        assert re.fullmatch(rf"\| {number} \| [\d,]+ \([12] threads?\) \| [\d,]+ \|", line), line
