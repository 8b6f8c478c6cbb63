"""`edgeembed export --web`: builds a web page that searches on the visitor's device."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgeembed.errors import UserError
from edgeembed.files import check_output_folder

if TYPE_CHECKING:
    from edgeembed.export.web.index import Picture

log = logging.getLogger(__name__)


def choose_pictures(source: Path, out: Path | None, index: Path | None, precision: str | None) -> list[Picture]:
    """The pictures that a page in `out` searches, from `index` or else from the data of the run `source`.

    Without `out` there is no page, and the other two options are an error. Checks `out` and the pictures before any
    work is done. A bundle does not record where its images are, so that it needs an `index`.
    """
    if out is None:
        if index is not None or precision is not None:
            raise UserError("--web-index and --web-precision are of a web page: add --web FOLDER")
        return []
    # An earlier page in that folder is replaced.
    check_output_folder(out, option="--web", replaced=True)
    from edgeembed.export.web.index import find_pictures, find_pictures_of_run
    from edgeembed.export.web.page import check_web_target

    check_web_target(out)
    if index is not None:
        return find_pictures(index)
    if (source / "bundle.json").is_file():
        raise UserError(f"{source}: a bundle holds no images: name pictures for the page with --web-index FOLDER")
    return find_pictures_of_run(source)


def write_page(bundle: Path, out: Path, pictures: Sequence[Picture], precision: str | None) -> dict[str, Any]:
    """Builds the page, logs how to open it, and returns its site.json."""
    from edgeembed.export.web.page import build_page

    site = build_page(bundle, out, pictures, precision=precision)
    log.info(
        "web page: %s (%s, %d pictures): serve it with any web server, e.g. python -m http.server --directory %s",
        out,
        site["model"]["file"],
        site["index"]["pictures"],
        out,
    )
    return site
