"""The directory of a zip archive whose members are stored uncompressed, read with bounds and checks.

Only what torch writes is accepted: no compression, no encryption, no spanning.  Every member is checked
against its own local header, and no two may overlap, so no byte can be read as two things.

Source: PKWARE APPNOTE.TXT 6.3 (records 4.3.7, 4.3.12, 4.3.14 to 4.3.16).
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from itertools import pairwise

from gpt54_convert.errors import InputError
from gpt54_convert.formats._file import ReadFile

DIRECTORY_LIMIT = 64 << 20
MEMBER_LIMIT = 200_000
_END = struct.Struct("<4s4H2LH")
_END64_LOCATOR = struct.Struct("<4sLQL")
_END64 = struct.Struct("<4sQ2H2L4Q")
_CENTRAL = struct.Struct("<4s6H3L5H2L")
_LOCAL = struct.Struct("<4s5H3L2H")
_FULL32, _FULL16 = 0xFFFFFFFF, 0xFFFF


@dataclass(frozen=True)
class Member:
    """One stored file: where its bytes lie in the archive."""

    name: str
    offset: int
    size_bytes: int


@dataclass(frozen=True)
class _Listed:
    name: bytes
    size: int
    header: int


def members(file: ReadFile) -> dict[str, Member]:
    """All members by name, in the order of the archive's directory.

    Raises InputError for an archive that is damaged, compressed, encrypted or contradicts itself.
    """
    start, size, count = _directory_place(file)
    if size > DIRECTORY_LIMIT or count > MEMBER_LIMIT:
        raise InputError(
            f"{file.path}: its zip directory lists {count} members in {size} bytes, far too many"
        )
    if start + size > file.size_bytes:
        raise _damaged(file, "its directory lies beyond the end of the file")
    listed = _directory(file, file.bytes(start, size), count)
    found = [_member(file, each, start) for each in listed]
    _check_overlap(file, found, listed)
    by_name = {member.name: member for member in found}
    if len(by_name) != len(found):
        raise _damaged(file, "it lists a name twice")
    return by_name


def _damaged(file: ReadFile, reason: str) -> InputError:
    return InputError(f"{file.path}: is no sound zip archive: {reason}; get the file again")


def _directory_place(file: ReadFile) -> tuple[int, int, int]:
    """Offset, bytes and number of entries of the central directory."""
    tail_size = min(file.size_bytes, _END.size + _FULL16)
    tail_start = file.size_bytes - tail_size
    tail = file.bytes(tail_start, tail_size)
    at = tail.rfind(b"PK\x05\x06")
    if at < 0 or at + _END.size > tail_size:
        raise _damaged(file, "it has no end record")
    _, disk, first_disk, _, count, size, start, _ = _END.unpack_from(tail, at)
    if disk not in (0, _FULL16) or first_disk not in (0, _FULL16):
        raise _damaged(file, "it is one of several parts")
    locator_at = tail_start + at - _END64_LOCATOR.size
    if _FULL32 in (size, start) or count == _FULL16:
        if locator_at < 0:
            raise _damaged(file, "it has no 64-bit end record")
        magic, _, end64, _ = _END64_LOCATOR.unpack(file.bytes(locator_at, _END64_LOCATOR.size))
        if magic != b"PK\x06\x07" or end64 + _END64.size > file.size_bytes:
            raise _damaged(file, "its 64-bit end record is not where it should be")
        fields = _END64.unpack(file.bytes(end64, _END64.size))
        if fields[0] != b"PK\x06\x06":
            raise _damaged(file, "its 64-bit end record is not where it should be")
        count, size, start = fields[7], fields[8], fields[9]
    return start, size, count


def _directory(file: ReadFile, raw: bytes, count: int) -> list[_Listed]:
    listed, at = [], 0
    for _ in range(count):
        if at + _CENTRAL.size > len(raw):
            raise _damaged(file, "its directory ends too early")
        fields = _CENTRAL.unpack_from(raw, at)
        flags, method, packed, size = fields[3], fields[4], fields[8], fields[9]
        name_size, extra_size, comment_size, header = fields[10], fields[11], fields[12], fields[16]
        at += _CENTRAL.size
        name, extra = raw[at : at + name_size], raw[at + name_size : at + name_size + extra_size]
        at += name_size + extra_size + comment_size
        if fields[0] != b"PK\x01\x02" or at > len(raw):
            raise _damaged(file, "its directory is garbled")
        size, packed, header = _widened(file, extra, size, packed, header)
        if flags & 1 or method != 0 or size != packed:
            raise InputError(
                f"{file.path}: member {name[:100].decode('latin-1')!r} is compressed or encrypted, as torch "
                "never writes it; save the model again with safetensors"
            )
        listed.append(_Listed(name, size, header))
    return listed


def _widened(file: ReadFile, extra: bytes, size: int, packed: int, header: int) -> tuple[int, int, int]:
    """The 64-bit values of the extra field take the place of those that are full."""
    values = [size, packed, header]
    if _FULL32 not in values:
        return size, packed, header
    at = 0
    while at + 4 <= len(extra):
        tag, length = struct.unpack_from("<2H", extra, at)
        if tag == 1:
            wide = iter(struct.unpack_from(f"<{min(length, len(extra) - at - 4) // 8}Q", extra, at + 4))
            values = [next(wide, value) if value == _FULL32 else value for value in values]
            return values[0], values[1], values[2]
        at += 4 + length
    raise _damaged(file, "a 64-bit size is missing")


def _member(file: ReadFile, listed: _Listed, limit: int) -> Member:
    """Where the bytes of a member start, from its local header, which must agree with the directory."""
    shown = listed.name[:100].decode("latin-1")
    if listed.header + _LOCAL.size > limit:
        raise _damaged(file, f"member {shown!r} lies beyond the directory")
    fields = _LOCAL.unpack(file.bytes(listed.header, _LOCAL.size))
    name_size, extra_size = fields[9], fields[10]
    start = listed.header + _LOCAL.size + name_size + extra_size
    if fields[0] != b"PK\x03\x04" or fields[3] != 0 or start + listed.size > limit:
        raise _damaged(file, f"member {shown!r} at byte {listed.header} is garbled or too long")
    if file.bytes(listed.header + _LOCAL.size, name_size) != listed.name:
        raise _damaged(file, f"member {shown!r} at byte {listed.header} has another name there")
    try:
        name = listed.name.decode("utf-8")
    except UnicodeDecodeError:
        raise _damaged(file, f"the name {shown!r} is not UTF-8") from None
    return Member(name, start, listed.size)


def _check_overlap(file: ReadFile, found: list[Member], listed: list[_Listed]) -> None:
    spans = sorted(
        (each.header, member.offset + member.size_bytes, member.name)
        for each, member in zip(listed, found, strict=True)
    )
    for (_, end, first), (start, _, second) in pairwise(spans):
        if start < end:
            raise _damaged(file, f"members {first[:100]!r} and {second[:100]!r} overlap")
