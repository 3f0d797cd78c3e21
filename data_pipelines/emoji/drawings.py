"""Emoji drawings out of npm packages, as small RGB images on white."""

import io
import json
import tarfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

SIZE = 64  # pixels of a finished drawing, both sides
_RASTER = 4 * SIZE  # pixels at which vector drawings are rendered before they are averaged down
_STEPS = (1, 2, 4)  # of the 256 levels of a channel, tried in this order
_BYTES = 3000  # a drawing larger than this takes the next coarser step


@dataclass(frozen=True)
class Vendor:
    """Where the drawings of one vendor lie.

    Attributes:
        package: npm package as `name@version`.
        folder: folder in the package, ending in "/".
    """

    package: str
    folder: str


VENDORS = {
    "noto": Vendor("emoji-datasource-google@16.0.0", "img/google/64/"),
    "twemoji": Vendor("emoji-datasource-twitter@16.0.0", "img/twitter/64/"),
    "openmoji": Vendor("openmoji@17.0.0", "color/svg/"),
    "fluent_3d": Vendor("@lobehub/fluent-emoji-3d@1.1.0", "assets/"),
    "fluent_flat": Vendor("@lobehub/fluent-emoji-flat@1.1.0", "assets/"),
}


class BuildError(Exception):
    """The data cannot be built from what is there; the message says what is missing."""


def read_package(packages: Path, spec: str, folder: str) -> dict[str, bytes]:
    """Reads the files below one folder of an npm package.

    Args:
        packages: directory of the archives that `npm pack` wrote.
        spec: the package as `name@version`.
        folder: folder in the package, ending in "/"; "" takes every file.

    Returns:
        Path inside the package -> contents.

    Raises:
        BuildError: the archive is missing, damaged, or holds another package or version.
    """
    name, _, version = spec.rpartition("@")
    archive = packages / f"{name.removeprefix('@').replace('/', '-')}-{version}.tgz"
    if not archive.is_file():
        raise BuildError(f"{archive} is missing; run `npm pack {spec}` in {packages}")
    files = {}
    try:
        with tarfile.open(archive, "r:gz") as tar:
            for member in tar:
                path = member.name.partition("/")[2]  # npm puts everything below "package/"
                if member.isfile() and (path.startswith(folder) or path == "package.json"):
                    files[path] = tar.extractfile(member).read()
    except (tarfile.TarError, EOFError, OSError) as error:
        raise BuildError(f"{archive} is damaged ({error}); run `npm pack {spec}` again") from error
    about = json.loads(files.pop("package.json", b"{}"))
    found = f"{about.get('name')}@{about.get('version')}"
    if found != spec:
        raise BuildError(f"{archive} holds {found}, expected {spec}; run `npm pack {spec}` again")
    return files


def plain_hexcode(hexcode: str) -> str:
    """Returns the code points in lower case without the variation selector, which vendors write or leave out."""
    return "-".join(point for point in hexcode.lower().split("-") if point != "fe0f")


def read_drawings(packages: Path, vendor: str) -> dict[str, bytes]:
    """Reads every drawing of one vendor: plain hexcode -> contents of its PNG, WebP or SVG file."""
    where = VENDORS[vendor]
    files = read_package(packages, where.package, where.folder)
    if not files:
        raise BuildError(f"{where.package} has no files below {where.folder!r}")
    # Two drawings of one vendor may differ in the selector alone; the fully qualified one sorts later and stays.
    return {plain_hexcode(Path(path).stem): files[path] for path in sorted(files, key=lambda p: Path(p).stem)}


def render(contents: bytes) -> Image.Image:
    """Draws an emoji file on white.

    Args:
        contents: of a PNG, WebP or SVG file.

    Returns:
        An RGB image of `SIZE` x `SIZE` pixels, the drawing centred and its aspect ratio kept.
    """
    if b"<svg" in contents[:1000]:
        contents = _rasterize(contents)
    drawing = Image.open(io.BytesIO(contents)).convert("RGBA")
    side = max(drawing.size)
    canvas = Image.new("RGBA", (side, side), "white")
    canvas.alpha_composite(drawing, ((side - drawing.width) // 2, (side - drawing.height) // 2))
    # Averaging areas gives the exact coverage of each pixel. Sharper filters ring around flat colours, which at this
    # size shows as halos and doubles the bytes.
    return canvas.convert("RGB").resize((SIZE, SIZE), Image.Resampling.BOX)


def _rasterize(svg: bytes) -> bytes:
    try:
        import resvg_py  # needed to build the data, never to use it
    except ImportError as error:
        raise BuildError("the SVG renderer is missing; run `pip install resvg-py==0.5.0`") from error
    return bytes(resvg_py.svg_to_bytes(svg_string=svg.decode(), width=_RASTER))


def encode(image: Image.Image) -> bytes:
    """Encodes a drawing as lossless WebP: exact where that is small, else with channels rounded to steps of 2 or 4.

    Lossy WebP halves the colour resolution, which hurts such small drawings (32 dB) more than the rounding, where no
    channel is off by more than 2 of 255 (49 dB).
    """
    pixels = np.asarray(image, np.float32)
    for step in _STEPS:
        rounded = np.minimum(np.round(pixels / step) * step, 255).astype(np.uint8)
        buffer = io.BytesIO()
        Image.fromarray(rounded).save(buffer, format="WEBP", lossless=True, quality=100, method=4)
        if buffer.tell() <= _BYTES:
            break
    return buffer.getvalue()
