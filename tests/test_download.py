"""Downloads from a real server on this machine: the file arrives whole and right, or not at all."""

import hashlib
import io
import os
import signal
import socket
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest

from common.data import dataset, download
from common.errors import UserError

PIXELS = np.random.default_rng(0)
ARRAYS = {}
for split, n in (("train", 300), ("val", 3), ("test", 4)):
    ARRAYS[f"{split}_images"] = PIXELS.integers(0, 256, (n, 28, 28), dtype=np.uint8)
    ARRAYS[f"{split}_labels"] = np.arange(n, dtype=np.uint8).reshape(n, 1) % 2
MEMORY = io.BytesIO()
np.savez(MEMORY, **ARRAYS)
BODY = MEMORY.getvalue()  # several chunks of a download long
MD5 = hashlib.md5(BODY).hexdigest()
PATH = Path("data/breastmnist.npz")


class Request(BaseHTTPRequestHandler):
    def do_GET(self):
        self.server.requests.append(self.path)
        answers = self.server.answers
        answer = answers.pop(0) if len(answers) > 1 else answers[0]  # the last one for ever
        answer(self)

    def reply(self, status, body=b"", length=None):
        self.send_response(status)
        self.send_header("Content-Length", len(body) if length is None else length)
        self.end_headers()
        self.wfile.write(body)
        self.wfile.flush()

    def log_message(self, *_):
        pass


def whole(request):
    request.reply(200, BODY)


def without_length(request):
    request.send_response(200)
    request.end_headers()
    request.wfile.write(BODY)


def other_bytes(request):
    request.reply(200, BODY[:-1] + b"?")


