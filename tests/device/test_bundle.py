"""bundle.json: its checksum, the names it may hold, and that a graph must have the sizes that it says."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgeembed.device.bundle import check_shapes, read_bundle, verified_file, write_bundle
from edgeembed.device.bundle_schema import SCHEMA, SCHEMA_WITHOUT_CHECKSUM, BundleManifest
from edgeembed.device.checksummed_json import MAX_BYTES, read_checksummed, write_checksummed
from edgeembed.device.embedder import Embedder
from edgeembed.errors import CheckFailed, UserError
from tests.device.conftest import SIZE_PX, tiny_network, write_manifest

MakeBundle = Callable[..., Path]
CHANGED = r"bundle\.json was changed or cut off .*: export or copy the bundle again"


def facts_of(folder: Path) -> dict[str, Any]:
    facts: dict[str, Any] = json.loads((folder / "bundle.json").read_text())
    del facts["seal"]
    return facts


def test_what_was_written_is_read_with_its_card(bundle: Path) -> None:
    manifest = read_bundle(bundle)
    assert manifest.schema_ == SCHEMA
    assert manifest.card is not None
    assert verified_file(bundle, manifest.card) == bundle / "MODEL_CARD.md"
    lines = (bundle / "bundle.json").read_text().splitlines()
    assert lines[-2].startswith('  "seal": "')
    assert list(json.loads((bundle / "bundle.json").read_text()))[-2:] == ["versions", "seal"]


def test_every_single_byte_of_the_manifest_is_protected(make_bundle: MakeBundle) -> None:
    path = make_bundle() / "bundle.json"
    whole = path.read_bytes()
    rng = np.random.default_rng(0)
    damaged = [whole[:length] for length in (*range(0, len(whole), 20), len(whole) - 1)]
    for position in range(len(whole)):
        changed = bytearray(whole)
        changed[position] ^= int(rng.integers(1, 256))
        damaged.append(bytes(changed))
    for content in damaged:
        path.write_bytes(content)
        with pytest.raises(CheckFailed, match=CHANGED):
            read_bundle(path.parent)
    path.write_bytes(whole)
    read_bundle(path.parent)


@pytest.mark.parametrize("tail", [b"\n", b" ", b"{}", b"\0", b'  "seal": "%s"\n}\n' % (b"0" * 64)])
def test_nothing_may_stand_after_the_object(make_bundle: MakeBundle, tail: bytes) -> None:
    path = make_bundle() / "bundle.json"
    path.write_bytes(path.read_bytes() + tail)
    with pytest.raises(CheckFailed, match=CHANGED):
        read_bundle(path.parent)


def test_an_older_manifest_needs_no_checksum_but_one_that_it_has_must_be_right(make_bundle: MakeBundle) -> None:
    folder = make_bundle()
    facts = {**facts_of(folder), "schema": SCHEMA_WITHOUT_CHECKSUM}
    del facts["card"]
    (folder / "bundle.json").write_text(json.dumps(facts))
    assert read_bundle(folder).card is None
    write_checksummed(folder / "bundle.json", facts)
    assert read_bundle(folder).schema_ == SCHEMA_WITHOUT_CHECKSUM
    for seal in ("0" * 64, None):
        (folder / "bundle.json").write_text(json.dumps({**facts, "seal": seal}))
        with pytest.raises(CheckFailed, match='its "seal" is not in the form that it was written in'):
            read_bundle(folder)
    (folder / "bundle.json").write_text(json.dumps({**facts, "schema": SCHEMA}))
    with pytest.raises(CheckFailed, match='it lacks the key "seal"'):
        read_bundle(folder)


def test_a_changed_card_fails_verification(edgeembed: Callable[..., Any], make_bundle: MakeBundle) -> None:
    folder = make_bundle()
    (folder / "MODEL_CARD.md").write_text("# tinz\n")
    result = edgeembed("artifacts", "verify", folder)
    assert result.code == 1
    assert "1 of 3 files failed verification, first" in result.stderr
    assert "MODEL_CARD.md: sha256 is" in result.stderr


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"schema": "edgeembed-bundle/3"}, "schema 'edgeembed-bundle/3', this version reads 'edgeembed-bundle/2' and"),
        ({"card": None}, "card: missing"),
        ({"name": ""}, "name: "),
        ({"embedding": {"dim": 0}}, "embedding.dim: "),
        ({"embedding": {"dim": 65537}}, "embedding.dim: "),
        ({"input": {"height": 8193, "width": 32}}, "input.height: "),
        ({"files": {}}, "files: "),
        ({"files": []}, "files: "),
    ],
)
def test_wrong_values_under_a_right_checksum_are_named(
    make_bundle: MakeBundle, change: dict[str, Any], told: str
) -> None:
    folder = make_bundle()
    write_checksummed(folder / "bundle.json", {**facts_of(folder), **change})
    with pytest.raises(UserError, match=r"bundle\.json: ") as caught:
        read_bundle(folder)
    assert told in str(caught.value)


@pytest.mark.parametrize(
    ("paths", "told"),
    [
        (["/etc/passwd"], "'/etc/passwd' lies outside the bundle"),
        (["../model.onnx"], "lies outside"),
        (["a/../../model.onnx"], "lies outside"),
        (["..\\model.onnx"], "lies outside"),
        (["C:model.onnx"], "lies outside"),
        (["./model.onnx"], "not a name that every system can write"),
        (["a//model.onnx"], "not a name"),
        (["."], "not a name"),
        (["model\n.onnx"], "not a name"),
        (["model\0.onnx"], "not a name"),
        (["ä" * 200], "not a name"),
        (["a.onnx", "a.onnx"], "'a.onnx' is named twice"),
        (["a.onnx", "A.ONNX"], "'A.ONNX' is named twice"),
        (["bundle.json"], "'bundle.json' is named twice"),
        (["MODEL_CARD.md"], "'MODEL_CARD.md' is named twice"),
        (["a.onnx", "b.onnx"], "two ONNX files are 'fp32' for 'onnxruntime'"),
    ],
)
def test_names_must_be_safe_and_different(make_bundle: MakeBundle, paths: list[str], told: str) -> None:
    folder = make_bundle()
    facts = facts_of(folder)
    facts["files"] = [{**facts["files"][0], "path": path} for path in paths]
    write_checksummed(folder / "bundle.json", facts)
    with pytest.raises(UserError) as caught:
        read_bundle(folder)
    assert told in str(caught.value)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ('{"a": NaN}', "NaN is not a finite number"),
        ('{"a": -Infinity}', "-Infinity is not a finite number"),
        ('{"a": 1e999}', "1e999 is not a finite number"),
        ('{"a": -1}', "-1 is not a count"),
        ('{"a": %s}' % ("1" * 5000), "1 is not a count, which is at least 0 and has at most 18 digits"),
        ('{"a": 1, "a": 2}', "same key twice"),
        ('{"a": "\\ud800"}', "surrogates"),
        ('{"a": ' * 17 + "1" + "}" * 17, "nested deeper than 16"),
        ("[" * 100_000, "JSON array"),
        ("[1]", "expected a JSON object"),
        ("", "Expecting value"),
        ("{} {}", "Extra data"),
    ],
)
def test_json_that_some_reader_would_choke_on_is_refused(tmp_path: Path, text: str, told: str) -> None:
    (tmp_path / "bundle.json").write_text(text)
    with pytest.raises(CheckFailed, match=CHANGED) as caught:
        read_checksummed(tmp_path / "bundle.json")
    assert told in str(caught.value)


def test_a_manifest_of_many_megabytes_is_not_read(tmp_path: Path) -> None:
    (tmp_path / "bundle.json").write_text(" " * (MAX_BYTES + 1))
    with pytest.raises(UserError, match="larger than"):
        read_checksummed(tmp_path / "bundle.json")


@pytest.mark.parametrize("wrong", [float("nan"), float("inf"), -1.0])
def test_no_manifest_holds_figures_that_are_none(make_bundle: MakeBundle, wrong: float) -> None:
    facts = facts_of(make_bundle())
    facts["files"][0]["parity"] = {"cosine_p1": 0.9, "cosine_p50": 0.9, "max_abs": wrong}
    with pytest.raises(ValueError, match="max_abs"):
        BundleManifest.model_validate(facts)


def test_a_figure_in_passing_that_is_none_is_written_as_nothing(make_bundle: MakeBundle) -> None:
    folder = make_bundle()
    manifest = BundleManifest.model_validate({**facts_of(folder), "data": {"loss": float("nan")}})
    assert write_bundle(folder, manifest, "# tiny\n").data == {"loss": None}


@pytest.mark.parametrize("name", ["bundle.json", "model.fp32.onnx"])
def test_links_out_of_the_bundle_pipes_and_folders_are_refused_at_once(make_bundle: MakeBundle, name: str) -> None:
    folder = make_bundle()
    path, outside = folder / name, folder.parent / name
    path.rename(outside)
    path.symlink_to(outside)
    with pytest.raises(CheckFailed, match=f"{name}: is a link to .* outside the bundle"):
        Embedder(folder, precision="fp32")
    for make in (os.mkfifo, os.mkdir, lambda path: os.symlink("nowhere", path)):
        path.rmdir() if path.is_dir() else path.unlink()
        make(path)
        with pytest.raises(CheckFailed, match=f"{name}: is not a regular file"):
            Embedder(folder, precision="fp32")


def test_a_link_within_the_bundle_is_followed(make_bundle: MakeBundle) -> None:
    folder = make_bundle()
    (folder / "model.fp32.onnx").rename(folder / "weights")
    (folder / "model.fp32.onnx").symlink_to("weights")
    Embedder(folder, precision="fp32")


@pytest.mark.parametrize(
    ("input_shape", "output_shape", "told"),
    [
        (("N", 32, 32, 3), ("N", 64), None),
        (("N", 32, 32, 3), ("N", "D"), None),
        (("N", 48, 32, 3), ("N", 64), "takes images of 48 x 32, bundle.json says 32 x 32"),
        (("N", 32, 48, 3), ("N", 64), "takes images of 32 x 48"),
        (("N", "H", "W", 3), ("N", 64), "takes images of H x W"),
        (("N", 32, 32, 3), ("N", 65), "gives 65 dimensions, bundle.json says 64"),
    ],
)
def test_a_graph_must_have_the_sizes_that_the_bundle_says(
    bundle: Path, input_shape: tuple[Any, ...], output_shape: tuple[Any, ...], told: str | None
) -> None:
    manifest, path = read_bundle(bundle), Path("model.onnx")
    if told is None:
        check_shapes(path, manifest, input_shape, output_shape)
        return
    with pytest.raises(CheckFailed, match=r"model\.onnx: ") as caught:
        check_shapes(path, manifest, input_shape, output_shape)
    assert told in str(caught.value)


def test_sizes_are_compared_before_anything_is_computed(tmp_path: Path, edgeembed: Callable[..., Any]) -> None:
    tiny_network(tmp_path / "model.fp32.onnx")
    write_manifest(tmp_path)
    facts = facts_of(tmp_path)
    facts["input"].update(height=8192, width=8192)
    write_checksummed(tmp_path / "bundle.json", facts)
    with pytest.raises(CheckFailed, match=f"takes images of {SIZE_PX} x {SIZE_PX}, bundle.json says 8192 x 8192"):
        Embedder(tmp_path)
    result = edgeembed("artifacts", "verify", tmp_path)
    assert result.code == 1
    assert "bundle.json says 8192 x 8192" in result.stderr


@pytest.mark.parametrize(
    ("quantisation", "needed"),
    [
        (None, True),
        ({}, True),
        ({"calibration": "minmax", "reduce_range": False, "float_operators": []}, True),
        ({"calibration": "minmax", "reduce_range": True, "float_operators": ["a"]}, False),
        ({"reduce_range": True, "cpus": None}, False),
        ({"reduce_range": False, "cpus": "any"}, False),
        ({"reduce_range": True, "cpus": "int8 dot products"}, True),
        ({"cpus": "any", "a newer key": 1}, False),
    ],
)
def test_an_int8_file_needs_int8_dot_products_unless_its_bundle_says_otherwise(
    make_bundle: MakeBundle, quantisation: dict[str, Any] | None, needed: bool
) -> None:
    folder = make_bundle()
    facts = facts_of(folder)
    for file in facts["files"]:
        file["quantisation"] = quantisation
    write_checksummed(folder / "bundle.json", facts)
    fp32, int8 = read_bundle(folder).files
    assert int8.needs_int8_dot_products is needed
    assert not fp32.needs_int8_dot_products
    assert not int8.model_copy(update={"path": "model.int8.plan"}).needs_int8_dot_products
    again = write_bundle(folder, read_bundle(folder), "# card")
    assert again.files[1].quantisation == int8.quantisation


def test_cpus_that_no_bundle_names_are_refused(make_bundle: MakeBundle) -> None:
    folder = make_bundle()
    facts = facts_of(folder)
    facts["files"][1]["quantisation"] = {"cpus": "some"}
    write_checksummed(folder / "bundle.json", facts)
    with pytest.raises(UserError, match=r"files\.1\.quantisation\.cpus"):
        read_bundle(folder)
