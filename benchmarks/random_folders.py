"""Random folders as people have them, with what an import must make of each file, from the rules and not from the code.

A folder has class folders, in split folders or not, and some oddities. Each file that could be an image must come out
with its label and split, or be counted in the line that says what was left out.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import unicodedata
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from random_samples import REFUSED, RIGHT, WRONG, Outcome, Ran, command, command_apart, save, spelled, suffixes

SPLIT_SPELLINGS = {
    "train": ["train", "Train", "TRAIN", "training", "Training"],
    "val": ["val", "Val", "valid", "Validation", "validation", "VALID"],
    "test": ["test", "Test", "TEST", "testing", "Testing"],
}
CLASS_NAMES = [
    "cat",
    "dog",
    "two words",
    "K\u00e4se",
    "\u65e5\u672c\u8a9e",
    "50% off",
    "o'neill & sons",
    "#1",
    "a=b",
    "-x",
]
IN, EITHER, OUT, FREE = "in", "in or left out", "left out", "free"


@dataclass(frozen=True, kw_only=True)
class Expected:
    """Of one entry, which is a file, a link, or a whole folder that is left out as one.

    `labels` and `splits` are those that are right where it is imported; None: any. `bad`: no image by its content.
    """

    kind: str
    fate: str = IN
    labels: tuple[str | None, ...] | None = None
    splits: tuple[str, ...] | None = None
    bad: bool = False


@dataclass
class Folder:
    """A sample while it is built: `root` is imported, `store` is where links lead. Keys are paths below the root."""

    rng: random.Random
    root: Path
    store: Path
    splits: dict[str, str]  # the spelling of each split folder; none without split folders
    classes: list[str]
    expected: dict[str, Expected] = field(default_factory=dict)
    leaks: list[tuple[str, str]] = field(default_factory=list)
    may_refuse: list[str] = field(default_factory=list)  # names, any of which a refusal of the whole must give

    def places(self) -> Iterator[tuple[str, tuple[str, ...] | None]]:
        """The folders in which class folders lie, with the splits of what is in them."""
        yield from ((f"{name}/", (split,)) for split, name in self.splits.items()) if self.splits else [("", None)]

    def a_class(self) -> tuple[str, str, tuple[str, ...] | None]:
        """A class folder with a slash, its label, and the splits of its images."""
        place, splits = self.rng.choice(list(self.places()))
        name = self.rng.choice(self.classes)
        return f"{place}{name}/", composed(name), splits

    def image(self, path: str, kind: str, label: str | None, splits: tuple[str, ...] | None, fate: str = IN) -> None:
        save(self.rng, f"{self.root}/{path}")
        self.expected[path] = Expected(kind=kind, fate=fate, labels=(label,), splits=splits)

    def left_out(self, path: str, kind: str) -> None:
        self.expected[path] = Expected(kind=kind, fate=OUT)


def composed(text: str) -> str:
    return unicodedata.normalize("NFC", text)


def every_suffix(folder: Folder) -> None:
    for number in range(3):
        place, label, splits = folder.a_class()
        suffix = folder.rng.choice(suffixes())
        suffix = folder.rng.choice([suffix, suffix.upper()])
        folder.image(f"{place}suffix{number}{suffix}", "suffixes that Pillow opens", label, splits)


def other_suffixes(folder: Folder) -> None:
    place, _, _ = folder.a_class()
    name = f"{place}IMG_0001{folder.rng.choice(['.heic', '.HEIC', '.cr2', '.NEF', '.svg', '.dng', '.mp4'])}"
    (folder.root / name).write_bytes(b"\0\0\0\x18ftypheic" + folder.rng.randbytes(64))
    folder.left_out(name, "suffixes that Pillow does not open")


def stray_image(folder: Folder) -> None:
    folder.image("preview.png", "stray images", None, ("train",), EITHER if folder.splits else IN)


def stray_files(folder: Folder) -> None:
    place = folder.rng.choice(["", folder.a_class()[0]])
    for name in folder.rng.sample(["notes.txt", ".DS_Store", "Thumbs.db", "desktop.ini", "labels.json", "README"], 2):
        (folder.root / f"{place}{name}").write_bytes(b"not an image")
        folder.expected[f"{place}{name}"] = Expected(kind="stray files", fate=FREE)


def program_folder(folder: Folder) -> None:
    place = folder.rng.choice(["", folder.a_class()[0]])
    name = f"{place}{folder.rng.choice(['__MACOSX', '.ipynb_checkpoints', '__MACOSX/cat', '.git/objects'])}"
    save(folder.rng, f"{folder.root}/{name}/0-checkpoint.png")
    (folder.root / name / "._0.jpg").write_bytes(b"\0\5\26\7" + bytes(60))
    top = name.removeprefix(place).split("/")[0]
    folder.left_out(f"{place}{top}", "folders of programs")


def hidden_file(folder: Folder) -> None:
    place, _, _ = folder.a_class()
    (folder.root / f"{place}._0.png").write_bytes(b"\0\5\26\7" + bytes(60))
    folder.left_out(f"{place}._0.png", "hidden files")


def extra_folder(folder: Folder) -> None:
    if folder.splits:
        name, more = (
            folder.rng.choice(["extra", "backup", "unlabelled", "new pictures"]),
            folder.rng.choice(["", "/cat"]),
        )
        for number in range(2):
            path = f"{name}{more}/{number}.png"
            save(folder.rng, f"{folder.root}/{path}")
            folder.expected[path] = Expected(
                kind="extra folders", fate=EITHER, labels=(None, f"{name}{more}", "cat"), splits=("train",)
            )
    (folder.root / "empty").mkdir()


def dot_class(folder: Folder) -> None:
    for place, splits in folder.places():
        for number in range(2):
            path = f"{place}.net/{number}.png"
            folder.image(path, "class folders that begin with a dot", ".net", splits, EITHER)


def linked_class(folder: Folder) -> None:
    name = folder.rng.choice(["linked", "linked class"])
    place, splits = folder.rng.choice(list(folder.places()))
    for number in range(2):
        save(folder.rng, folder.store / name / f"{number}.png")
        folder.expected[f"{place}{name}/{number}.png"] = Expected(kind="symbolic links", labels=(name,), splits=splits)
    target: Path | str = folder.store / name
    if folder.rng.random() < 0.5:
        target = os.path.relpath(target, folder.root / place)
    (folder.root / f"{place}{name}").symlink_to(target)


def linked_image(folder: Folder) -> None:
    place, label, splits = folder.a_class()
    save(folder.rng, folder.store / "single.png")
    (folder.root / f"{place}linked.png").symlink_to(folder.store / "single.png")
    folder.expected[f"{place}linked.png"] = Expected(kind="symbolic links", labels=(label,), splits=splits)


def link_loop(folder: Folder) -> None:
    place = folder.rng.choice(["", folder.a_class()[0]])
    (folder.root / f"{place}loop").symlink_to(folder.rng.choice([".", "..", folder.root]))
    folder.left_out(f"{place}loop", "loops of links")


def broken_link(folder: Folder) -> None:
    place, _, _ = folder.a_class()
    (folder.root / f"{place}gone.png").symlink_to("nowhere.png")
    folder.left_out(f"{place}gone.png", "broken links")


def not_utf8(folder: Folder) -> None:
    place, label, splits = folder.a_class()
    if folder.rng.random() < 0.5:
        place, label = f"{place}caf\udce9/", f"{label}/caf\udce9"
        labels: tuple[str | None, ...] | None = None
        path = f"{place}0.png"
    else:
        labels, path = (label,), f"{place}caf\udce9.png"
    save(folder.rng, f"{folder.root}/{path}")
    folder.expected[path] = Expected(kind="names that are not UTF-8", fate=EITHER, labels=labels, splits=splits)
    folder.may_refuse.append("caf\udce9")


def two_spellings(folder: Folder) -> None:
    name = folder.rng.choice(["Caf\u00e9", "pi\u00f1a", "\uac00\ub098", "\u00c5ngstr\u00f6m"])
    spellings = [unicodedata.normalize(form, name) for form in ("NFD", "NFC")]
    places = list(folder.places())
    places = [places[0], places[-1]]
    for number, ((place, splits), spelling) in enumerate(zip(places, spellings, strict=True)):
        for image in range(2):
            path = f"{place}{spelling}/{number}{image}.png"
            folder.image(path, "labels in NFC and NFD", composed(name), splits)


def folder_with_suffix(folder: Folder) -> None:
    place, splits = folder.rng.choice(list(folder.places()))
    folder.image(f"{place}v1.png/0.png", "class folders called like a file", "v1.png", splits)


def nested(folder: Folder) -> None:
    place, splits = folder.rng.choice(list(folder.places()))
    for number in range(2):
        folder.image(f"{place}animals/owl/{number}.png", "nested class folders", "animals/owl", splits)


def special_file(folder: Folder) -> None:
    place, _, _ = folder.a_class()
    os.mkfifo(folder.root / f"{place}pipe.png")
    folder.left_out(f"{place}pipe.png", "special files")


def no_image(folder: Folder) -> None:
    place, label, splits = folder.a_class()
    name = f"{place}{folder.rng.choice(['empty.jpg', 'page.png', 'broken.JPG'])}"
    content = folder.rng.choice([b"", b"<html>404</html>", folder.rng.randbytes(100)])
    (folder.root / name).write_bytes(content)
    folder.expected[name] = Expected(
        kind="files that are no image", fate=EITHER, labels=(label,), splits=splits, bad=True
    )


def leak(folder: Folder) -> None:
    if len(folder.splits) < 2:
        return
    label = folder.classes[0]
    train, test = (f"{folder.splits[split]}/{label}/" for split in ("train", "test"))
    shutil.copyfile(folder.root / f"{train}0.png", folder.root / f"{test}copy.png")
    folder.expected[f"{test}copy.png"] = Expected(
        kind="one image in two splits", labels=(composed(label),), splits=("test",)
    )
    folder.leaks.append((f"{train}0.png", f"{test}copy.png"))


ODDITIES: list[Callable[[Folder], None]] = [
    every_suffix, other_suffixes, stray_image, stray_files, program_folder, hidden_file, extra_folder, dot_class,
    linked_class, linked_image, link_loop, broken_link, not_utf8, two_spellings, folder_with_suffix, nested,
    special_file, no_image, leak,
]  # fmt: skip


def build(rng: random.Random, top: Path) -> Folder:
    """A folder with one to five oddities."""
    splits = {}
    if rng.random() < 0.6:
        splits = {
            split: rng.choice(SPLIT_SPELLINGS[split]) for split in rng.choice([("train", "test"), SPLIT_SPELLINGS])
        }
    folder = Folder(
        rng=rng,
        root=top / rng.choice(["set", "my set", "S\u00e4tze"]),
        store=top / "store",
        splits=splits,
        classes=rng.sample(CLASS_NAMES, rng.randint(2, 4)),
    )
    kind = "split folders in any spelling" if splits else "class folders"
    for place, allowed in folder.places():
        for name in folder.classes:
            for number in range(3):
                folder.image(f"{place}{name}/{number}.png", kind, composed(name), allowed)
    for oddity in rng.sample(ODDITIES, rng.randint(1, 5)):
        oddity(folder)
    return folder


def check(rng: random.Random, top: Path, *, turn: int, apart: bool) -> list[Outcome]:
    """Imports a random folder, checks the manifest's images, and embeds some folders; one outcome a kind."""
    del turn
    folder = build(rng, top)
    table = top / rng.choice(["m.parquet", "m.csv"])
    runner = command_apart if apart else command
    ran = runner("data", "import", "folder", folder.root, "--out", table, "--json")
    kinds = sorted({entry.kind for entry in folder.expected.values()})
    if ran.code != 0 or ran.fault():
        named = ran.code == 2 and not ran.fault() and any(ran.names(name) for name in folder.may_refuse)
        return [Outcome(kind=kind, outcome=REFUSED if named else WRONG, message=ran.error) for kind in kinds]
    rows = read_rows(table)
    faults = import_faults(folder, ran, rows)
    faults += check_faults(folder, command("data", "check", table), rows)
    if rng.random() < 0.3:
        faults += embed_faults(folder, top)
    outcomes = []
    for kind in kinds:
        mine = [message for of, message in faults if of == kind]
        absent = [path for path, entry in folder.expected.items() if entry.kind == kind and path not in rows]
        best = REFUSED if absent else RIGHT
        outcomes.append(Outcome(kind=kind, outcome=WRONG if mine else best, message="; ".join(mine[:3])))
    others = [message for of, message in faults if of not in kinds]
    return outcomes + ([Outcome(kind="whole folder", outcome=WRONG, message="; ".join(others))] if others else [])


