"""A matplotlib figure as SVG that is part of a page.

Its colours become variables of the page (`server.report.palette`), its text stays text, and it has
no style of its own: what matplotlib writes as ``style="…"`` becomes attributes, which a content
security policy without inline styles lets through. Names inside are made the chart's own.
"""

import io
import re
import xml.etree.ElementTree as ElementTree
from typing import TYPE_CHECKING, Any

from server.report.palette import NAMES

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_XLINK = "{http://www.w3.org/1999/xlink}href"

#: Attributes that hold lengths and places, in which two decimals are enough.
_GEOMETRY = ("d", "x", "y", "width", "height", "transform", "points")

#: The short form, which older versions of matplotlib write.
_FONT = re.compile(r"(?:(?P<weight>bold|\d{3}) )?(?P<size>[\d.]+px) ")


def inline_svg(figure: "Figure", name: str, title: str, description: str) -> str:
    """Return an ``<svg>`` element; equal figures give equal text.

    Parameters
    ----------
    figure
        Drawn in the colours of the palette.
    name
        Unique on the page; letters, digits and hyphens.
    title, description
        Read out in its place.
    """
    # Imported here: half a second that no other command needs.
    import matplotlib
    from matplotlib.backends.backend_svg import FigureCanvasSVG

    buffer = io.BytesIO()
    figure.patch.set_visible(False)
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": name}):
        # Not savefig, which draws everything twice.
        canvas: Any = FigureCanvasSVG(figure)
        canvas.print_svg(buffer, metadata=_NO_METADATA)
    root = ElementTree.fromstring(buffer.getvalue())
    used = set(re.findall(rb"#([\w-]+)", buffer.getvalue()))
    for element in root.iter():
        _make_plain(element, name, {each.decode() for each in used})
    for parent in list(root.iter()):
        for child in list(parent):
            if child.tag in ("metadata", "style"):
                parent.remove(child)
    root.attrib = {
        "viewBox": root.attrib["viewBox"],
        "class": "chart",
        "role": "img",
        "aria-labelledby": f"{name}-title {name}-text",
    }
    for place, (tag, suffix, text) in enumerate(
        (("title", "title", title), ("desc", "text", description))
    ):
        child = ElementTree.Element(tag, {"id": f"{name}-{suffix}"})
        child.text = text
        root.insert(place, child)
    return ElementTree.tostring(root, encoding="unicode")


_NO_METADATA = dict.fromkeys(("Date", "Creator", "Format", "Type"))


def _make_plain(element: ElementTree.Element, name: str, used: set[str]) -> None:
    """Take namespaces, styles and foreign names away."""
    element.tag = element.tag.rpartition("}")[2]
    attributes: dict[str, str] = {}
    for key, value in element.attrib.items():
        if key == "style":
            attributes |= attributes_of(value)
        elif key == "id":
            attributes |= {"id": f"{name}-{value}"} if value in used else {}
        elif key == _XLINK:
            attributes["href"] = f"#{name}-{value.removeprefix('#')}"
        else:
            attributes[key] = value
    for key, value in attributes.items():
        if key in _GEOMETRY:
            attributes[key] = _rounded(value)
        elif value.startswith("url(#"):
            attributes[key] = value.replace("url(#", f"url(#{name}-")
        elif value in NAMES:
            attributes[key] = f"var(--{NAMES[value]})"
    element.attrib = attributes


def attributes_of(style: str) -> dict[str, str]:
    """Turn declarations into attributes, but for the font's family, which is the page's."""
    found: dict[str, str] = {}
    for declaration in filter(None, map(str.strip, style.split(";"))):
        key, value = (part.strip() for part in declaration.split(":", 1))
        if key == "font":
            match = _FONT.match(value)
            assert match is not None, value
            found |= {f"font-{part}": each for part, each in match.groupdict().items() if each}
        elif key != "font-family":
            found[key] = value
    return found


def _rounded(text: str) -> str:
    return re.sub(r"-?\d+\.\d+", lambda found: f"{round(float(found[0]), 2):g}", text)
