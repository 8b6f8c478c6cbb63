"""Writes the built-in synthetic data set, which commands use by default, with its manifest."""

from __future__ import annotations

from pathlib import Path

from edgeembed.data.manifest import Manifest, ManifestRow, build_manifest, read_manifest, write_manifest
from edgeembed.data.synthetic import write_synthetic
from edgeembed.progress import counter

NUM_INSTANCES, NUM_VIEWS, SIZE_PX, SEED = 100, 24, 224, 0


def write_default_set(
    folder: Path,
    *,
    num_instances: int = NUM_INSTANCES,
    num_views: int = NUM_VIEWS,
    size_px: int = SIZE_PX,
    seed: int = SEED,
    manifest_name: str = "manifest.parquet",
    workers: int | None = None,
) -> Manifest:
    """Renders the images, writes the manifest and returns it.

    The manifest is written last: where it exists, all images do. A .csv manifest needs no pyarrow.
    `workers` processes render; by default one for each CPU core.
    """
    if manifest_name.endswith(".parquet"):
        import pyarrow.parquet  # noqa: F401  # missing in the base install: fail before images are rendered
    with counter("rendering", total=num_instances * num_views) as on_progress:
        rows = write_synthetic(
            folder,
            num_instances=num_instances,
            num_views=num_views,
            size_px=size_px,
            seed=seed,
            workers=workers,
            on_progress=on_progress,
        )
    manifest = build_manifest(
        folder.resolve(),
        [
            ManifestRow(path=row.path, label=row.label, domain=row.domain, split=row.split, role=row.role)
            for row in rows
        ],
        source=str(folder),
    )
    write_manifest(folder / manifest_name, manifest)
    # Read back, so that the first command gets the same manifest as every later one.
    return read_manifest(folder / manifest_name)
