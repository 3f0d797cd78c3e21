"""Makes small real data: tar shards of encoded images with captions."""

import io
import json
import tarfile
from pathlib import Path

import numpy as np
from PIL import Image

FORMATS = dict(jpg="JPEG", png="PNG", webp="WEBP")


def encode(seed: int, extension: str = "png", size: tuple[int, int] = (24, 20), mode: str = "RGB", **options) -> bytes:
    """Returns an image that no other seed gives."""
    coarse = np.random.default_rng(seed).integers(0, 256, (6, 5, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    image = Image.fromarray(coarse).resize(size, Image.Resampling.BICUBIC).convert(mode)
    image.save(buffer, FORMATS[extension], **options)
    return buffer.getvalue()


def sample(i: int, extension: str = "png") -> dict[str, bytes]:
    """Returns the members of sample i by extension."""
    fields = dict(label=f"Thing {i}", tags=[f"tag{i}", "red", "round"], group=i // 2, labels=dict(de=f"Ding {i}"))
    return {extension: encode(i, extension), "txt": f"thing {i}".encode(), "json": json.dumps(fields).encode()}


def write_tar(path: Path, samples: dict[str, dict[str, bytes]], tar_format: int = tarfile.USTAR_FORMAT) -> Path:
    """Writes {key: {extension: content}} as a tar with the standard library's writer."""
    with tarfile.open(path, "w", format=tar_format) as tar:
        for key, members in samples.items():
            for extension, content in members.items():
                info = tarfile.TarInfo(f"{key}.{extension}")
                info.size = len(content)
                tar.addfile(info, io.BytesIO(content))
    return path