def half(request):
    request.reply(200, BODY[: len(BODY) // 2], length=len(BODY))


def half_without_length(request):
    request.send_response(200)
    request.end_headers()
    request.wfile.write(BODY[: len(BODY) // 2])


def missing(request):
    request.reply(404)


def busy(request):
    request.reply(503)


def no_http(request):
    request.wfile.write(b"220 mail.example ESMTP\r\n")


def odd_length(request):
    request.reply(200, BODY, length="many")


def stall_in_the_body(request):
    request.reply(200, BODY[:100_000], length=len(BODY))
    request.server.released.wait()


def stall_before_the_header(request):
    request.server.released.wait()


@pytest.fixture(autouse=True)
def working_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.setattr(download, "PAUSE", 0.01)


@pytest.fixture
def server(monkeypatch):
    """A server in the place of MedMNIST's; set its `answers`, read its `requests`."""
    with ThreadingHTTPServer(("127.0.0.1", 0), Request) as server:
        server.requests, server.answers, server.released = [], [whole], threading.Event()
        server.url = f"http://127.0.0.1:{server.server_port}/breastmnist.npz?download=1"
        monkeypatch.setitem(dataset.INFO["breastmnist"], "url", server.url)
        monkeypatch.setitem(dataset.INFO["breastmnist"], "MD5", MD5)
        threading.Thread(target=server.serve_forever, args=[0.01], daemon=True).start()
        yield server
        server.released.set()  # the stalled answers end
        server.shutdown()


@pytest.fixture
def closed_port(monkeypatch):
    """The address of a server that is not there."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{listener.getsockname()[1]}/breastmnist.npz"
    monkeypatch.setitem(dataset.INFO["breastmnist"], "url", url)
    monkeypatch.setitem(dataset.INFO["breastmnist"], "MD5", MD5)
    return url


def files_left():
    return [path for path in Path().rglob("*") if path.is_file() and path.suffix != ".lock"]


def assert_tells_all(message, cause, url):
    assert cause in message
    assert url in message
    assert str(PATH) in message
    assert MD5 in message
    assert "train_model.py --DATASET=phantom" in message


@pytest.mark.parametrize("answer", [whole, without_length])
@pytest.mark.parametrize("split", ["train", "val", "test"])
def test_a_download_gives_the_images_and_labels_of_the_file(server, answer, split):
    server.answers = [answer]
    images, labels, source = dataset.load("breastmnist", split)
    np.testing.assert_array_equal(images.squeeze(1).numpy(), ARRAYS[f"{split}_images"])
    np.testing.assert_array_equal(labels.numpy(), ARRAYS[f"{split}_labels"])
    assert images.shape[1:] == (1, 28, 28)
    assert "official" in source and "not the official" not in source
    assert PATH.read_bytes() == BODY
    assert files_left() == [PATH]


def test_the_second_load_asks_the_server_nothing(server):
    first = dataset.load("breastmnist")
    second = dataset.load("breastmnist")
    assert len(server.requests) == 1
    assert first[0].equal(second[0]) and first[1].equal(second[1]) and first[2] == second[2]


def test_a_file_put_there_by_hand_is_used_and_the_server_asked_nothing(server):
    PATH.parent.mkdir()
    np.savez_compressed(PATH, **ARRAYS)  # the same arrays, but another MD5
    images, _, source = dataset.load("breastmnist")
    np.testing.assert_array_equal(images.squeeze(1).numpy(), ARRAYS["train_images"])
    assert "not the official file" in source
    assert server.requests == []


@pytest.mark.parametrize("answer", [busy, half, no_http])
def test_a_passing_trouble_is_tried_again(server, answer, capsys):
    server.answers = [answer, whole]
    assert len(dataset.load("breastmnist")[0]) == 300
    assert len(server.requests) == 2
    assert "trying again" in capsys.readouterr().out
    assert files_left() == [PATH]


@pytest.mark.parametrize(
    ("answer", "requests", "cause"),
    [
        (other_bytes, 1, "MD5"),
        (half_without_length, 1, "MD5"),
        (missing, 1, "404"),
        (busy, 3, "503"),
        (half, 3, f"{len(BODY) // 2:,} of {len(BODY):,} bytes"),
        (no_http, 3, "connection failed"),
        (odd_length, 1, "the server's answer makes no sense"),
    ],
)
def test_a_failed_download_leaves_no_file_and_says_what_to_do(server, answer, requests, cause):
    server.answers = [answer]
    with pytest.raises(UserError) as failure:
        dataset.load("breastmnist")
    assert_tells_all(str(failure.value), cause, server.url)
    assert len(server.requests) == requests
    assert files_left() == []


@pytest.mark.parametrize("answer", [stall_in_the_body, stall_before_the_header])
def test_a_server_that_falls_silent_is_given_up(server, answer, monkeypatch):
    monkeypatch.setattr(download, "TIMEOUT", 0.3)
    server.answers = [answer]
    with pytest.raises(UserError) as failure:
        dataset.load("breastmnist")
    assert_tells_all(str(failure.value), "the server sent nothing for 0.3 s", server.url)
    assert len(server.requests) == 3
    assert files_left() == []


def test_without_a_network_the_message_says_what_to_do(closed_port):
    with pytest.raises(UserError) as failure:
        dataset.load("breastmnist")
    assert_tells_all(str(failure.value), "refused", closed_port)
    assert files_left() == []


def test_training_without_a_network_ends_with_that_message(run, closed_port):
    result = run("train_model.py", "--DATASET=breastmnist")
    assert result.status == 1
    assert_tells_all(result.text, "refused", closed_port)
    assert "\nerror: breastmnist could not be downloaded" in result.text
    assert "Traceback" not in result.text
    assert files_left() == []


def test_training_on_a_file_the_server_lacks_ends_with_that_message(run, server):
    server.answers = [missing]
    result = run("train_model.py", "--DATASET=breastmnist")
    assert result.status == 1
    assert_tells_all(result.text, "404", server.url)
    assert "Traceback" not in result.text
    assert files_left() == []


def test_a_download_interrupted_by_the_user_leaves_nothing_behind(run, server):
    left = []

    def interrupt_in_the_body(request):
        request.reply(200, BODY[:100_000], length=len(BODY))
        left.extend(files_left())
        os.kill(os.getpid(), signal.SIGINT)
        request.server.released.wait()

    server.answers = [interrupt_in_the_body]
    result = run("train_model.py", "--DATASET=breastmnist")
    assert result.status == 130
    assert "interrupted" in result.text and "Traceback" not in result.text
    assert len(left) == 1  # the temporary file was there
    assert files_left() == []
