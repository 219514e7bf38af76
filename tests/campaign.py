"""Inject faults into runs and count what survives; not a part of the test suite.

    python tests/campaign.py                 a thousand faults, in about ten minutes
    python tests/campaign.py --FAULTS=100    fewer of each kind

A fault is survived if the script ends with status 0 and the result that it has without the fault,
or with status 1 and one readable line, all files as they were; and if after a kill or a full disk
the same command brings the undisturbed result, bit for bit. Each script runs in a fork of this
process, in which all modules are loaded: it can crash, hang or be killed.
"""

import contextlib
import hashlib
import http.server
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from pathlib import Path

os.environ["OMP_NUM_THREADS"] = "1"  # forks of a process with threads may hang
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
import numpy as np
import torch
from conftest import signal_in_step
from forks import finish, run, start
from odd_values import put_odd_value

import dcgan
import generate_images  # noqa: F401, for the forks
import generate_report  # noqa: F401
import train_model  # noqa: F401
from common import checkpoint, schema, settings
from common.data import dataset, phantom

# --- Campaign ---
FAULTS = 1000  # of all kinds together [20 to 1000000]
SEED = 0  # of the faults [0 to 2147483647]
JOBS = 2  # at once [1 to 64]

BOARD = ["--DATA_DIR=data", "--MODELS_DIR=disk/models", "--IMAGES_DIR=disk/images"]
TRAIN = ["train_model.py", "--DATASET=phantom", "--LATENT_DIM=10", "--METRIC_IMAGES=30", *BOARD]
TRAIN += ["--CONDITIONAL=True", "--EPOCHS=3"]
SAVING = [*TRAIN, "--CHECKPOINT_MINUTES=0.0"]  # a checkpoint after each step
OFF = (
    "DETECTIVE",
    "BLIND_TEST",
    "DIVERSITY",
    "COPIES",
    "LATENT_SPACE",
    "FAILURES",
    "BY_LABEL",
    "NUMBERS",
)
REPORT = ["generate_report.py", "--N_SYNTHETIC=60", *BOARD, *(f"--{part}=False" for part in OFF)]
EXPORT = ["generate_images.py", "--N_IMAGES=60", "--VAL_AND_TEST=real", *BOARD]
# In memory, where nothing waits for a disk.
_MEMORY = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
_RUN, _PICTURES = Path("disk/models/phantom"), Path("disk/images/phantom")
RESULTS = {
    "train_model.py": _RUN / "checkpoint.pt",
    "generate_report.py": _PICTURES / "synthetic" / "synthetic.npz",
    "generate_images.py": _PICTURES / "export" / "phantom.npz",
}


def result(script):
    """What a script has made, without what the clock says."""
    path = RESULTS[script]
    if script != "train_model.py":
        return hashlib.sha256(path.read_bytes()).hexdigest()
    saved = torch.load(path, weights_only=True)
    tensors = [saved["permutation"], saved["rng_cpu"]]
    for part in ("generator", "discriminator", "generator_ema"):
        tensors += saved[part].values()
    for part in ("optimizer_g", "optimizer_d"):
        for state in saved[part]["state"].values():
            tensors += state.values()
    rows = [[row["step"], row["loss"], row["d_real"]] for row in saved["history"]]
    digest = hashlib.sha256(repr((saved["epoch"], saved["step"], rows)).encode())
    for tensor in tensors:
        digest.update(tensor.contiguous().numpy().tobytes())
    return digest.hexdigest()


def contents():
    """The bytes of all files of runs, data and pictures, but for locks."""
    files = [path for path in (*Path("disk").rglob("*"), *Path("data").rglob("*"))]
    files = [path for path in files if path.is_file() and path.suffix != ".lock"]
    return {path: path.read_bytes() for path in files if path.name != "filler"}


