"""Surroundings never matter: disks, styles, rights, odd names, locks, leftovers, slow servers."""

import contextlib
import errno
import fcntl
import os
import resource
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import matplotlib
import numpy as np
import pytest
import torch
from conftest import REPO, refusal

from common import checkpoint, files, runs
from common.data import download
from common.errors import UserError
from report import plotting

ESCAPE = "\x1b[31m"


@pytest.fixture(autouse=True)
def working_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


# Disks

WRITERS = {
    "picture": lambda path: plotting.write_png(path, np.zeros((9, 9, 3), np.uint8)),
    "curves": lambda path: plotting.save_curves(path, figure, "curves"),
    "animation": lambda path: plotting.write_gif(
        path, [np.zeros((9, 9, 3), np.uint8)] * 2, 9, [9] * 2
    ),
    "table": lambda path: files.write_csv(path, [{"epoch": 1}] * 100),
    "checkpoint": lambda path: checkpoint.save(path, {"a": torch.zeros(100)}),
}


def figure():
    rows = [{"epoch": 1, "loss": 0.5}]
    drawn, (upper, lower) = plotting.over_epochs("losses")
    plotting.plot(upper, rows, "loss", "loss", "C0")
    lower.set_ylim(0, 1)
    return drawn


@pytest.mark.parametrize("write", WRITERS.values(), ids=WRITERS)
def test_a_full_disk_is_said_in_a_line_and_leaves_nothing(write):
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (40, hard))
    try:
        message = refusal(write, Path("out/result"))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert "error: out/result" in message and "cannot be written: File too large" in message
    assert list(Path("out").iterdir()) == []


# Drawing

RC = {
    "usetex": {"text.usetex": True},
    "sketch": {"path.sketch": (5, 100, 2)},
    "sizes": {"lines.linewidth": 9, "font.size": 20, "axes.grid": True, "figure.dpi": 30},
    "files": {"savefig.bbox": "tight", "savefig.dpi": 30, "svg.fonttype": "none"},
}


def draw(folder):
    plotting.save_curves(Path(folder, "curves"), figure, "curves")
    cells = [("a caption", np.zeros((9, 9, 4), np.uint8))] * 2
    plotting.save_tiles(Path(folder, "tiles.png"), "a heading", cells, 2, 3, "tiles")
    return {path.name: path.read_bytes() for path in Path(folder).iterdir()}


@pytest.mark.parametrize("rc", RC.values(), ids=RC)
def test_the_style_of_the_user_changes_no_byte(rc):
    plain = draw("plain")
    with matplotlib.rc_context(rc):
        assert draw("styled") == plain


def test_no_configuration_of_matplotlib_keeps_a_script_from_starting(monkeypatch):
    Path("rc").write_bytes(b"font.size: 20\nlines.nonsense: \xff\n")
    code = f"import sys; sys.path.insert(0, {str(REPO)!r}); from common import script; "
    code += "script.prepare(); import matplotlib; print(matplotlib.rcParams['font.size'])"
    monkeypatch.setenv("MPLBACKEND", "nonsense")
    monkeypatch.setenv("MATPLOTLIBRC", "rc")
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (done.stdout, done.stderr) == ("10.0\n", "")


def test_the_curves_of_one_epoch_have_whole_numbers_and_a_whole_point():
    drawn = figure()
    drawn.draw_without_rendering()
    upper, lower = drawn.axes
    low, high = lower.get_xlim()
    ticks = [tick for tick in lower.get_xticks() if low <= tick <= high]
    assert ticks == [1]
    assert not upper.lines[0].get_clip_on()


# Rights and names


@contextlib.contextmanager
def powerless():
    """Be nobody in particular: root may read everything."""
    is_root = os.geteuid() == 0
    if is_root:
        os.seteuid(65534)
    try:
        yield
    finally:
        if is_root:
            os.seteuid(0)


