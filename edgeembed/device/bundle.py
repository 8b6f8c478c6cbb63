"""Reads, checks and writes a bundle: ONNX files, engines, a model card and bundle.json, which describes them."""

from __future__ import annotations

import os
import unicodedata
from collections.abc import Sequence
from pathlib import Path, PurePosixPath

from pydantic import ValidationError

from edgeembed.agreement import find_defect
from edgeembed.arrays import FloatArray
from edgeembed.device.bundle_schema import (
    CARD,
    MANIFEST,
    ONNX,
    PLAN,
    SCHEMA,
    SCHEMA_WITHOUT_CHECKSUM,
    BundleFile,
    BundleManifest,
    StoredFile,
)
from edgeembed.device.checksummed_json import damaged_file_error, read_checksummed, write_checksummed
from edgeembed.errors import CheckFailed, UserError
from edgeembed.files import sha256_of, write_atomically
from edgeembed.run_folder import describe_folder

PACKED_SUFFIX = ".edgeembed.zip"
LENGTH_TOLERANCE = 1e-3
BUILD_ENGINE_HINT = ": `edgeembed export BUNDLE --tensorrt` builds engines on this GPU"


def write_bundle(folder: Path, manifest: BundleManifest, card: str) -> BundleManifest:
    """Writes the model card and bundle.json beside the files that bundle.json lists. Returns what it holds then."""
    # The card is written first, because bundle.json holds its checksum.
    write_atomically(folder / CARD, card)
    stored = StoredFile(path=CARD, sha256=sha256_of(folder / CARD), bytes=(folder / CARD).stat().st_size)
    complete = manifest.model_copy(update={"schema_": SCHEMA, "card": stored})
    write_checksummed(folder / MANIFEST, complete.model_dump(by_alias=True, mode="json"))
    # Reading it again checks that what was written is valid.
    return read_bundle(folder)


def read_bundle(folder: Path) -> BundleManifest:
    """Reads and validates bundle.json.

    Raises CheckFailed where it was damaged, UserError for a folder without one, for an unknown schema and for values
    that the schema does not allow.
    """
    if folder.is_file():
        packed = f"is a packed bundle: `edgeembed artifacts unpack {folder}` makes it a folder"
        raise UserError(f"{folder}: {packed if is_packed(folder) else 'is a file, expected a bundle folder'}")
    # `lexists`, so that a broken link is reported as a damaged bundle, not as a missing one.
    if not os.path.lexists(folder / MANIFEST):
        raise UserError(f"{folder}: not a bundle ({describe_folder(folder)}): `edgeembed export` writes one")
    path = regular_file(folder, MANIFEST)
    value, has_checksum = read_checksummed(path)
    schema = value.get("schema")
    if schema not in (SCHEMA, SCHEMA_WITHOUT_CHECKSUM):
        raise UserError(
            f"{path}: schema {str(schema)[:40]!r}, this version reads {SCHEMA!r} and {SCHEMA_WITHOUT_CHECKSUM!r}"
        )
    # Removing the checksum must not disable its check: only bundles of the older schema may lack one.
    if schema == SCHEMA and not has_checksum:
        raise damaged_file_error(path, 'it lacks the key "seal"')
    try:
        manifest = BundleManifest.model_validate(value)
    except ValidationError as error:
        # One line is enough: later errors often follow from the first.
        first = error.errors()[0]
        raise UserError(f"{path}: {'.'.join(map(str, first['loc']))}: {first['msg']}") from None
    if schema == SCHEMA and manifest.card is None:
        raise UserError(f"{path}: card: missing, {SCHEMA!r} has one")
    check_file_names(path, [file.path for file in stored_files(manifest)])
    check_engine_sources(path, manifest)
    kinds = [(file.runtime, file.precision) for file in manifest.files if file.path.endswith(ONNX)]
    for runtime, precision in kinds:
        if kinds.count((runtime, precision)) > 1:
            raise UserError(f"{path}: two ONNX files are {precision!r} for {runtime!r}: expected one")
    return manifest


def check_engine_sources(path: Path, manifest: BundleManifest) -> None:
    """Raises CheckFailed for an engine that was not built from the bundle's ONNX file of the same precision."""
    sources = {file.precision: file.sha256 for file in manifest.files if file.path.endswith(ONNX)}
    for file in manifest.files:
        if file.engine is not None and sources.get(file.precision) != file.engine.onnx_sha256:
            raise CheckFailed(
                f"{path}: {file.path} was built from another {file.precision} file than the bundle's: build it again "
                "with `edgeembed export BUNDLE --tensorrt`"
            )


def stored_files(manifest: BundleManifest) -> list[StoredFile]:
    """Every file of which the manifest holds the checksum."""
    return [*manifest.files, *([manifest.card] if manifest.card else [])]


def check_file_names(path: Path, names: Sequence[str]) -> None:
    """Raises UserError for names that lead out of the bundle, and for two that are one file on some system."""
    seen = {MANIFEST}
    for name in names:
        parts = PurePosixPath(name)
        # A bundle from elsewhere must not lead to reading or writing outside of its folder, on any system.
        if parts.is_absolute() or ".." in parts.parts or "\\" in name or ":" in name:
            raise UserError(f"{path}: file {name!r} lies outside the bundle")
        # `str(parts)` drops parts such as "./" and "//", under which a file could have two names.
        if str(parts) != name or name == "." or not name.isprintable() or len(name.encode()) > 250:
            raise UserError(f"{path}: file {name!r}: not a name that every system can write")
        # macOS normalises Unicode, and Windows and macOS ignore case: there these names are one file.
        key = unicodedata.normalize("NFC", name).casefold()
        if key in seen:
            raise UserError(f"{path}: file {name!r} is named twice")
        seen.add(key)


