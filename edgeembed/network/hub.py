"""The Hugging Face hub: its local cache, and downloads that fail within seconds if it cannot be reached."""

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
from pathlib import Path

from huggingface_hub import constants, try_to_load_from_cache

REPLY_SECONDS = 3.0  # until the first reply of the hub
STALL_SECONDS = 8.0  # without data, for downloads that set no limit themselves

SAFETENSORS_NAMES = {
    "pytorch_model.bin": "model.safetensors",
    "open_clip_pytorch_model.bin": "open_clip_model.safetensors",
}
"""Names of the safetensors files beside torch files. Those of other names only have another ending."""


@contextlib.contextmanager
def hub_within_seconds(*, offline: bool = False) -> Iterator[None]:
    """Within the block, a download that stalls fails after seconds; `offline`: the hub client only reads its cache.

    Without this, the client retries for a minute or more.
    """
    before, timeout = constants.HF_HUB_OFFLINE, socket.getdefaulttimeout()
    # The client reads the environment variable only once, at import: hence the constant.
    constants.HF_HUB_OFFLINE = before or offline
    socket.setdefaulttimeout(STALL_SECONDS)
    try:
        yield
    finally:
        constants.HF_HUB_OFFLINE = before
        socket.setdefaulttimeout(timeout)


def cached_file(repository: str, filename: str) -> Path | None:
    """Returns the hub client's local copy of a weight file, or of its safetensors form; None if it has neither.

    `repository`: "organisation/name", with "@revision" where it is not the newest.
    """
    repo_id, _, revision = repository.partition("@")
    safetensors = SAFETENSORS_NAMES.get(filename, os.path.splitext(filename)[0] + ".safetensors")
    for name in (safetensors, filename):
        copy = try_to_load_from_cache(repo_id, name, revision=revision or None)
        if isinstance(copy, str):  # otherwise not cached, or known not to exist
            return Path(copy)
    return None


def obstacle_to(address: str) -> str:
    """Returns why nothing can be downloaded from a server, "" if it replies."""
    if constants.HF_HUB_OFFLINE and address == constants.ENDPOINT:
        return "HF_HUB_OFFLINE is set"
    return "" if is_reachable(address) else f"{address} does not reply"


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