def said(run, script, *arguments):
    """Run a script that must end with one line, and return that line."""
    result = run(script, *arguments)
    assert result.status == 1 and "Traceback" not in result.text
    assert result.text.count("error: ") == 1
    return result.text[result.text.index("error: ") :]


@pytest.mark.parametrize(
    ("script", "name"),
    [
        ("train_model.py", "DATA_DIR"),
        ("train_model.py", "MODELS_DIR"),
        ("train_model.py", "IMAGES_DIR"),
        ("generate_report.py", "MODELS_DIR"),
        ("generate_images.py", "MODELS_DIR"),
    ],
)
def test_a_name_that_is_too_long_is_said(run, script, name):
    arguments = ["--DATASET=phantom"] if script == "train_model.py" else []
    message = said(run, script, *arguments, f"--{name}={'x' * 256}")
    assert "File name too long. Choose a shorter name" in message


@pytest.mark.parametrize("depth", [1, 2])
@pytest.mark.parametrize("script", ["generate_report.py", "generate_images.py"])
def test_no_rights_is_not_no_run(run, script, depth):
    Path("models/run").mkdir(parents=True)
    Path("models/run/checkpoint.pt").touch()
    Path(["models", "models/run"][depth - 1]).chmod(0)
    with powerless():
        message = said(run, script)
    assert "error: models" in message and "Permission denied. Change the permissions" in message


@pytest.mark.parametrize("script", ["generate_report.py", "generate_images.py"])
def test_a_run_of_another_name_than_legal_is_told_to_be_renamed(run, train, script):
    train("--EPOCHS=1", name="my best run (1)")
    result = run(script)
    assert result.status == 1
    assert "models/my best run (1) was trained last, and its name is not legal" in result.text


def test_a_run_without_rights_does_not_hide_the_others(monkeypatch):
    for name in ("theirs", "ours"):
        Path("models", name).mkdir(parents=True)
        Path("models", name, "checkpoint.pt").touch()
    stat = Path.stat

    def refuse(path, **options):
        if "theirs" in str(path):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))
        return stat(path, **options)

    monkeypatch.setattr(Path, "stat", refuse)
    assert runs.find_run("models", "") == Path("models/ours")


@pytest.mark.parametrize("value", [ESCAPE, "a\nb", "a\rb", "\x9b31m"])
def test_no_control_character_reaches_the_terminal(run, value):
    for argument in (f"--DATA_DIR={value}", f"--RUN_NAME={value}", f"--DATASET={value}", value):
        assert said(run, "train_model.py", argument).rstrip("\n").isprintable()


def test_a_run_in_a_folder_whose_name_is_no_text_can_be_resumed(run, small):
    small += ["--METRIC_IMAGES=0", "--MODELS_DIR=" + os.fsdecode(b"m\xe4r")]
    assert run("train_model.py", *small, "--EPOCHS=1").status == 0
    assert run("train_model.py", *small, "--EPOCHS=2").status == 0


# Locks


@pytest.mark.parametrize("name", ["ENOLCK", "ENOSYS", "ENOTSUP", "EOPNOTSUPP"])
def test_a_file_system_without_locks_is_said(name, monkeypatch, capsys):
    def refuse(*_):
        raise OSError(getattr(errno, name), os.strerror(getattr(errno, name)))

    monkeypatch.setattr(fcntl, "flock", refuse)
    try:
        with files.lock(Path("models/run")):
            message = capsys.readouterr().out  # a file can do for a lock
    except UserError as error:
        message = str(error)
    assert "file system" in message and "has no locks" in message
    assert "models/.run.lock" in message and "permissions" not in message


def test_a_lock_names_its_file_and_its_holder():
    with files.lock(Path("models/run")):
        message = refusal(files.lock, Path("models/run"))
    assert f"(process {os.getpid()} on {os.uname().nodename})" in message
    assert message.endswith("remove models/.run.lock")


