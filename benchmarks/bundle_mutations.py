"""What can happen to a bundle, or be done to it: each mutation damages a private copy, none leaves it acceptable."""

from __future__ import annotations

import hashlib
import io
import json
import os
import random
import shutil
import struct
import unicodedata
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from onnx import TensorProto, helper, numpy_helper

Damage = Callable[[random.Random, Path], None]
Facts = dict[str, Any]

MANIFEST, CARD, FP32, INT8 = "bundle.json", "MODEL_CARD.md", "model.fp32.onnx", "model.int8.onnx"
FILES = (MANIFEST, CARD, FP32, INT8)
BOMB_BYTES = 64 * 2**20


def rewrite(path: Path, content: bytes) -> None:
    """Replaces a file; the copies are hard links, so it is never changed in place."""
    path.unlink()
    path.write_bytes(content)


def seal_again(folder: Path, facts: Facts | str) -> None:
    """Writes bundle.json with a right seal over wrong content; text goes in as it is."""
    text = facts if isinstance(facts, str) else json.dumps(facts, indent=2)
    content = text.removesuffix("\n}").encode("utf-8", "surrogatepass") + b",\n"
    seal = hashlib.sha256(content).hexdigest().encode()
    rewrite(folder / MANIFEST, content + b'  "seal": "%s"\n}\n' % seal)


def facts_of(folder: Path) -> Facts:
    facts: Facts = json.loads((folder / MANIFEST).read_bytes())
    del facts["seal"]
    return facts


# Damage to the bytes of one file.


