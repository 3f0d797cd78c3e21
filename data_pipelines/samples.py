"""From the members of a tar to a sample that can be used, or the reason why not."""

from collections.abc import Callable
from typing import NamedTuple

from data_pipelines.errors import BadSample
from data_pipelines.io.tar import Group, Member
from data_pipelines.text.captions import Captions, Record

_MAX_TEXT_BYTES = 4 * 2**20  # of a .txt or .json member; more is an attack or a mistake
IMAGE_EXTENSIONS = ("jpg", "jpeg", "png", "webp", "gif", "bmp")


class Sample(NamedTuple):
    """One image-text pair.

    Attributes:
        shard: path of its tar.
        key: name inside the tar.
        image: encoded image.
        record: the text side, checked.
        fault: why the image could not be fetched, where it comes from far away; "" if it could.
    """

    shard: str
    key: str
    image: bytes | memoryview
    record: Record
    fault: str = ""


def image_member(group: Group, extension: str = "") -> Member:
    """Returns the image of a group: the member of this extension, or else the first in the tar with an image's.

    Raises:
        BadSample: there is none, it is empty, or an extension occurs twice.
    """
    if group.repeated:
        raise BadSample("repeated member")
    wanted = (extension,) if extension else IMAGE_EXTENSIONS
    for name, member in group.members.items():
        if name in wanted:
            if not member.size:
                raise BadSample("empty image")
            return member
    raise BadSample("no image")


def read_record(group: Group, fetch: Callable[[Member], bytes], captions: Captions) -> Record:
    """Returns the text side of a group, unchecked. Raises BadSample as `Captions.read`."""

    def get(extension: str) -> bytes | None:
        member = group.members.get(extension)
        if member is None:
            return None
        if member.size > _MAX_TEXT_BYTES:
            raise BadSample(f"{extension} too large")
        return fetch(member)

    return captions.read(get)