def judge(command, outcome, before, wanted):
    """Return "" if a script coped with a damaged input, or else what went wrong."""
    status, text = outcome
    if "Traceback" in text:
        return "a traceback"
    if status == 0:
        return "" if result(command[0]) == wanted[command[0]] else "another result"
    if status != 1 or text.count("error: ") != 1:
        return f"status {status}"
    message = text[text.index("error: ") :].strip()
    if not message.isprintable() or len(message) > 1000:
        return "no readable line"
    return "" if contents() == before else "other files than before"


# The board: a run in the middle of an epoch, and what each script makes of it


def set_board(place):
    """Make a small data set and a stopped run. Returns the results without a fault."""
    os.chdir(place)
    for network, widths in ((dcgan.Generator, (8, 8, 4, 4)), (dcgan.Discriminator, (4, 4, 8))):
        defaults = checkpoint.constructor_args(network) | {"widths": widths}
        network.__init__.__defaults__ = tuple(defaults.values())
    Path("disk").mkdir(), Path("data").mkdir()
    arrays = {}
    for seed, (split, n) in enumerate({"train": 400, "val": 20, "test": 60}.items()):
        arrays[f"{split}_images"], arrays[f"{split}_labels"] = phantom.make_split(n, seed)
    np.savez_compressed("data/phantom.npz", **arrays)
    shutil.copytree("data", "saved/data")

    with signal_in_step(9, signal.SIGTERM):  # of six an epoch
        run(TRAIN)
    saved = torch.load(_RUN / "checkpoint.pt", weights_only=True)
    if saved["epoch"] != 1 or saved["images_seen"] == 0:
        sys.exit("the run was not stopped in the middle of its second epoch")
    shutil.copytree("disk", "saved/disk")
    wanted = {}
    for command in (REPORT, EXPORT, TRAIN):
        status, text = run(command)
        if status != 0:
            sys.exit(f"without a fault, {command[0]} fails:\n{text}")
        wanted[command[0]] = result(command[0])
    return wanted


def reset(run_too=True):
    """Put data and the stopped run back as they were, or only the data."""
    for path in Path("disk").iterdir():
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    shutil.rmtree("data")
    shutil.copytree("saved/data", "data")
    if run_too:
        shutil.copytree("saved/disk", "disk", dirs_exist_ok=True)


# The kinds of faults: each makes one and returns (what was done, what went wrong)


def odd_value(dice, wanted):
    command = dice.choice([TRAIN, TRAIN, REPORT, EXPORT])
    done = put_odd_value(_RUN / "checkpoint.pt", schema.CHECKPOINT, dice)
    before = contents()
    return f"{command[0]}: {done}", judge(command, run(command), before, wanted)


def odd_snapshot(dice, wanted):
    done = put_odd_value(_RUN / "generator_epoch_0001.pt", schema.SNAPSHOT, dice)
    before = contents()
    return done, judge(REPORT, run(REPORT), before, wanted)


def damage(content, dice):
    """Return bytes with one bit or a page of them changed."""
    place = dice.randrange(len(content))
    if dice.random() < 0.8:
        return (
            content[:place]
            + bytes([content[place] ^ 1 << dice.randrange(8)])
            + content[place + 1 :]
        )
    return content[:place] + bytes(len(content[place : place + 4096])) + content[place + 4096 :]


def damaged(path, change):
    def fault(dice, wanted):
        command = dice.choice([TRAIN, TRAIN, REPORT, EXPORT])
        content = path.read_bytes()
        path.write_bytes(change(content, dice))
        before = contents()
        return f"{command[0]}, {path}", judge(command, run(command), before, wanted)

    return fault


def truncate(content, dice):
    return content[: dice.randrange(len(content))]


