"""Downloads a file whole or not at all, with its checksum compared."""

import re
import sys
import time

from common import files, script
from common.errors import UserError, printable

TIMEOUT = 30  # seconds without a byte after which a server counts as stalled
RETRIES = 2  # further tries after a server error or a broken connection
PAUSE = 3  # seconds before a further try


class DownloadError(Exception):
    """A download failed; may_pass: whether another try can succeed."""

    def __init__(self, cause, may_pass=False):
        super().__init__(printable(cause))  # the words may be the server's
        self.may_pass = may_pass


def download(name, path, url, md5):
    """Download a data set and check its MD5. Raises UserError."""
    print(f"downloading {url} to {path}, once ...")
    for tries_left in reversed(range(RETRIES + 1)):
        try:
            with files.atomic_write(path) as file:
                fetch(url, file, md5)
            return
        except DownloadError as error:
            if error.may_pass and tries_left:
                print(f"{error}; trying again in {PAUSE} s ...")
                time.sleep(PAUSE)
                continue
            raise UserError(
                f"{name} could not be downloaded: {error}.",
                f"  from:    {url}",
                f"  by hand: put the file at {path} (its MD5 is {md5})",
                f"  without a network: {script.command('train_model.py', DATASET='phantom')}",
            ) from None


def fetch(url, file, md5):
    """Write what a URL leads to into an open file, with a progress bar. Raises DownloadError."""
    import pooch  # here, as it takes a third of a second
    import requests

    try:
        progress = sys.stderr.isatty()
        pooch.HTTPDownloader(progress, chunk_size=2**16, timeout=TIMEOUT)(url, file, None)
    except requests.HTTPError as error:
        status, reason = error.response.status_code, error.response.reason
        raise DownloadError(f"the server answered {status} {reason}", status >= 500) from None
    except requests.RequestException as error:
        cause = f"the connection failed ({error})"
        if broken := re.search(r"\((\d+) bytes read, (\d+) more expected\)", cause):
            read, more = map(int, broken.groups())
            cause = f"the connection broke after {read:,} of {read + more:,} bytes"
        elif "timed out" in cause:
            cause = f"the server sent nothing for {TIMEOUT} s"
        raise DownloadError(cause, may_pass=True) from None
    except ValueError as error:  # of a URL or a header
        raise DownloadError(f"the server's answer makes no sense ({error})") from None
    file.flush()
    found = pooch.file_hash(file.name, alg="md5")
    if found != md5:
        raise DownloadError(f"its MD5 is {found}, not {md5}")