def read_rows(table: Path) -> dict[str, tuple[str | None, str]]:
    """Label and split by path below the root; read without edgeembed."""
    if table.suffix == ".csv":
        import csv

        with table.open(newline="", encoding="utf-8", errors="surrogateescape") as file:
            listed = list(csv.DictReader(file))
        base = table.parent
    else:
        import pyarrow.parquet

        found = pyarrow.parquet.read_table(table)
        listed, base = found.to_pylist(), Path(os.fsdecode(found.schema.metadata[b"root"]))
    root = next(path for path in table.parent.iterdir() if path.is_dir() and path.name != "store")
    return {
        os.path.relpath(base / row["path"], root): (row["label"] or None, row["split"])
        for row in listed
        if os.path.lexists(base / row["path"])
    } | {f"missing: {row['path']}": (None, "") for row in listed if not os.path.lexists(base / row["path"])}


def import_faults(folder: Folder, ran: Ran, rows: dict[str, tuple[str | None, str]]) -> list[tuple[str, str]]:
    faults = []
    counted, whole = accounted_for(folder, ran, set(rows))
    for path, entry in folder.expected.items():
        name = spelled(path)
        if path not in rows:
            if entry.fate == IN:
                faults.append((entry.kind, f"{name} was not imported{' (but counted)' if whole else ''}"))
            elif entry.fate != FREE and not whole and path not in counted:
                faults.append((entry.kind, f"{name} was left out silently"))
            continue
        label, split = rows[path]
        if entry.fate in (OUT, FREE):
            faults.append((entry.kind, f"{name} was imported"))
        elif entry.labels is not None and label not in entry.labels:
            faults.append((entry.kind, f"{name} has label {label!r}, expected one of {entry.labels}"))
        elif split not in (entry.splits or ("train", "val", "test")):
            faults.append((entry.kind, f"{name} has split {split}, expected one of {entry.splits}"))
    for path in rows:
        if path not in folder.expected:
            faults.append((kind_of_inner(folder, path), f"{spelled(path)} was imported"))
    if json.loads(ran.out)["images"] != len(rows):
        faults.append(("whole folder", f"says {json.loads(ran.out)['images']} images, wrote {len(rows)}"))
    return faults


