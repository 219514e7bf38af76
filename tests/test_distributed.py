"""One run trained by several processes, with gloo on the CPU: the same as by one, only shared."""

import contextlib
import math
import os
import re
import shutil
import signal
import sys
import time
from pathlib import Path

import forks
import pytest
import torch
import torch.distributed as dist
from conftest import REPO, signal_in_step
from test_folder import save
from test_training import assert_same_run, contents, steps_done, wait_for_a_step

from common import checkpoint, distributed
from common.data import dataset
from common.errors import UserError


def train_in_two(*arguments):
    """Do what `torchrun --nproc-per-node=2 train_model.py arguments` does, in forks: it is quick.

    Returns what each of the two processes ended with and printed, [(status, text), ...].
    """
    store = dist.TCPStore("localhost", 0, is_master=True, wait_for_workers=False)
    environment = {"MASTER_ADDR": "localhost", "MASTER_PORT": str(store.port)}
    environment |= {"TORCHELASTIC_USE_AGENT_STORE": "True", "TORCHELASTIC_RUN_ID": "test"}
    environment |= {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}
    started = []
    for rank in ("0", "1"):
        output, own = f"output_{rank}.txt", environment | {"RANK": rank, "LOCAL_RANK": rank}
        started.append((forks.start(["train_model.py", *arguments], output, own), output))
    return [forks.finish(*each) for each in started]


@pytest.fixture(scope="module")
def trained(tmp_path_factory, small_run):
    """A folder with a run of two epochs by two processes, and what they printed.

    Each process leaves there, as process_0.pt and process_1.pt, what it knows at the end.
    """
    check_finite, leave, seen = checkpoint.check_finite, dist.destroy_process_group, []

    def check_and_remember(progress, model, folder):
        seen[:] = progress, model
        check_finite(progress, model, folder)

    def leave_with_a_copy():
        progress, model = map(vars, seen)
        state = progress | {"random": torch.get_rng_state()}
        state |= {name: part.state_dict() for name, part in model.items()}
        torch.save(state, f"process_{os.environ['RANK']}.pt")
        leave()

    folder = tmp_path_factory.mktemp("two")
    with contextlib.chdir(folder), pytest.MonkeyPatch.context() as patch:
        patch.setattr(checkpoint, "check_finite", check_and_remember)
        patch.setattr(dist, "destroy_process_group", leave_with_a_copy)
        return folder, train_in_two(*small_run, "--EPOCHS=2")


def test_two_processes_train_one_run(trained, monkeypatch):
    folder, ((status, text), others) = trained
    monkeypatch.chdir(folder)
    assert status == 0, text
    assert others == (0, "")  # one process prints for all
    assert "2 processes, each on cpu" in text and text.count("\nepoch 2/2, ") == 1
    names = {path.name for path in Path("models/phantom").iterdir()}
    snapshots = {"generator_epoch_0001.pt", "generator_epoch_0002.pt"}
    assert names == {"checkpoint.pt", "log.csv", *snapshots}
    first, second = (contents(torch.load(f"process_{rank}.pt")) for rank in (0, 1))
    for name, ours in first.items():
        # One process measures and writes for all.
        if not name.startswith(("checkpoint.history", "checkpoint.maintenance_seconds")):
            same = torch.equal if isinstance(ours, torch.Tensor) else lambda a, b: a == b
            assert same(ours, second[name]), name


def test_a_signal_to_one_process_stops_both_and_the_run_resumes_bit_for_bit(small, trained):
    with signal_in_step(2, signal.SIGTERM, rank="1"):
        (status, text), others = train_in_two(*small, "--EPOCHS=2")
    assert (status, others) == (143, (143, "")), text
    assert "nothing is lost. To resume:\n  torchrun --nproc-per-node=2 " in text
    assert steps_done() == 2
    assert train_in_two(*small, "--EPOCHS=2")[0][0] == 0
    shutil.copytree(trained[0] / "models/phantom", "models/straight")
    assert_same_run("phantom", "straight")


def test_a_scheduler_may_warn_any_process_and_one_saves(small, monkeypatch):
    save, saved = checkpoint.save, Path("saved.txt")

    def save_and_note(path, content):
        with saved.open("a") as file:
            file.write(f"{path.name} {content.get('step', '')}\n")
        save(path, content)

    monkeypatch.setattr(checkpoint, "save", save_and_note)
    with signal_in_step(2, signal.SIGUSR1, rank="1"):
        options = ["--EPOCHS=1", "--METRIC_IMAGES=0", "--RESUME=never"]
        (status, text), _ = train_in_two(*small, *options)
    assert status == 0, text
    assert not list(Path("models").glob("*-old-1"))  # there was none to archive
    names = ["checkpoint.pt 0", "checkpoint.pt 2", "generator_epoch_0001.pt ", "checkpoint.pt 3"]
    assert saved.read_text().splitlines() == names


def test_a_run_goes_on_with_any_number_of_processes(run, train):
    small = train("--EPOCHS=1")
    status, text = train_in_two(*small, "--EPOCHS=2")[0]
    assert status == 0 and "from epoch 2\n" in text, text
    resumed = run("train_model.py", *small, "--EPOCHS=3")
    assert resumed.status == 0 and "from epoch 3\n" in resumed.text
    assert steps_done() == 9


