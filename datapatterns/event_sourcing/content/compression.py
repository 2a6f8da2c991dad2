"""Compress what events say."""

from collections.abc import Sequence
from threading import local
from typing import Any, Final

from datapatterns.errors import CodecError, MissingExtraError, PayloadError

_RAW: Final = b"\x00"
_COMPRESSED: Final = b"\x01"


class Zstandard:
    """Compression, with a dictionary for the many small events that look alike.

    Args:
        level: From 1, fast, to 19, small.
        above_bytes: What is shorter is stored as it is.
        dictionary: Trained on events of yours, for instance with ``zstandard.train_dictionary``.
        older_dictionaries: Those that stored payloads still need. The frame names its own.

    Raises:
        CodecError: A dictionary has no id, or two have one.
        MissingExtraError: The extra ``compression`` is not installed.
        ValueError: The level or the bound makes no sense.
    """

    id: Final = 2
    name: Final = "Zstandard"
    optional: Final = True

    def __init__(
        self,
        *,
        level: int = 3,
        above_bytes: int = 64,
        dictionary: bytes | None = None,
        older_dictionaries: Sequence[bytes] = (),
    ) -> None:
        if not 1 <= level <= 19:  # noqa: PLR2004 -- beyond, the reader needs the memory, too
            raise ValueError(f"level {level} is out of bounds; use 1 to 19")
        if above_bytes < 0:
            raise ValueError("above_bytes is negative; use 0 to compress everything")
        self._zstandard = _load_zstandard()
        self._own = local()
        self._level = level
        self._above_bytes = above_bytes
        self._dictionaries: dict[int, Any] = {0: None}
        for content in (*older_dictionaries, *([dictionary] if dictionary else ())):
            trained = self._zstandard.ZstdCompressionDict(content)
            if trained.dict_id() in self._dictionaries:
                raise CodecError(
                    self.id, f"has two dictionaries with the id {trained.dict_id()}; train one anew"
                )
            self._dictionaries[trained.dict_id()] = trained
        self._dictionary = next(reversed(self._dictionaries.values())) if dictionary else None

    def __repr__(self) -> str:
        return f"Zstandard(level={self._level}, above_bytes={self._above_bytes})"

    def encode(self, data: bytes, *, bound_to: bytes) -> bytes:
        """Return ``data`` compressed, or as it is where that is not smaller."""
        del bound_to
        if len(data) <= self._above_bytes:
            return _RAW + data
        compressed: bytes = self._compressor().compress(data)
        return _COMPRESSED + compressed if len(compressed) < len(data) else _RAW + data

    def decode(self, payload: bytes, *, bound_to: bytes, bytes_max: int) -> bytes:
        """Return what was compressed; a frame that claims to be larger is not begun."""
        del bound_to
        frame = payload[1:]
        if payload[:1] == _RAW:
            return frame
        if payload[:1] != _COMPRESSED:
            raise PayloadError(self.name, "it has no known beginning")
        try:
            said = self._zstandard.get_frame_parameters(frame)
        except self._zstandard.ZstdError:
            raise PayloadError(self.name, "it is no frame of Zstandard") from None
        # The decompressor makes room for what the frame says, and stops at it.
        if said.content_size > bytes_max:  # unknown sizes are the largest number
            raise PayloadError(self.name, f"it is larger than {bytes_max} bytes")
        if said.dict_id not in self._dictionaries:
            raise CodecError(
                self.id,
                f"needs dictionary {said.dict_id}; give it to Zstandard as older_dictionaries",
            )
        try:
            data: bytes = self._decompressor(said.dict_id).decompress(frame, allow_extra_data=False)
        except self._zstandard.ZstdError:
            raise PayloadError(self.name, "its content is damaged") from None
        return data

    # They keep state, so each thread has its own; to make one costs more than to use it.

    def _compressor(self) -> Any:  # noqa: ANN401 -- of a package that may be absent
        if not hasattr(self._own, "compressor"):
            self._own.compressor = self._zstandard.ZstdCompressor(
                level=self._level, dict_data=self._dictionary, write_content_size=True
            )
        return self._own.compressor

    def _decompressor(self, dict_id: int) -> Any:  # noqa: ANN401 -- as above
        if not hasattr(self._own, "decompressors"):
            self._own.decompressors = {}
        made = self._own.decompressors
        if dict_id not in made:
            made[dict_id] = self._zstandard.ZstdDecompressor(dict_data=self._dictionaries[dict_id])
        return made[dict_id]


def _load_zstandard() -> Any:  # noqa: ANN401 -- a module
    try:
        import zstandard  # noqa: PLC0415 -- an extra
    except ImportError:
        raise MissingExtraError("zstandard", extra="compression") from None
    return zstandard