def regular_file(folder: Path, name: str) -> Path:
    """The path of a file of the bundle. Raises CheckFailed where it is missing, outside the bundle or not regular."""
    path = folder / name
    if not os.path.lexists(path):
        raise CheckFailed(f"{path}: named in {MANIFEST} but missing: export or copy the bundle again")
    # A link inside the bundle may point anywhere; only links to files inside are followed.
    root, real = os.path.realpath(folder), os.path.realpath(path)
    if os.path.commonpath([root, real]) != root:
        raise CheckFailed(f"{path}: is a link to {real}, outside the bundle: copy the file itself")
    if not path.is_file():
        raise CheckFailed(f"{path}: is not a regular file: export or copy the bundle again")
    return path


def verified_file(folder: Path, file: StoredFile) -> Path:
    """The path of a file of the bundle. Raises CheckFailed where its size or checksum is not the manifest's."""
    path = regular_file(folder, file.path)
    # The size is compared first, as it costs nothing and hashing a large file does.
    if path.stat().st_size != file.bytes:
        raise CheckFailed(f"{path}: has {path.stat().st_size} bytes, bundle.json says {file.bytes}: do not use it")
    actual = sha256_of(path)
    if actual != file.sha256:
        raise CheckFailed(f"{path}: sha256 is {actual[:12]}..., bundle.json says {file.sha256[:12]}...: do not use it")
    return path


def is_packed(path: Path) -> bool:
    """Whether a file looks like one that `edgeembed artifacts pack` wrote."""
    with path.open("rb") as file:
        # The first bytes of every zip file, for a packed bundle that was renamed.
        return path.name.endswith(PACKED_SUFFIX) or file.read(4) == b"PK\x03\x04"


def check_shapes(
    path: Path,
    manifest: BundleManifest,
    input_shape: Sequence[int | None],
    output_shape: Sequence[int | None],
) -> None:
    """Raises CheckFailed for a graph whose input or output size is not the one in bundle.json.

    `input_shape` is (N, H, W, 3), `output_shape` (N, D), as the graph declares them. A D that the graph leaves dynamic
    is checked on the first output instead.
    """
    height, width, dim = manifest.input.height, manifest.input.width, manifest.embedding.dim
    if tuple(input_shape[1:3]) != (height, width):
        found = f"{input_shape[1]} x {input_shape[2]}"
        raise CheckFailed(f"{path}: takes images of {found}, bundle.json says {height} x {width}: export it again")
    if isinstance(output_shape[1], int) and output_shape[1] != dim:
        raise CheckFailed(f"{path}: gives {output_shape[1]} dimensions, bundle.json says {dim}: export it again")


def check_unit_length(path: Path, embedding_ND: FloatArray) -> None:
    """Raises CheckFailed for vectors that an inner product cannot compare, which search would rank wrongly."""
    if defect := find_defect(embedding_ND):
        raise CheckFailed(f"{path}: {defect}: export it again")


def fp32_file(manifest: BundleManifest) -> BundleFile | None:
    """The fp32 ONNX file, which the bundle's other files are compared with; None where it has none."""
    return next((file for file in manifest.files if file.precision == "fp32" and file.path.endswith(ONNX)), None)


def choose_file(
    manifest: BundleManifest,
    precision: str | None,
    *,
    has_int8_dot_product: bool,
    order: Sequence[str] = ("fp32",),
    suffix: str = ONNX,
) -> BundleFile:
    """The file of a precision, among those with a suffix (ONNX or PLAN).

    Without a precision, the first of `order` that the bundle holds, else the bundle's first file. Files that need int8
    dot products are left out on a CPU without them, and so are files that failed their gate (`accepted_worse`), unless
    there is no other.

    Raises UserError where the bundle holds no such file, and where none of its files is right for this CPU.
    """
    # `read_bundle` has checked that no two ONNX files of one runtime share a precision.
    by_precision = {file.precision: file for file in manifest.files if file.path.endswith(suffix)}
    if not by_precision:
        raise UserError(
            f"bundle {manifest.name!r}: holds no {suffix} file{BUILD_ENGINE_HINT if suffix == PLAN else ''}"
        )
    if precision is not None:
        if precision not in by_precision:
            raise UserError(
                f"bundle {manifest.name!r}: no precision {precision!r}, it holds {', '.join(sorted(by_precision))}"
            )
        return by_precision[precision]
    suitable = {
        name: file for name, file in by_precision.items() if has_int8_dot_product or not file.needs_int8_dot_products
    }
    if not suitable:
        raise UserError(
            f"bundle {manifest.name!r}: it holds only int8 files with 8-bit weights, which a CPU without int8 dot "
            "products computes wrongly: export the run again, which gives 7-bit weights, or name the precision to use "
            "it nevertheless"
        )
    # A bundle may hold nothing but files that failed their gate, as `--accept-worse` allows.
    suitable = {name: file for name, file in suitable.items() if not file.accepted_worse} or suitable
    return next((suitable[name] for name in order if name in suitable), next(iter(suitable.values())))
