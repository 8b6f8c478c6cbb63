"""Downloads from the Hugging Face hub that fail within seconds, instead of minutes, if the hub cannot be reached."""

from __future__ import annotations

import contextlib
import os
import socket
import ssl
import threading
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator

from huggingface_hub import constants

from edgeembed.errors import UserError

REPLY_SECONDS = 4.0  # until the first reply of the hub
STALL_SECONDS = 8.0  # without data, for downloads that set no limit themselves


@contextlib.contextmanager
def hub_within_seconds() -> Iterator[str]:
    """Within the block, the hub client uses its local cache alone if the hub does not reply.

    Yields the reason, "" if the hub replies. Without this, the client retries for a minute or more.
    """
    offline, timeout = constants.HF_HUB_OFFLINE, socket.getdefaulttimeout()
    obstacle = "HF_HUB_OFFLINE is set" if offline else ""
    if not offline and not is_reachable(constants.ENDPOINT):
        obstacle = f"{constants.ENDPOINT} does not reply"
    # The client reads the environment variable only once, at import: hence the constant.
    constants.HF_HUB_OFFLINE = bool(obstacle)
    socket.setdefaulttimeout(STALL_SECONDS)
    try:
        yield obstacle
    finally:
        constants.HF_HUB_OFFLINE = offline
        socket.setdefaulttimeout(timeout)


def is_reachable(address: str) -> bool:
    """Whether a server replies, through the proxy if one is set."""
    replied: list[bool] = []
    # In a thread, because a DNS lookup has no time limit.
    thread = threading.Thread(target=lambda: replied.append(_replies(address)), daemon=True)
    thread.start()
    thread.join(REPLY_SECONDS + 0.5)
    return bool(replied and replied[0])


def _replies(address: str) -> bool:
    if urllib.parse.urlparse(address).scheme not in ("http", "https"):
        return False
    try:
        with urllib.request.urlopen(urllib.request.Request(address, method="HEAD"), timeout=REPLY_SECONDS):
            return True
    except urllib.error.HTTPError:
        return True  # an HTTP error is a reply too
    except urllib.error.URLError as error:
        return isinstance(error.reason, ssl.SSLError)  # the hub client may trust other certificates
    except (OSError, ValueError):
        return False


def not_downloaded(key: str, weights: str, name: str, *, source: str, obstacle: str, error: Exception) -> UserError:
    """Returns an error of one line for published weights that could not be downloaded.

    `source`: repository or address. `obstacle`: why the hub was not used, "" if it was.
    """
    reason = (str(error).strip().splitlines() or [type(error).__name__])[0][:160]
    if obstacle and source:  # without a source there are no published weights
        reason = f"{obstacle}, and there is no copy in {os.path.expanduser(constants.HF_HUB_CACHE)}"
    where = f" ({source.strip('/')})" if source else ""
    return UserError(
        f"{key} = {weights!r}: the weights of {name}{where} could not be downloaded: {reason}: "
        f"give a file that was downloaded elsewhere ({key}=./model.safetensors), or none for random weights"
    )
