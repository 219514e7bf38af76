"""Downloads a file whole or not at all, with its checksum compared."""

import hashlib
import http.client
import queue
import threading
import time
import urllib.error
import urllib.request

from tqdm import tqdm

from common import files
from common.errors import UserError, printable

TIMEOUT = 30  # seconds without a byte after which a server counts as stalled
WINDOW, LOWEST_RATE = 60, 1000  # seconds, and bytes a second in them below which it is too slow
RETRIES = 2  # further tries after a server error or a broken connection
PAUSE = 3  # seconds before a further try


def download(name, path, url, wanted_md5):
    """Download a data set and check its MD5. Raises UserError."""
    print(f"downloading {url} to {path}, once ...")
    for attempts_left in reversed(range(RETRIES + 1)):
        try:
            with files.atomic_write(path) as file:
                digest = md5()
                for chunk in fetch(url):
                    digest.update(chunk)
                    file.write(chunk)
                if digest.hexdigest() != wanted_md5:
                    raise DownloadError(f"its MD5 is {digest.hexdigest()}, not {wanted_md5}")
            return
        except DownloadError as error:
            if error.may_pass and attempts_left:
                print(f"{error}; trying again in {PAUSE} s ...")
                time.sleep(PAUSE)
                continue
            raise UserError(
                f"{name} could not be downloaded: {error}.",
                f"  from:    {url}",
                f"  by hand: put the file at {path} (its MD5 is {wanted_md5})",
                "  without a network: python train_model.py --DATASET=phantom",
            ) from None


class DownloadError(Exception):
    """A download failed; may_pass tells a passing trouble from a lasting one."""

    def __init__(self, cause, may_pass=False):
        super().__init__(printable(cause))  # the words may be the server's
        self.may_pass = may_pass


def fetch(url):
    """Yield the bytes behind a URL in chunks, with a progress bar. Raises DownloadError."""
    size = received = 0
    try:
        with open_url(url) as response:
            size = response.length or 0
            start, before = time.monotonic(), 0
            with tqdm(total=size or None, unit="B", unit_scale=True, disable=None) as bar:
                while chunk := response.read1(1 << 16):  # what has come, if only a byte
                    received += len(chunk)
                    if time.monotonic() - start > WINDOW:
                        rate = (received - before) / (time.monotonic() - start)
                        if rate < LOWEST_RATE:
                            raise DownloadError(f"the server sends {rate:.0f} bytes a second")
                        start, before = time.monotonic(), received
                    bar.update(len(chunk))
                    yield chunk
    except urllib.error.HTTPError as error:
        cause = f"the server answered {error.code} {error.reason}"
        raise DownloadError(cause, may_pass=error.code >= 500) from None
    except TimeoutError:
        raise DownloadError(f"the server sent nothing for {TIMEOUT} s", may_pass=True) from None
    except ValueError as error:
        raise DownloadError(f"the server names a wrong address ({error})") from None
    except (OSError, http.client.HTTPException) as error:
        cause = f"the connection failed ({getattr(error, 'reason', None) or error})"
        raise DownloadError(cause, may_pass=True) from None
    if received < size:
        cause = f"the connection broke after {received:,} of {size:,} bytes"
        raise DownloadError(cause, may_pass=True)


def open_url(url):
    """Return the response to a request. Raises DownloadError if it takes more than WINDOW seconds.

    It is waited for in another thread: a server may send a header for ever, a byte a second.
    """
    responses = queue.SimpleQueue()

    def request():
        try:
            responses.put(urllib.request.urlopen(url, timeout=TIMEOUT))
        except Exception as error:
            responses.put(error)

    threading.Thread(target=request, daemon=True).start()
    try:
        response = responses.get(timeout=WINDOW)
    except queue.Empty:
        raise DownloadError(f"the server sent no answer in {WINDOW} s", may_pass=True) from None
    if isinstance(response, Exception):
        raise response
    return response


def md5():
    return hashlib.md5(usedforsecurity=False)  # or machines in FIPS mode refuse