def test_a_step_must_be_divisible_by_the_processes(small):
    results = train_in_two(*small, "--BATCH_SIZE=33")
    assert [status for status, _ in results] == [1, 1]
    text = "".join(text for _, text in results)
    assert text.startswith("error: BATCH_SIZE=33: legal is a multiple of 2, the processes")
    assert text.count("\n") == 1 and not Path("models").exists()


def test_an_error_of_the_first_process_ends_the_other_and_is_told_once(train):
    small = train("--EPOCHS=1")
    (status, text), others = train_in_two(*small, "--EPOCHS=2", "--SEED=5")
    assert (status, others) == (1, (1, ""))
    assert text.startswith("error: models/phantom was trained with other settings: SEED was 0")
    assert text.count("\n") == 1


@pytest.fixture
def torchrun(start, small):
    """Start the real torchrun with two processes, and wait until they have made a step."""
    script = [Path(sys.executable).with_name("torchrun"), "--nproc-per-node=2"]
    command = [*script, str(REPO / "train_model.py"), *small, "--EPOCHS=1000"]
    process = start(*command, "--CHECKPOINT_MINUTES=0")
    wait_for_a_step(process)
    return process


def test_a_process_that_is_killed_ends_all_with_a_message(torchrun, small, run):
    children = Path(f"/proc/{torchrun.pid}/task/{torchrun.pid}/children").read_text().split()
    second = [n for n in children if b"\0RANK=1\0" in Path(f"/proc/{n}/environ").read_bytes()]
    os.kill(int(second[0]), signal.SIGKILL)
    text, _ = torchrun.communicate(timeout=60)
    assert torchrun.returncode == 1
    assert text.count("error: another process of this run has ended") == 1
    assert "Signal 9 (SIGKILL)" in text  # torchrun says which
    epoch = steps_done() // 3 + 1
    assert run("train_model.py", *small, f"--EPOCHS={epoch}").status == 0


def test_stopping_torchrun_saves_the_run(torchrun):
    torchrun.send_signal(signal.SIGTERM)
    text, _ = torchrun.communicate(timeout=60)
    assert text.count("nothing is lost. To resume:") == 1 and "error: " not in text
    said = int(re.search(r"stopped in epoch (\d+)", text)[1])
    assert math.ceil(steps_done() / 3) == said


def test_the_first_process_reads_your_own_images_and_tells_of_it(small, monkeypatch):
    for number in range(10):
        save(f"scans/{number}.png")
    load = dataset.load

    def load_late(*arguments, **options):
        time.sleep(2 * (os.environ["RANK"] == "0"))
        return load(*arguments, **options)

    monkeypatch.setattr(dataset, "load", load_late)
    arguments = ["--DATASET=scans", "--EPOCHS=1", "--BATCH_SIZE=4", "--METRIC_IMAGES=0"]
    (status, text), _ = train_in_two(*arguments)
    assert status == 0 and "read 7 train, 1 val, 2 test images" in text


LOST = {
    "gloo": "[gloo/transport/tcp/pair.cc:547] Connection closed by peer [127.0.0.1]:5124",
    "gloo waiting": "[unbound_buffer.cc:78] Timed out waiting 1800000ms for recv operation",
    "NCCL": "NCCL error in: NCCLUtils.hpp:268, remote process exited or there was a network error",
    "NCCL inside": "internal error, NCCL version 2.14.3 Last error: Net : Connection closed by "
    "remote peer node2<50260>",
}
OTHER = {
    "memory": "NCCL error: unhandled cuda error. Last error: Cuda failure 'out of memory'",
    "usage": "NCCL error: invalid usage, NCCL version 2.21.5. Duplicate GPU detected",
    "system": "ncclSystemError: System call (e.g. socket, malloc). Last error: /dev/shm is full",
}


@pytest.mark.parametrize("message", LOST.values(), ids=LOST)
def test_a_lost_connection_means_that_another_process_has_ended(message):
    ended = "another process of this run has ended"
    with pytest.raises(UserError, match=ended), distributed.peer_errors():
        raise RuntimeError(message)


@pytest.mark.parametrize("message", OTHER.values(), ids=OTHER)
def test_other_errors_of_nccl_are_shown_as_they_are(message):
    with pytest.raises(RuntimeError, match=re.escape(message)), distributed.peer_errors():
        raise RuntimeError(message)


def test_more_processes_than_gpus_are_refused(monkeypatch):
    monkeypatch.setenv("LOCAL_RANK", "1")
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    with pytest.raises(UserError, match="started 2 processes here, and torch finds 1 CUDA devices"):
        distributed.join(None, 1, 2, {"BATCH_SIZE": 64, "DEVICE": "auto"})


def test_each_process_takes_its_own_gpu(monkeypatch):
    chosen, joined = [], []
    monkeypatch.setenv("LOCAL_RANK", "1")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "set_device", chosen.append)
    monkeypatch.setattr(dist, "is_nccl_available", lambda: True)
    monkeypatch.setattr(dist, "init_process_group", lambda backend, **_: joined.append(backend))
    distributed.join(None, 1, 2, {"BATCH_SIZE": 64, "DEVICE": "auto"})
    assert (chosen, joined) == ([1], ["cpu:gloo,cuda:nccl"])
