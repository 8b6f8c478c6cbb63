"""Finds the published weights of a model: in a local cache, in an installed weight package, or on a server."""

from __future__ import annotations

import os
import urllib.parse
from dataclasses import dataclass
from pathlib import Path

import open_clip
import timm
import torch
from huggingface_hub import constants

from edgeembed.errors import UserError
from edgeembed.network.hub import cached_file, obstacle_to
from edgeembed.network.model_names import is_weight_file_name, library_of
from edgeembed.network.weight_packages import (
    find_weight_file,
    how_to_install,
    verify_weight_file,
    weight_package,
)


@dataclass(frozen=True, kw_only=True)
class PublishedWeights:
    """Where a library publishes weights: in a repository of the hub, or else at a URL, and its copy of that file.

    All are empty if the library has no weights of the model.
    """

    repository: str = ""
    filename: str = ""
    url: str = ""
    url_copy: Path = Path()

    @property
    def server(self) -> str:
        """The address that a download begins with."""
        if self.repository:
            return constants.ENDPOINT
        parts = urllib.parse.urlparse(self.url)
        return f"{parts.scheme}://{parts.netloc}" if self.url else ""

    @property
    def cache(self) -> Path:
        """The folder with the copies of earlier downloads."""
        return Path(os.path.expanduser(constants.HF_HUB_CACHE)) if self.repository else self.url_copy.parent

    def cached_copy(self) -> Path | None:
        """Returns the copy of an earlier download, None if there is none."""
        if self.repository:
            return cached_file(self.repository, self.filename)
        return self.url_copy if self.url_copy.is_file() else None


@dataclass(frozen=True, kw_only=True)
class WeightSource:
    """Where weights were found: as a copy of an earlier download, in a package, or, without either, on a server.

    `text`: the source in words, for the log and the model card. `package_file`: verified.
    """

    text: str
    published: PublishedWeights
    copy: Path | None = None
    package_file: Path | None = None


def find_weights(name: str, weights: str, *, library: str, key: str) -> WeightSource:
    """Finds published weights without loading them, with a network only where no file of this machine has them.

    Raises UserError, within seconds, if they are neither here nor on a server that replies, and for a weight package
    whose file has another checksum. `key`: the recipe key that errors name.
    """
    published = published_weights(name, weights, library=library)
    copy = published.cached_copy()
    if copy is not None:
        return WeightSource(text="the local cache", published=published, copy=copy)
    package = weight_package(name) if library == "timm" else None
    if package is not None and (file := find_weight_file(package)) is not None:
        verify_weight_file(package, file)
        return WeightSource(text=f"the package {package.distribution}", published=published, package_file=file)
    # Without a server there are no published weights, which the library's own error says.
    obstacle = obstacle_to(published.server) if published.server else ""
    if obstacle:
        reason = f"{obstacle}, and there is no copy in {published.cache}"
        raise not_downloaded(key, weights, name, published=published, reason=reason)
    return WeightSource(text=published.server, published=published)


def require_available(name: str, weights: str, *, key: str) -> None:
    """Raises UserError, within seconds, for published weights that cannot be loaded on this machine now.

    To be called before long work. Files and random weights need nothing published.
    """
    if weights != "none" and not is_weight_file_name(weights):
        find_weights(name, weights, library=library_of(name), key=key)


def published_weights(name: str, weights: str, *, library: str) -> PublishedWeights:
    """Returns where open_clip publishes a tag, or timm the default or named tag of a model."""
    if library == "open_clip":
        settings = open_clip.get_pretrained_cfg(name, weights) or {}
        # "organisation/repository/file", where an empty file means open_clip's default.
        repository, _, filename = str(settings.get("hf_hub") or "").rpartition("/")
        url = str(settings.get("url") or "")
        return PublishedWeights(
            repository=repository,
            filename=filename or "open_clip_pytorch_model.bin",
            url=url,
            url_copy=Path.home() / ".cache" / "clip" / os.path.basename(url),
        )
    configuration = timm.get_pretrained_cfg(name)
    if configuration is None:
        return PublishedWeights()
    # timm gives a file name of its own for addresses that do not end with one.
    url, copy_name = configuration.url if isinstance(configuration.url, tuple) else (configuration.url or "", "")
    return PublishedWeights(
        repository=configuration.hf_hub_id or "",
        filename=configuration.hf_hub_filename or "pytorch_model.bin",
        url=url,
        url_copy=Path(torch.hub.get_dir())
        / "checkpoints"
        / (copy_name or os.path.basename(urllib.parse.urlparse(url).path)),
    )


def not_downloaded(key: str, weights: str, name: str, *, published: PublishedWeights, reason: str) -> UserError:
    """Returns an error of one line for published weights that could not be downloaded."""
    place = published.repository or published.url
    file, none = f"({key}=./model.safetensors)", "or none for random weights"
    if not place:
        return UserError(f"{key} = {weights!r}: no weights of {name} are published: give a file {file}, {none}")
    return UserError(
        f"{key} = {weights!r}: the weights of {name} ({place}) could not be downloaded: {reason}: "
        f"{how_to_install(name)}; give a file that was downloaded elsewhere {file}, {none}"
    )


def not_loaded(key: str, weights: str, name: str, *, source: WeightSource, error: Exception) -> UserError:
    """Returns an error of one line for published weights that a library raised `error` for."""
    reason = (str(error).strip().splitlines() or [type(error).__name__])[0][:160]
    if source.copy is None:
        return not_downloaded(key, weights, name, published=source.published, reason=reason)
    return UserError(
        f"{key} = {weights!r}: the weights of {name} could not be read from {source.copy} ({reason}): "
        "delete this file, so that it is downloaded again"
    )