def killed(command):
    def fault(dice, wanted):
        reset(run_too=command[0] != "train_model.py" or dice.random() < 0.5)
        child, moment = start(command), dice.uniform(0.0, SPANS[command[0]])
        number = dice.choice([signal.SIGKILL, signal.SIGKILL, signal.SIGTERM])
        with contextlib.suppress(TimeoutError):
            wait(child, moment)
            os.kill(child, number)
        _, text = finish(child)
        wrong = text[-500:] if "Traceback" in text else again(command, wanted)
        return f"{command[0]}, {number.name} after {moment:.3f} s", wrong

    return fault


def wait(child, seconds):
    """Wait while a fork runs; it stays to be asked for its status."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if os.waitid(os.P_PID, child, os.WEXITED | os.WNOHANG | os.WNOWAIT):
            return
        time.sleep(0.0005)


def again(command, wanted):
    """Return "" if the same command now brings the undisturbed result, or what went wrong."""
    if (_PICTURES / "export").exists() and command is EXPORT:  # it was whole before the kill
        status, text = 0, ""
    else:
        status, text = run(command)
    if status != 0:
        return f"status {status} the next time: {text[-500:]}"
    if result(command[0]) != wanted[command[0]]:
        return "another result the next time"
    left = [str(path) for path in Path("disk").rglob(".*.tmp")] if command is SAVING else []
    return f"{left} lies about" if left else ""


def killed_download(dice, wanted):
    """Kill a download from a local server, then let it go on."""
    reset(run_too=False)
    Path("data/breastmnist.npz").unlink(missing_ok=True)
    command = [word.replace("phantom", "breastmnist") for word in TRAIN]
    child, moment = start(command), dice.uniform(0.0, SPANS["download"])
    wait(child, moment)
    with contextlib.suppress(ProcessLookupError):
        os.kill(child, signal.SIGKILL)
    finish(child)
    path = Path("data/breastmnist.npz")
    if path.exists() and path.read_bytes() != Path("served/breastmnist.npz").read_bytes():
        return f"download, {moment:.3f} s", "half a file"
    status, text = run(command)
    return f"download, {moment:.3f} s", "" if status == 0 else f"status {status}: {text[-500:]}"


def full_disk(dice, wanted):
    """Let a script run out of room: on a small file system, or with a limit to each file."""
    command = dice.choice([TRAIN, TRAIN, REPORT, EXPORT])
    room, limits = dice.randrange(1, 700_000), resource.getrlimit(resource.RLIMIT_FSIZE)
    if os.path.ismount("disk"):
        free = os.statvfs("disk")
        with open("disk/filler", "wb") as file:
            file.write(bytes(max(0, free.f_bavail * free.f_frsize - room)))
    else:
        resource.setrlimit(resource.RLIMIT_FSIZE, (room, limits[1]))
    checkpoint_before = (_RUN / "checkpoint.pt").read_bytes()
    child = start(command)
    resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    status, text = finish(child)
    Path("disk/filler").unlink(missing_ok=True)
    done = f"{command[0]}, {room:,} bytes"
    if "Traceback" in text or status not in (0, 1) or text.count("error: ") != status:
        return done, f"status {status}: {text[-700:]}"
    if command is not TRAIN and (_RUN / "checkpoint.pt").read_bytes() != checkpoint_before:
        return done, "another checkpoint"
    left = [str(path) for path in Path("disk").rglob(".*.tmp")]
    return done, f"{left} lies about" if left else again(command, wanted)


# Local server of a data set


class Server(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *_):
        pass

    def copyfile(self, source, target):
        while chunk := source.read(20_000):
            with contextlib.suppress(OSError):
                target.write(chunk)
            time.sleep(0.01)


def serve():
    """Serve a data set from a fork, slowly. Returns the number of its process."""
    Path("served").mkdir()
    shutil.copy("data/phantom.npz", "served/breastmnist.npz")
    with np.load("served/breastmnist.npz") as arrays:
        made = {key: array[:, :1] if "labels" in key else array for key, array in arrays.items()}
    np.savez("served/breastmnist.npz", **made)
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Server)
    url = f"http://127.0.0.1:{server.server_port}/served/breastmnist.npz"
    md5 = hashlib.md5(Path("served/breastmnist.npz").read_bytes()).hexdigest()
    dataset.INFO["breastmnist"] |= {"url": url, "MD5": md5}
    os.environ["no_proxy"] = "127.0.0.1"
    child = os.fork()
    if child == 0:
        server.serve_forever()
    server.server_close()
    return child


SPANS = {}  # script: seconds that it takes undisturbed
_CHECKPOINT, _DATA = _RUN / "checkpoint.pt", Path("data/phantom.npz")
KINDS = {  # name: (share of all faults, how one is made)
    "odd value in a checkpoint": (0.36, odd_value),
    "odd value in the generator of an epoch": (0.06, odd_snapshot),
    "checkpoint with flipped bits": (0.12, damaged(_CHECKPOINT, damage)),
    "checkpoint truncated": (0.06, damaged(_CHECKPOINT, truncate)),
    "data file with flipped bits": (0.10, damaged(_DATA, damage)),
    "data file truncated": (0.05, damaged(_DATA, truncate)),
    "training killed": (0.08, killed(SAVING)),
    "report killed": (0.04, killed(REPORT)),
    "export killed": (0.04, killed(EXPORT)),
    "download killed": (0.03, killed_download),
    "full disk": (0.06, full_disk),
}


def work(faults, place):
    """Make faults on a board of one's own; write a line for each into place/survived.txt."""
    wanted, server = set_board(place), serve()
    try:
        for command in (SAVING, REPORT, EXPORT):
            reset(run_too=command is not SAVING)
            started = time.monotonic()
            run(command)
            SPANS[command[0]] = time.monotonic() - started
        SPANS["download"] = SPANS["train_model.py"] / 2 + 0.3
        mount = ["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", "disk"]
        subprocess.run(mount, capture_output=True)  # or without the rights to do so, a limit
        for kind, number in faults:
            reset()
            done, wrong = KINDS[kind][1](random.Random(f"{SEED} {kind} {number}"), wanted)
            if wrong:
                print(f"{kind} {number}: {done}: {wrong}", file=sys.stderr)
            with open("survived.txt", "a") as file:
                file.write(f"{kind}\t{int(not wrong)}\n")
    finally:
        os.kill(server, signal.SIGKILL)
        if os.path.ismount("disk"):
            subprocess.run(["umount", "disk"])


