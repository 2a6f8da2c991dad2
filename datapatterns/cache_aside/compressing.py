"""Make large values smaller, by Zstandard of the extra ``compression``."""

from functools import cache
from threading import local
from typing import Any

from datapatterns.errors import MissingExtraError

_own = local()


class CompressedValueError(Exception):
    """What is stored cannot be decompressed here, or must not; nobody outside sees it."""


def require_zstandard() -> None:
    """Refuse to go on without what compresses.

    Raises:
        MissingExtraError: The extra ``compression`` is not installed.
    """
    if _zstandard() is None:
        raise MissingExtraError("zstandard", extra="compression")


def compressed(payload: bytes) -> bytes | None:
    """Return ``payload`` compressed; None where that is not smaller."""
    if not hasattr(_own, "compressor"):  # it keeps state, so each thread has its own
        _own.compressor = _zstandard().ZstdCompressor(write_content_size=True)
    smaller: bytes = _own.compressor.compress(payload)
    return smaller if len(smaller) < len(payload) else None


def decompressed(frame: bytes | memoryview, *, bytes_max: int) -> bytes:
    """Return what was compressed.

    Whoever can write to Redis could let a few bytes stand for gigabytes: a frame that claims to be
    larger than ``bytes_max``, or does not say how large it is, is not begun.

    Raises:
        CompressedValueError: It is too large or damaged, or the extra is not installed.
    """
    zstandard = _zstandard()
    if zstandard is None:
        raise CompressedValueError
    try:
        # Room is made for what the frame says, and it ends there.
        if zstandard.get_frame_parameters(frame).content_size > bytes_max:
            raise CompressedValueError
        if not hasattr(_own, "decompressor"):
            _own.decompressor = zstandard.ZstdDecompressor()
        whole: bytes = _own.decompressor.decompress(frame, allow_extra_data=False)
    except zstandard.ZstdError as error:
        raise CompressedValueError from error
    return whole


@cache
def _zstandard() -> Any:  # noqa: ANN401 -- a module, or None
    try:
        import zstandard  # noqa: PLC0415 -- an extra
    except ImportError:
        return None
    return zstandard
