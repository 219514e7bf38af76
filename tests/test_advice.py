"""Advice that is true: a printed command, run as it stands, does what the line says."""

import os
import re
import shlex
import shutil
from pathlib import Path

import pytest
import torch
from conftest import REPO, rewrite
from test_report import SHORT

from common import runs, script
from report import plotting, sections

SAYS = {  # words that the picture itself has to say
    "copies.png": "distance, the root mean square of the pixels, in grey levels; no.: the index in",
    "copies_held_out.png": "their distance, the root mean square of the pixels, in grey levels",
    "failures.png": "furthest from the training set; below each, its nearest training image",
    "most_alike_synthetic.png": "below each pair, its distance, the root mean square",
    "grey_levels": "how often each grey level occurs",
    "distances": "how far images are from the training set",
    "spectrum": "amplitude by spatial frequency",
    "metrics": "100 synthetic against 100 phantoms\ndashed: phantom vs phantom",
}
QUICK = [*SHORT, "--TRAINING=False"]


@pytest.fixture
def follow(run):
    """Run the command that a text advises, and return what it prints."""

    def run_line(text):
        (line,) = re.findall(r"python \S*generate_report\.py.*", text.splitlines()[-1])
        _, path, *arguments = shlex.split(line)
        assert Path(path).resolve() == REPO / "generate_report.py"
        return run("generate_report.py", *arguments, *QUICK).text

    return run_line


def test_a_run_in_folders_of_other_names_is_the_one_reported(small, train, run, follow):
    train("--EPOCHS=1", name="older")  # in models/, where a report looks first
    where = ["--MODELS_DIR=my models", "--IMAGES_DIR=their images", "--RUN_NAME=r2"]
    for _ in range(2):  # when it ends, and when it had ended before
        text = run("train_model.py", *small, "--EPOCHS=1", *where).text
        assert "their images/r2/report.html" in follow(text), text
        shutil.rmtree("their images")
    about = run("generate_images.py", *where, "--OUT=out", "--N_IMAGES=2")
    assert about.status == 0, about.text
    text = Path("out/ABOUT.txt").read_text()
    (line,) = [line for line in text.splitlines() if "generate_report.py" in line]
    assert "their images/r2/report.html" in follow(line)


def test_a_finished_run_is_reported_though_another_was_trained_since(small, train, follow, run):
    train("--EPOCHS=1", name="first")
    train("--EPOCHS=2", name="second")
    text = run("train_model.py", *small, "--RUN_NAME=first", "--EPOCHS=1").text
    assert "images/first/report.html" in follow(text)


def test_a_command_says_where_the_script_is(monkeypatch, tmp_path):
    monkeypatch.chdir(REPO)
    assert script.command("generate_report.py") == "python generate_report.py"
    assert script.command("generate_report.py", MODELS_DIR="models", RUN_NAME="a b").endswith(
        "generate_report.py '--RUN_NAME=a b'"
    )
    monkeypatch.chdir(REPO / "benchmarks")
    assert script.command("generate_report.py") == "python ../generate_report.py"
    monkeypatch.chdir(tmp_path)
    _, path = shlex.split(script.command("generate_report.py"))
    assert Path(path).samefile(REPO / "generate_report.py")


def test_a_copy_of_a_run_is_not_the_one_trained_last(train):
    train("--EPOCHS=1", name="old")
    train("--EPOCHS=1", name="new")
    for name, time in {"old": 1e9, "new": 2e9}.items():
        path = Path(f"models/{name}/checkpoint.pt")
        rewrite(path, torch.load(path, weights_only=True) | {"saved_at": time})
    shutil.copytree("models/old", "models/copy")
    shutil.copytree("models/new", "models/zz")  # as old as new, but written later
    os.utime("models/new/checkpoint.pt", (1, 1))
    assert runs.find_run("models", "") == Path("models/new")


def test_a_pipe_in_the_place_of_a_checkpoint_is_not_waited_for(train):
    train("--EPOCHS=1", name="ours")
    Path("models/pipe").mkdir()
    os.mkfifo("models/pipe/checkpoint.pt")
    assert runs.find_run("models", "") == Path("models/ours")


def test_an_export_names_its_pictures(train, run):
    train("--EPOCHS=1")
    text = run("generate_images.py", "--FORMAT=png", "--N_IMAGES=12").text
    assert "ABOUT.txt, labels.csv, 0000000.png to 0000011.png (12 images)" in text


def test_a_picture_that_stands_alone_says_what_it_shows(train, run, monkeypatch):
    train("--EPOCHS=1")
    told, titles = {}, []
    save_tiles, save_curves, set_title = (
        getattr(plotting, name) for name in ("save_tiles", "save_curves", "set_title")
    )

    def note_tiles(path, heading, *arguments, **options):
        told[path.name] = heading
        return save_tiles(path, heading, *arguments, **options)

    def note_curves(path, draw, *arguments):
        page = save_curves(path, draw, *arguments)
        told[path.name] = titles[-1]
        return page

    monkeypatch.setattr(plotting, "save_tiles", note_tiles)
    monkeypatch.setattr(plotting, "save_curves", note_curves)
    monkeypatch.setattr(
        plotting, "set_title", lambda a, text: titles.append(text) or set_title(a, text)
    )
    assert run("generate_report.py", "--PLAY=False", "--LATENT_SPACE=False").status == 0
    assert not {name: told.get(name) for name, words in SAYS.items() if words not in told[name]}


def test_all_epochs_are_shown_that_fit():
    defaults = (REPO / "generate_report.py").read_text()
    rows = int(re.search(r"^PROGRESS_ROWS = (\d+)", defaults, re.MULTILINE)[1])
    assert sections.evenly_spaced(range(1, 11), rows) == [*range(1, 11)]  # README's first run
    assert len(sections.evenly_spaced(range(1, 51), rows)) == rows