def flip(rng: random.Random, path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[rng.randrange(len(content))] ^= rng.randrange(1, 256)
    rewrite(path, bytes(content))


def truncate(rng: random.Random, path: Path) -> None:
    content = path.read_bytes()
    rewrite(path, content[: len(content) - rng.choice([1, 2, rng.randrange(1, len(content))])])


def empty(_: random.Random, path: Path) -> None:
    rewrite(path, b"")


def append(rng: random.Random, path: Path) -> None:
    rewrite(path, path.read_bytes() + rng.choice([b"\n", b"\0", b" ", b"{}", rng.randbytes(100)]))


def zero_a_block(rng: random.Random, path: Path) -> None:
    content = bytearray(path.read_bytes())
    start = rng.randrange(len(content) - 1) // 512 * 512
    block = content[start : start + 512]
    content[start : start + 512] = bytes(len(block)) if any(block) else b"\xff" * len(block)
    rewrite(path, bytes(content))


def drop_a_byte(rng: random.Random, path: Path) -> None:
    content = path.read_bytes()
    position = rng.randrange(len(content))
    rewrite(path, content[:position] + content[position + 1 :])


def remove(_: random.Random, path: Path) -> None:
    path.unlink()


def become_fifo(_: random.Random, path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def become_folder(_: random.Random, path: Path) -> None:
    path.unlink()
    path.mkdir()


def become_link(rng: random.Random, path: Path) -> None:
    """To the same bytes outside the folder, to a device that never ends, to nothing, to itself."""
    outside = path.parent.parent / "outside" / path.name
    shutil.copyfile(path, outside)
    target = rng.choice([outside, "/dev/zero", "/dev/null", "nowhere", path.name, Path("..") / "outside" / path.name])
    path.unlink()
    path.symlink_to(target)


def of_a_file(damage: Damage, names: Sequence[str] = FILES) -> Damage:
    """Damage to one file of a bundle folder."""
    return lambda rng, folder: damage(rng, folder / rng.choice(names))


def swap(rng: random.Random, folder: Path) -> None:
    first, second = rng.sample(FILES, 2)
    (folder / first).rename(folder / "third")
    (folder / second).rename(folder / first)
    (folder / "third").rename(folder / second)


# Wrong facts under a right seal.


def wrong_number(rng: random.Random, folder: Path) -> None:
    facts = facts_of(folder)
    group, key = rng.choice([("embedding", "dim"), ("input", "height"), ("input", "width")])
    right = facts[group][key]
    wrong = [right + 1, right - 1, 2 * right, 1, 0, -1, -right, 8192, 8193, 65536, 2**31, 2**63, 10**30, 10**4000]
    facts[group][key] = rng.choice([*wrong, 1e308, 0.5, float("nan"), float("inf"), "many", None, [right], {}])
    seal_again(folder, facts)


def wrong_file_facts(rng: random.Random, folder: Path) -> None:
    facts = facts_of(folder)
    file = rng.choice([*facts["files"], facts["card"]])
    key = rng.choice(["bytes", "sha256"])
    wrong: dict[str, list[Any]] = {
        "bytes": [file["bytes"] + 1, file["bytes"] - 1, 0, -1, 2**62, 10**25, float("nan"), "", None],
        "sha256": ["0" * 64, file["sha256"][:-1], file["sha256"].upper().replace("0", "O"), "", None, 7],
    }
    file[key] = rng.choice(wrong[key])
    seal_again(folder, facts)


def wrong_path(rng: random.Random, folder: Path) -> None:
    outside = folder.parent / "outside" / FP32
    shutil.copyfile(folder / FP32, outside)
    facts = facts_of(folder)
    file = rng.choice([*facts["files"], facts["card"]])
    other = next(each["path"] for each in (*facts["files"], facts["card"]) if each is not file)
    file["path"] = rng.choice(
        [
            str(outside), f"../outside/{FP32}", f"a/../../outside/{FP32}", f"..\\outside\\{FP32}", "C:\\model.onnx",
            "C:model.onnx", other, other.upper(), f"./{other}", f"x//{other}", f"{file['path']}/", "", ".", "..", "/",
            "model\0.onnx", "model\n.onnx", "model\ud800.onnx", "x" * 300 + ".onnx", "x" * 10**6, MANIFEST,
            MANIFEST.upper(), "nothing.onnx", "/dev/zero", "/dev/stdin", None, 7, ["model.onnx"],
        ]
    )  # fmt: skip
    seal_again(folder, facts)


def same_name_twice(rng: random.Random, folder: Path) -> None:
    """The same file again: under its name, under one that some systems take for it, or as the same precision."""
    facts = facts_of(folder)
    file = dict(rng.choice(facts["files"]))
    if rng.random() < 0.5:
        file["path"] = f"é-{file['path']}"
        facts["files"] += [file, {**file, "path": unicodedata.normalize("NFD", file["path"])}]
    else:
        facts["files"].append(file)
    seal_again(folder, facts)


def wrong_structure(rng: random.Random, folder: Path) -> None:
    facts = facts_of(folder)
    key = rng.choice(["schema", "name", "space_id", "embedding", "input", "files", "card"])
    if rng.random() < 0.5:
        del facts[key]
    else:
        facts[key] = rng.choice([None, 7, True, [None], {"a": 1}, [], {}, "\ud800", "x" * 10**6])
    seal_again(folder, facts)


def other_schema(rng: random.Random, folder: Path) -> None:
    """An older or newer version over the old seal, or a newer one under a right seal."""
    if rng.random() < 0.5:
        content = (folder / MANIFEST).read_bytes()
        rewrite(folder / MANIFEST, content.replace(b"edgeembed-bundle/2", rng.choice([b"edgeembed-bundle/1", b"x"])))
    else:
        seal_again(folder, {**facts_of(folder), "schema": rng.choice(["edgeembed-bundle/3", "", [2], "x" * 10**6])})


def no_seal(rng: random.Random, folder: Path) -> None:
    facts = facts_of(folder)
    seal = rng.choice([None, "", "0" * 64, 7])
    rewrite(folder / MANIFEST, json.dumps(facts if seal is None else {**facts, "seal": seal}, indent=2).encode())


def deep_nesting(rng: random.Random, folder: Path) -> None:
    depth = rng.choice([20, 300, 900, 5000, 100_000])
    nested = rng.choice(["[" * depth + "]" * depth, '{"a":' * depth + "1" + "}" * depth, "[" * depth])
    text = json.dumps(facts_of(folder), indent=2)
    seal_again(folder, text.removesuffix("\n}") + f',\n  "extra": {nested}\n}}')


def huge_json(rng: random.Random, folder: Path) -> None:
    size = rng.choice([5, 20, 60]) * 2**20
    if rng.random() < 0.5:
        seal_again(folder, {**facts_of(folder), "licence": "x" * size})
    else:
        rewrite(folder / MANIFEST, b" " * size + (folder / MANIFEST).read_bytes())


def too_many_files(rng: random.Random, folder: Path) -> None:
    facts = facts_of(folder)
    first = facts["files"][0]
    facts["files"] += [{**first, "path": f"{number}.onnx"} for number in range(rng.choice([300, 3000]))]
    seal_again(folder, facts)


def same_key_twice(rng: random.Random, folder: Path) -> None:
    text = json.dumps(facts_of(folder), indent=2)
    seal_again(folder, text.removesuffix("\n}") + rng.choice([',\n  "space_id": "x"\n}', ',\n  "name": "x"\n}']))


def other_network(rng: random.Random, folder: Path) -> None:
    """Another valid ONNX file, with checksum and seal made right for it."""
    facts = facts_of(folder)
    height, width, dim = facts["input"]["height"], facts["input"]["width"], facts["embedding"]["dim"]
    right: Facts = {"image": ["N", height, width, 3], "dim": dim}
    wrong: list[Facts] = [
        {"image": ["N", height + 8, width, 3]}, {"image": ["N", height, 2 * width, 3]},
        {"image": ["N", "H", "W", 3]}, {"image": ["N", 8192, 8192, 3]}, {"image": ["N", 3, height, width]},
        {"image": ["N", height, width, 1]}, {"image": [1, height, width, 3]}, {"image": ["N", height, width]},
        {"dim": dim + 1}, {"dim": 1}, {"dim": 60_000}, {"kind": TensorProto.FLOAT}, {"input": "pixels"},
        {"output": "vector"}, {"norm": False}, {"nan": True},
    ]  # fmt: skip
    file = rng.choice(facts["files"])
    content = network(**{**right, **rng.choice(wrong)})
    rewrite(folder / file["path"], content)
    file.update(bytes=len(content), sha256=hashlib.sha256(content).hexdigest())
    seal_again(folder, facts)


def no_network(rng: random.Random, folder: Path) -> None:
    """What is no network at all, with checksum and seal made right for it."""
    facts = facts_of(folder)
    file = rng.choice(facts["files"])
    old = (folder / file["path"]).read_bytes()
    content = rng.choice([b"", b"\0" * 1000, rng.randbytes(5000), old[: len(old) // 2], old[100:], b"PK\x03\x04"])
    rewrite(folder / file["path"], content)
    file.update(bytes=len(content), sha256=hashlib.sha256(content).hexdigest())
    seal_again(folder, facts)


def network(
    *,
    image: list[int | str],
    dim: int,
    kind: int = TensorProto.UINT8,
    input: str = "image",
    output: str = "embedding",
    norm: bool = True,
    nan: bool = False,
) -> bytes:
    """The mean of all pixels, times a vector: valid ONNX of any shape."""
    axes = np.arange(1, len(image), dtype=np.int64)
    weight = np.full((1, dim), np.nan if nan else 1.0, np.float32)
    nodes = [
        helper.make_node("Cast", [input], ["float"], to=TensorProto.FLOAT),
        helper.make_node("ReduceMean", ["float", "axes"], ["mean"], keepdims=0),
        helper.make_node("Unsqueeze", ["mean", "last"], ["column"]),
        helper.make_node("MatMul", ["column", "weight"], ["product"]),
        helper.make_node("LpNormalization", ["product"], [output], axis=1, p=2)
        if norm
        else helper.make_node("Identity", ["product"], [output]),
    ]
    constants = {"axes": axes, "last": np.array([1], np.int64), "weight": weight}
    graph = helper.make_graph(
        nodes,
        "other",
        [helper.make_tensor_value_info(input, kind, image)],
        [helper.make_tensor_value_info(output, TensorProto.FLOAT, [image[0], dim])],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    return bytes(model.SerializeToString())


# Damage to a packed bundle.


def entries_of(path: Path) -> list[tuple[zipfile.ZipInfo, bytes]]:
    with zipfile.ZipFile(path) as packed:
        return [(info, packed.read(info)) for info in packed.infolist()]


def zip_again(path: Path, entries: list[tuple[zipfile.ZipInfo, bytes]]) -> None:
    sink = io.BytesIO()
    with zipfile.ZipFile(sink, "w") as packed:
        for info, content in entries:
            packed.writestr(info, content)
    rewrite(path, sink.getvalue())


def entry(name: str, *, compress: int = zipfile.ZIP_STORED, mode: int = 0o100644) -> zipfile.ZipInfo:
    info = zipfile.ZipInfo(name)
    info.compress_type, info.external_attr, info.create_system = compress, mode << 16, 3
    return info


def flip_a_header(rng: random.Random, path: Path) -> None:
    """In the first header or in the directory at the end, where a tolerant reader looks away."""
    content = bytearray(path.read_bytes())
    position = rng.choice([rng.randrange(41), len(content) - 1 - rng.randrange(300)])
    content[position] ^= 1 << rng.randrange(8)
    rewrite(path, bytes(content))


def slip(rng: random.Random, path: Path) -> None:
    """An entry that leads out of the folder: one more, or in place of one that is right."""
    outside = path.parent / "outside" / "evil"
    name = rng.choice(
        ["../evil", "../outside/evil", str(outside), "a/../../evil", "..\\evil", "/var/../evil", "..", ""]
    )
    entries = entries_of(path)
    if rng.random() < 0.5:
        entries.insert(rng.randrange(len(entries) + 1), (entry(name), b"evil"))
    else:
        position = rng.randrange(len(entries))
        entries[position] = (entry(name), entries[position][1])
    zip_again(path, entries)


def slip_under_seal(rng: random.Random, path: Path) -> None:
    """bundle.json itself names a place outside, with a right seal, and the zip holds it."""
    work = path.parent / "outside" / "bundle"
    work.mkdir()
    entries = entries_of(path)
    for info, content in entries:
        (work / info.filename).write_bytes(content)
    facts = facts_of(work)
    name = rng.choice(["../evil.onnx", str(path.parent / "outside" / "evil.onnx"), "x/../../evil.onnx", "..\\evil"])
    old, facts["files"][0]["path"] = facts["files"][0]["path"], name
    seal_again(work, facts)
    renamed = [(entry(name) if info.filename == old else info, content) for info, content in entries]
    zip_again(path, [(info, (work / MANIFEST).read_bytes() if info.filename == MANIFEST else content)
                     for info, content in renamed])  # fmt: skip
    shutil.rmtree(work)


def duplicate_entry(rng: random.Random, path: Path) -> None:
    entries = entries_of(path)
    info, content = rng.choice(entries)
    entries.insert(rng.randrange(len(entries) + 1), (info, rng.choice([content, b"other"])))
    content_of_zip = io.BytesIO()
    with zipfile.ZipFile(content_of_zip, "w") as packed:
        for number, (each, data) in enumerate(entries):
            packed.writestr(entry(f"{number:02}" + each.filename[2:]), data)
    raw = content_of_zip.getvalue()
    for number, (each, _) in enumerate(entries):  # zipfile warns of duplicates, so the names are put in afterwards
        raw = raw.replace((f"{number:02}" + each.filename[2:]).encode(), each.filename.encode())
    rewrite(path, raw)


def change_entries(rng: random.Random, path: Path) -> None:
    """One missing, one more, two in another order, one under another name, a folder, thousands."""
    entries = entries_of(path)
    how = rng.randrange(6)
    if how == 0:
        del entries[rng.randrange(len(entries))]
    elif how == 1:
        entries.insert(rng.randrange(len(entries) + 1), (entry("more.txt"), b"more"))
    elif how == 2:
        first = rng.randrange(len(entries) - 1)
        entries[first], entries[first + 1] = entries[first + 1], entries[first]
    elif how == 3:
        entries[-1] = (entry("README.md"), entries[-1][1])
    elif how == 4:
        entries.append((entry("folder/", mode=0o40755), b""))
    else:
        entries += [(entry(f"{number}.txt"), b"") for number in range(5000)]
    zip_again(path, entries)


def link_entry(rng: random.Random, path: Path) -> None:
    """A symbolic link as an entry: in place of a file, or one more that later entries would follow."""
    entries = entries_of(path)
    target = rng.choice([b"/etc/passwd", b"../outside", b"/dev/zero", str(path.parent / "outside").encode()])
    position = rng.randrange(len(entries))
    if rng.random() < 0.5:
        entries[position] = (entry(entries[position][0].filename, mode=0o120777), target)
    else:
        entries[position:position] = [(entry("d", mode=0o120777), target), (entry("d/evil"), b"evil")]
    zip_again(path, entries)


def bomb(rng: random.Random, path: Path) -> None:
    """An entry of a few kilobytes that unfolds to many megabytes."""
    entries = entries_of(path)
    position = rng.randrange(len(entries))
    filler = rng.choice([b" ", b"\0"]) * BOMB_BYTES
    entries[position] = (entry(entries[position][0].filename, compress=zipfile.ZIP_DEFLATED), filler)
    zip_again(path, entries)


def compress(rng: random.Random, path: Path) -> None:
    entries = entries_of(path)
    position = rng.randrange(len(entries))
    name, content = entries[position][0].filename, entries[position][1]
    zip_again(path, [*entries[:position], (entry(name, compress=zipfile.ZIP_BZIP2), content[:100_000]),
                     *entries[position + 1 :]])  # fmt: skip


def lie_about_a_size(rng: random.Random, path: Path) -> None:
    """Both sizes in the first header become another number, up to the largest that fits."""
    content = bytearray(path.read_bytes())
    size = rng.choice([0, 1, 2**31, 2**32 - 1, 4 * 2**20, rng.randrange(2**32)])
    content[18:26] = struct.pack("<2L", size, size)
    rewrite(path, bytes(content))


def other_kind_of_file(rng: random.Random, path: Path) -> None:
    rewrite(
        path, rng.choice([b"not a zip", b"\x89PNG\r\n\x1a\n" + bytes(100), b"PK\x05\x06" + bytes(18), b"PK\x03\x04"])
    )


FOLDER: dict[str, Damage] = {
    **{f"byte changed in {name}": of_a_file(flip, [name]) for name in FILES},
    "bundle.json cut off": of_a_file(truncate, [MANIFEST]),
    "a file cut off": of_a_file(truncate),
    "a byte lost": of_a_file(drop_a_byte),
    "a block of zeros": of_a_file(zero_a_block),
    "bytes appended": of_a_file(append),
    "a file empty": of_a_file(empty),
    "a file missing": of_a_file(remove),
    "two files swapped": swap,
    "a FIFO": of_a_file(become_fifo),
    "a folder for a file": of_a_file(become_folder),
    "a link outside": of_a_file(become_link),
    "another network, sealed": other_network,
    "no network, sealed": no_network,
    "wrong dimensions, sealed": wrong_number,
    "wrong size or checksum, sealed": wrong_file_facts,
    "wrong path, sealed": wrong_path,
    "a name twice, sealed": same_name_twice,
    "wrong structure, sealed": wrong_structure,
    "another schema": other_schema,
    "no seal": no_seal,
    "deep nesting, sealed": deep_nesting,
    "huge bundle.json": huge_json,
    "too many files, sealed": too_many_files,
    "a key twice, sealed": same_key_twice,
}

PACKED: dict[str, Damage] = {
    "packed: byte changed": flip,
    "packed: header changed": flip_a_header,
    "packed: cut off": truncate,
    "packed: a byte lost": drop_a_byte,
    "packed: bytes appended": append,
    "packed: empty": empty,
    "packed: missing": remove,
    "packed: a FIFO": become_fifo,
    "packed: a folder": become_folder,
    "packed: another kind of file": other_kind_of_file,
    "packed: an entry leads outside": slip,
    "packed: a sealed path leads outside": slip_under_seal,
    "packed: an entry twice": duplicate_entry,
    "packed: entries changed": change_entries,
    "packed: a link": link_entry,
    "packed: a bomb": bomb,
    "packed: compressed": compress,
    "packed: a false size": lie_about_a_size,
}