def kind_of_inner(folder: Folder, path: str) -> str:
    """Of a file that should not have been imported: the kind of the folder or link that it lies in."""
    inside = (entry.kind for name, entry in folder.expected.items() if path.startswith(f"{name}/"))
    return next(inside, "whole folder")


def accounted_for(folder: Folder, ran: Ran, taken: set[str], *, bad_too: bool = True) -> tuple[set[str], bool]:
    """Entries that the log names, and whether the number left out that it gives is that of all that were not taken.

    Files that nobody takes for images are counted or not, all of them alike. `bad_too` False: what is no image by its
    content is not in that number, as it was named where it was opened.
    """
    missing = {path for path, entry in folder.expected.items() if entry.fate in (OUT, EITHER) and path not in taken}
    missing -= set() if bad_too else {path for path in missing if folder.expected[path].bad}
    num_free = sum(entry.fate == FREE for entry in folder.expected.values())
    right = (len(missing), len(missing) + num_free)
    return {path for path in missing if ran.names(path)}, ran.num_left_out in right


def check_faults(folder: Folder, ran: Ran, rows: dict[str, tuple[str | None, str]]) -> list[tuple[str, str]]:
    bad = [path for path, entry in folder.expected.items() if entry.bad and path in rows]
    leaks = [pair for pair in folder.leaks if all(path in rows for path in pair)]
    faults = [
        (folder.expected[path].kind, f"data check did not name {spelled(path)}") for path in bad if not ran.names(path)
    ]
    faults += [
        (folder.expected[pair[1]].kind, f"data check did not name both of {pair}")
        for pair in leaks
        if not all(ran.names(path) for path in pair)
    ]
    if ran.fault() or ran.code != (1 if bad or leaks else 0):
        kind = folder.expected[(bad or [pair[1] for pair in leaks] or [next(iter(folder.expected))])[0]].kind
        faults.append((kind, f"data check: exit code {ran.code}: {ran.error}"))
    return faults


