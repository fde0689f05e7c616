"""The bytes of a file of rows: unpacked, of bounded size, and UTF-8 text; or the reason why they are not."""

import gzip
import io
import re
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any, AnyStr

from dual_head.errors import DualHeadError

LONGEST_LINE = 2**30  # bytes; many a JSON file is one line
RATIO, ROOM = 200, 2**28  # a gzipped file unpacks to at most so many times its size, or to so many bytes
_MARKS = {b"\xff\xfe\0\0": "UTF-32", b"\0\0\xfe\xff": "UTF-32", b"\xff\xfe": "UTF-16", b"\xfe\xff": "UTF-16"}
_BINARY = {
    rb"PAR1": "a parquet file. Give it a name that ends in .parquet",
    rb"ARROW1": "an Arrow file. Give it a name that ends in .arrow",
    rb"PK\x03\x04": "a zip archive or a workbook. Unpack it, or save the sheet as CSV",
    rb"\x28\xb5\x2f\xfd": "compressed with zstd. Unpack it with unzstd",
    rb"BZh\d1AY": "compressed with bzip2. Unpack it with bunzip2",
    rb"\xfd7zXZ": "compressed with xz. Unpack it with unxz",
}


class Unpacked(io.RawIOBase):
    """The bytes of a gzipped file, up to as many as a file of rows may unpack to."""

    def __init__(self, plain: IO[bytes], file: Path):
        self._stream, self._file = gzip.GzipFile(fileobj=plain), file
        self._room = max(ROOM, RATIO * file.stat().st_size)

    def readable(self) -> bool:  # asked by io.BufferedReader
        return True

    def readinto(self, buffer: Any) -> int:
        """Read some bytes. Errors: more than `RATIO` times the size of the file."""
        count = self._stream.readinto(buffer)
        self._room -= count
        if self._room < 0:
            raise DualHeadError(
                f"'{self._file}' unpacks to more than {RATIO} times its size. If that is right, unpack it with gunzip "
                "and read what comes out."
            )
        return count


def bounded_lines(stream: IO[AnyStr], name: str) -> Iterator[AnyStr]:
    """The lines of a stream. Errors: one that has no end."""
    while line := stream.readline(LONGEST_LINE):
        if len(line) == LONGEST_LINE:
            raise DualHeadError(f"'{name}' has a line of {LONGEST_LINE:,} bytes or more. Write a row on each line.")
        yield line


def require_text(head: bytes, file: Path) -> None:
    """Refuse what is not UTF-8 text. Errors: UTF-16 and UTF-32, compressed files, other binary ones."""
    binary = next((kind for start, kind in _BINARY.items() if re.match(start, head)), None)
    if binary:
        raise DualHeadError(f"'{file}' is {binary}.")
    encoding = next((name for mark, name in _MARKS.items() if head.startswith(mark)), None)
    if encoding:
        raise DualHeadError(f"'{file}' is {encoding} text. Save it as UTF-8: iconv -f {encoding} -t UTF-8 '{file}'.")
    if b"\0" in head:
        raise DualHeadError(f"'{file}' holds NUL bytes: it is binary, or UTF-16 without a mark. Save it as UTF-8 text.")


def unmarked(lines: Iterator[bytes]) -> Iterator[bytes]:
    """The lines without the byte order mark that Windows puts first."""
    mark = b"\xef\xbb\xbf"
    for line in lines:  # "yield from" would close the stream with this generator
        yield line.removeprefix(mark)
        mark = b""