def test_a_stale_lock_of_another_host_names_it(monkeypatch):
    def refuse(*_):
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))

    monkeypatch.setattr(fcntl, "flock", refuse)
    Path("models").mkdir()
    Path("models/.run.lock").write_text("4711\nnode7\n")
    message = refusal(files.lock, Path("models/run"))
    assert "(process 4711 on node7)" in message and message.endswith("remove models/.run.lock")


def test_what_another_process_makes_is_waited_for(capsys):
    made, waiting = [], threading.Event()

    def make(number):
        waiting.wait(10)
        made.append(number)
        files.write_csv(Path("data/a.csv"), [{"a": 1}])

    threads = [
        threading.Thread(target=files.make_once, args=(Path("data/a.csv"), make, number))
        for number in (1, 2)
    ]
    for thread in threads:
        thread.start()
        time.sleep(0.3)
    waiting.set()
    for thread in threads:
        thread.join()
    assert made == [1]
    assert "another process is making data/a.csv" in capsys.readouterr().out


# Leftovers of killed processes


def test_what_killed_processes_left_is_removed_the_next_time(run, small):
    left = ["models/phantom/.log.csv.12ab.tmp", "data/.phantom.npz.12ab.tmp"]
    left += ["images/phantom/.report.html.12ab.tmp", "images/phantom/epochs/.a.png.12ab.tmp"]
    kept = ["data/.breastmnist.npz.12ab.tmp", "images/phantom/.export.tmp/a.png", "data/a.tmp"]
    for path in map(Path, left + kept):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    files.make_once(Path("data/phantom.npz"), lambda: Path("data/phantom.npz").touch())
    assert run("train_model.py", *small, "--METRIC_IMAGES=0", "--EPOCHS=1").status == 0
    parts = ["BLIND_TEST", "TRAINING", "NUMBERS", "DIVERSITY", "COPIES", "LATENT_SPACE", "FAILURES"]
    assert run("generate_report.py", *(f"--{part}=False" for part in parts)).status == 0
    assert [path for path in left if Path(path).exists()] == []
    assert [path for path in kept if not Path(path).exists()] == []


# Servers


def redirect(address):
    answer = f"HTTP/1.0 302 Found\r\nLocation: {address}\r\n\r\n".encode()
    return lambda connection: connection.sendall(answer)


ANSWERS = {
    "a redirect to half an address": (redirect("http://[::1"), ""),
    "a redirect to no port": (redirect("http://127.0.0.1:port/"), "connection failed"),
    "a redirect to a file": (redirect("file:///etc/hosts"), "file:///etc/hosts"),
    "a redirect to a long host": (redirect(f"http://{'a' * 70}.b/"), ""),
    "escape codes": (lambda c: c.sendall(b"HTTP/1.0 404 \x1b[31mNo\r\n\r\n"), "404 \\x1b[31mNo"),
    "escape codes for HTTP": (lambda c: c.sendall(b"\x1b[31mNo\r\n"), "\\x1b[31mNo"),
}


@pytest.mark.parametrize(("answer", "cause"), ANSWERS.values(), ids=ANSWERS)
def test_whatever_a_server_does_ends_with_a_message(answer, cause, monkeypatch):
    monkeypatch.setattr(download, "RETRIES", 0)
    monkeypatch.setenv("no_proxy", "127.0.0.1")

    def serve():
        connection, _ = listener.accept()
        with contextlib.suppress(OSError), connection:
            connection.recv(1000)
            answer(connection)

    with socket.create_server(("127.0.0.1", 0)) as listener:
        threading.Thread(target=serve, daemon=True).start()
        url = f"http://127.0.0.1:{listener.getsockname()[1]}/a.npz"
        with pytest.raises(UserError) as refused:
            download.download("a", Path("data/a.npz"), url, "0" * 32)
    lines = str(refused.value).split("\n")
    assert len(lines) == 4 and all(line.isprintable() for line in lines)
    assert lines[0].startswith("error: a could not be downloaded: ") and cause in lines[0]
    assert list(Path("data").iterdir()) == []
