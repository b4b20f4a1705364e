"""Bodies that come compressed. https://www.rfc-editor.org/rfc/rfc9110#name-content-codings"""

import zlib

# To zlib: how the data are framed, and that the window may be of any size.
_FRAMES = {"gzip": 31, "x-gzip": 31, "deflate": 15}
CODINGS = ("identity", *_FRAMES)
"""What Content-Encoding may say."""


class TooLargeError(Exception):
    """What was unpacked has more bytes than it may."""


def unpacked(content: bytes, coding: str, most: int) -> bytes:
    """The body as it was before it was compressed.

    No more than `most` bytes are unpacked, however few came: a thousandth of them may be enough to fill the memory.

    Raises ValueError for data that are cut off or damaged, TooLargeError.

    >>> unpacked(zlib.compress(b"0" * 99), "deflate", 99) == b"0" * 99
    True
    """
    if coding == "identity":
        return content
    unpacking = zlib.decompressobj(_FRAMES[coding])
    try:
        found = unpacking.decompress(content, most + 1)
    except zlib.error as error:
        raise ValueError(f"infer: the body is no {coding}: {error}") from None
    if len(found) > most:
        raise TooLargeError
    if not unpacking.eof:
        raise ValueError(f"infer: the body is {coding} that is cut off")
    if unpacking.unused_data:
        raise ValueError(f"infer: {len(unpacking.unused_data)} bytes are left over behind the {coding} of the body")
    return found
