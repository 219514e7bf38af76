"""Downloads a file whole or not at all, with its checksum compared."""

import hashlib
import http.client
import time
import urllib.error
import urllib.request

from tqdm import tqdm

from common.files import atomic_write
from common.settings import UserError

TIMEOUT = 30  # seconds without a byte after which a server counts as stalled
RETRIES = 2  # further tries after a server error or a broken connection
PAUSE = 3  # seconds before a further try


def download(name, path, url, wanted_md5):
    """Download a data set and check its MD5. Raises UserError."""
    print(f"downloading {url} to {path}, once ...")
    for attempts_left in reversed(range(RETRIES + 1)):
        try:
            with atomic_write(path) as file:
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
        super().__init__(cause)
        self.may_pass = may_pass


def fetch(url):
    """Yield the bytes behind a URL in chunks, with a progress bar. Raises DownloadError."""
    try:
        with urllib.request.urlopen(url, timeout=TIMEOUT) as response:
            size, received = response.length or 0, 0
            with tqdm(total=size or None, unit="B", unit_scale=True, disable=None) as bar:
                while chunk := response.read(1 << 16):
                    received += len(chunk)
                    bar.update(len(chunk))
                    yield chunk
    except urllib.error.HTTPError as error:
        cause = f"the server answered {error.code} {error.reason}"
        raise DownloadError(cause, may_pass=error.code >= 500) from None
    except TimeoutError:
        raise DownloadError(f"the server sent nothing for {TIMEOUT} s", may_pass=True) from None
    except (OSError, http.client.HTTPException) as error:
        cause = f"the connection failed ({getattr(error, 'reason', None) or error})"
        raise DownloadError(cause, may_pass=True) from None
    if received < size:
        cause = f"the connection broke after {received:,} of {size:,} bytes"
        raise DownloadError(cause, may_pass=True)


def md5():
    return hashlib.md5(usedforsecurity=False)  # or machines in FIPS mode refuse
