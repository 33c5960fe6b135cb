"""A sweep as one HTML page that needs no other file and no network."""

import base64
import html
import json
from collections.abc import Mapping
from importlib import resources
from pathlib import Path
from typing import Any


def page(result: Mapping[str, Any], folder: Path) -> str:
    """The page of a sweep.

    Args:
      result: what sweep.json holds.
      folder: of the sweep, with the sheets of its cells.
    """
    cells = [cell | {"sheet": _data_uri(folder / cell["sheet"])} for cell in result["cells"]]
    kept = ("sweep", "captions", "modes", "tuned", "summary")
    content = json.dumps({name: result[name] for name in kept} | {"cells": cells})
    template = resources.files("kaleido_jax").joinpath("assets/pages/sweep.html").read_text(encoding="utf-8")
    title = html.escape(f"{result['sweep']['name']}: guidance and diversity")
    # No text may end the script element; JSON may hold "<" only inside strings, where the escape is the same.
    return template.replace("__TITLE__", title).replace("__DATA__", content.replace("<", "\\u003c"))


def _data_uri(path: Path) -> str:
    return "data:image/jpeg;base64," + base64.b64encode(path.read_bytes()).decode()