def embed_faults(folder: Folder, top: Path) -> list[tuple[str, str]]:
    """`embed FOLDER` follows the rules of the import, and embeds stray images too."""
    from edgeembed.device.embeddings import read_embeddings

    ran = command("embed", folder.root, "--out", top / "e.safetensors", "--json", "--threads", "1")
    if ran.code or ran.fault():
        return [("whole folder", f"embed: exit code {ran.code}: {ran.error}")]
    found = {os.path.relpath(path, folder.root) for path in read_embeddings(top / "e.safetensors").paths}
    counted, whole = accounted_for(folder, ran, found, bad_too=False)
    faults = []
    for path, entry in folder.expected.items():
        name, is_named = spelled(path), whole or path in counted
        if path in found:
            if entry.bad or entry.fate in (OUT, FREE):
                faults.append((entry.kind, f"embed: {name} was embedded"))
        elif entry.bad:
            faults += [] if ran.names(path) else [(entry.kind, f"embed: {name} was left out silently")]
        elif entry.fate == IN:
            faults.append((entry.kind, f"embed: {name} was not embedded"))
        elif entry.fate != FREE and not is_named:
            faults.append((entry.kind, f"embed: {name} was left out silently"))
    faults += [
        (kind_of_inner(folder, path), f"embed: {spelled(path)} was embedded") for path in found - set(folder.expected)
    ]
    return faults
