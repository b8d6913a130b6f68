"""Encoded images without their metadata, for those whose metadata keep them from being read."""

import struct

_PNG, _JPEG = b"\x89PNG\r\n\x1a\n", b"\xff\xd8"
_JPEG_KEPT = (0xE0, 0xEE)  # JFIF, and Adobe's segment, which tells the colours
_WEBP_DROPPED = (b"EXIF", b"XMP ", b"ICCP")
_WEBP_FLAGS = 0x20 | 0x08 | 0x04  # in VP8X: that there are these chunks


def bare(data: bytes) -> bytes:
    """A PNG, JPEG, WEBP or AVIF without EXIF, XMP, profiles and comments; other bytes as they are.

    All that pixels follow from stays, as does what comes behind the first thing out of place. An
    AVIF loses its EXIF alone.
    """
    if data.startswith(_PNG):
        return _png(data)
    if data.startswith(_JPEG):
        return _jpeg(data)
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return _webp(data)
    if data[4:12] in (b"ftypavif", b"ftypavis"):  # an item of a kind that is not known is left out
        head, pixels, rest = data.partition(b"mdat")
        return head.replace(b"Exif", b"none") + pixels + rest
    return data


def _png(data: bytes) -> bytes:
    kept, at = [_PNG], len(_PNG)
    while at + 12 <= len(data):
        (size,), name = struct.unpack_from(">I", data, at), data[at + 4 : at + 8]
        end = at + 12 + size
        if end > len(data):
            break
        if name[:1].isupper() or name == b"tRNS":  # upper case marks what a decoder must know
            kept.append(data[at:end])
        at = end
    return b"".join([*kept, data[at:]])


def _jpeg(data: bytes) -> bytes:
    kept, at = [_JPEG], 2
    while at + 4 <= len(data) and data[at] == 0xFF and data[at + 1] != 0xDA:  # start of the scan
        marker, (size,) = data[at + 1], struct.unpack_from(">H", data, at + 2)
        end = at + 2 + size
        if size < 2 or end > len(data):
            break
        # 0xE0 to 0xEF are application segments, 0xFE is a comment.
        if not (0xE0 <= marker <= 0xEF or marker == 0xFE) or marker in _JPEG_KEPT:
            kept.append(data[at:end])
        at = end
    return b"".join([*kept, data[at:]])


def _webp(data: bytes) -> bytes:
    kept, at = [], 12
    while at + 8 <= len(data):
        name, (size,) = data[at : at + 4], struct.unpack_from("<I", data, at + 4)
        end = at + 8 + size + size % 2
        chunk = data[at:end]
        if name == b"VP8X" and len(chunk) > 8:
            chunk = chunk[:8] + bytes([chunk[8] & ~_WEBP_FLAGS & 0xFF]) + chunk[9:]
        if name not in _WEBP_DROPPED:
            kept.append(chunk)
        at = end
    body = b"WEBP" + b"".join(kept)
    return b"RIFF" + struct.pack("<I", len(body)) + body
