"""`edgeembed export --web`: the part of the command that makes a page."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgeembed.errors import UserError

if TYPE_CHECKING:
    from edgeembed.export.web.index import Picture

log = logging.getLogger(__name__)


def page_pictures(source: Path, out: Path, index: Path | None) -> list[Picture]:
    """The pictures of a page that is to be written to `out`, with what can be wrong found before any work is done.

    `source` is a run, whose own images are the default, or a bundle, which does not say where its images lie.
    """
    from edgeembed.export.web.index import find_pictures, find_pictures_of_run
    from edgeembed.export.web.page import check_web_target

    check_web_target(out)
    if index is not None:
        return find_pictures(index)
    if (source / "bundle.json").is_file():
        raise UserError(f"{source}: a bundle holds no images: name pictures for the page with --web-index FOLDER")
    return find_pictures_of_run(source)


def make_page(bundle: Path, out: Path, pictures: Sequence[Picture], precision: str | None) -> dict[str, Any]:
    """Builds the page and says where it is and how to see it. Returns its site.json."""
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