def main():
    began, place = time.monotonic(), Path(tempfile.mkdtemp(prefix="campaign-", dir=_MEMORY))
    numbers = {kind: range(max(1, round(share * FAULTS))) for kind, (share, _) in KINDS.items()}
    faults = [(kind, number) for kind in KINDS for number in numbers[kind]]
    workers = {}
    try:
        for job in range(JOBS):
            (place / str(job)).mkdir()
            child = os.fork()
            if child == 0:
                status = 1
                try:
                    work(faults[job::JOBS], place / str(job))
                    status = 0
                except BaseException:
                    traceback.print_exc()
                finally:
                    os._exit(status)
            workers[job] = child
        failed = [os.waitpid(child, 0)[1] for child in workers.values()]
        lines = [(place / str(job) / "survived.txt").read_text().split("\n") for job in workers]
    finally:
        shutil.rmtree(place)
    rows = [line.split("\t") for line in sum(lines, []) if line]
    print("| fault | tried | survived |\n| --- | --- | --- |")
    for kind in KINDS:
        survived = [int(good) for name, good in rows if name == kind]
        print(f"| {kind} | {len(survived):,} | {sum(survived):,} |")
    total = sum(int(good) for _, good in rows)
    print(f"| all | {len(rows):,} | {total:,} |\n\n{time.monotonic() - began:.0f} s")
    sys.exit(0 if total == len(faults) and not any(failed) else 1)


if __name__ == "__main__":
    settings.override(globals())
    main()
