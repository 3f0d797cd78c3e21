"""Files of Tux Paint's stamps as members of shards: images on white, recordings as mono Ogg Opus."""

import io
import re
from pathlib import Path

import numpy as np
from PIL import Image

SIDE = 64  # pixels of an image, both sides, as of the emoji data
RATE = 16000  # samples a second of a recording
LONGEST = 6.0  # seconds; longer speech is left out, longer effects are cut
_KBITS = 14  # a second of a recording
_RASTER = 4 * SIDE  # pixels at which vector images are rendered before they are averaged down
_SILENCE = 0.03  # share of the loudest 20 ms below which nothing is heard
_MARGIN = RATE // 10  # samples of silence that stay on both sides
_TOOLS = "pip install av==18.1.0 soundfile==0.14.0 soxr==1.1.0 resvg-py==0.5.0"


class BuildError(Exception):
    """The data cannot be built from what is there; the message says what is missing."""


def require_tools() -> None:
    """Raises BuildError where a library is missing that building needs, and using the data does not."""
    try:
        import av  # noqa: F401
        import resvg_py  # noqa: F401
        import soundfile  # noqa: F401
        import soxr  # noqa: F401
    except ImportError as error:
        raise BuildError(f"{error.name} is missing; run `{_TOOLS}`") from error


def image_member(path: Path) -> bytes | None:
    """Returns an image as WebP, `SIDE` x `SIDE` pixels on white; None where an SVG file cannot be rendered.

    Many stamps are small on a large canvas: transparent margins are cut off first.
    """
    contents = path.read_bytes()
    if path.suffix == ".svg":
        contents = _rasterize(contents.decode())
        if contents is None:
            return None
    image = Image.open(io.BytesIO(contents)).convert("RGBA")
    image = image.crop(image.getchannel("A").getbbox())
    image.thumbnail((SIDE, SIDE), Image.Resampling.LANCZOS)
    canvas = Image.new("RGBA", (SIDE, SIDE), "white")
    canvas.alpha_composite(image, ((SIDE - image.width) // 2, (SIDE - image.height) // 2))
    buffer = io.BytesIO()
    canvas.convert("RGB").save(buffer, "WEBP", quality=85, method=6)
    return buffer.getvalue()


def _rasterize(svg: str) -> bytes | None:
    """Renders an SVG file; one whose size is in points and that has no viewBox is given a size in pixels."""
    import resvg_py

    head = re.search(r"<svg[^>]*>", svg)
    bare = re.sub(r'\s(width|height)="[^"]*"', "", head[0]) if head else ""
    sized = svg.replace(head[0], bare.replace("<svg", '<svg width="400" height="400"', 1), 1) if head else svg
    for text in (svg, sized):
        try:
            return bytes(resvg_py.svg_to_bytes(svg_string=text, width=_RASTER))
        except Exception:  # resvg raises bare exceptions
            continue
    return None


def read_recording(path: Path) -> np.ndarray | None:
    """Reads a recording as float32 [samples] at `RATE`, trimmed to what is heard; None where it is silent.

    Of several channels the loudest one: all French recordings have an empty left channel, of which a mean would keep
    half the level.
    """
    import soundfile
    import soxr

    wave, rate = soundfile.read(path, dtype="float32", always_2d=True)
    if not len(wave):
        return None
    wave = wave[:, int(np.argmax(wave.std(axis=0)))]
    wave = soxr.resample(wave, rate, RATE) if rate != RATE else wave
    level = np.convolve(np.abs(wave), np.full(RATE // 50, 50 / RATE), "same")
    heard = np.flatnonzero(level > _SILENCE * level.max())
    if not len(heard):
        return None
    wave = wave[max(0, heard[0] - _MARGIN) : heard[-1] + _MARGIN]
    return wave / max(1.0, float(np.abs(wave).max()) / 0.99)


def opus_member(wave: np.ndarray) -> bytes:
    """Encodes a recording [samples] at `RATE` as Ogg Opus.

    Pages of 0.2 s: with FFmpeg's usual pages of 1 s libsndfile refuses recordings of 0.3 to 1 s, and no reader trims
    the padding of the last packet.
    """
    import av

    out = io.BytesIO()
    with av.open(out, "w", format="ogg", options={"page_duration": "200000"}) as file:
        stream = file.add_stream("libopus", rate=RATE, layout="mono")
        stream.bit_rate = _KBITS * 1000
        stream.options = {"application": "voip", "vbr": "on", "frame_duration": "20"}
        samples = (np.clip(wave, -1, 1) * 32767).astype(np.int16)[None]
        frame = av.AudioFrame.from_ndarray(samples, format="s16", layout="mono")
        frame.sample_rate = RATE
        for packet in (*stream.encode(frame), *stream.encode(None)):
            file.mux(packet)
    return out.getvalue()
