"""Reads a model's own warm-up records: the requests that its author says it answers.

They lie in BASE_PATH/VERSION/assets.extra/tf_serving_warmup_requests, a TFRecord file of PredictionLog
(tensorflow.org/tfx/serving/saved_model_warmup). The TFRecord framing is `uint64 length | masked crc32c of the length |
data | masked crc32c of the data`, little-endian. The length's checksum is verified, so that a damaged file can't ask
for memory; the data's is not: pure Python would take 0.1 s per MiB for it, and the server verified it when it loaded.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from google.protobuf.message import DecodeError

from monitor.pb import tfs_pb2 as tfs

WARMUP_FILE = Path("assets.extra") / "tf_serving_warmup_requests"
MAX_RECORD = 128 * 2**20
_CRC32C_POLYNOMIAL = 0x82F63B78
_MASK_DELTA = 0xA282EAD8


class WarmupError(ValueError):
    """A warm-up file that can't be read; the message names it."""


def read_warmup(base_path: str, version: int, most: int) -> list[tfs.PredictionLog]:
    """Up to `most` records that a monitor can replay (predict, classify, regress); none if there is no such file here:
    the base path may be remote, or on another machine. Blocking. Raises WarmupError."""
    file = find_warmup(base_path, version)
    if file is None:
        return []
    records: list[tfs.PredictionLog] = []
    try:
        with file.open("rb") as stream:
            for data in read_tfrecords(stream):
                record = tfs.PredictionLog.FromString(data)
                if record.WhichOneof("log_type") in ("predict_log", "classify_log", "regress_log"):
                    records.append(record)
                if len(records) == most:
                    break
    except (OSError, ValueError, DecodeError) as error:
        raise WarmupError(f"{file}: {error}") from error
    return records


def find_warmup(base_path: str, version: int) -> Path | None:
    """The version's warm-up file, if it can be seen from here. A version folder may have leading zeros."""
    base = Path(base_path)
    if not base_path or not base.is_absolute():
        return None
    try:
        folders = [base / str(version), *(entry for entry in base.iterdir() if _is_version(entry.name, version))]
        return next((file for folder in folders if (file := folder / WARMUP_FILE).is_file()), None)
    except OSError:
        return None


def _is_version(name: str, version: int) -> bool:
    return name.isascii() and name.isdigit() and int(name) == version


def read_tfrecords(stream: BinaryIO) -> Iterator[bytes]:
    """The records of a TFRecord file. Raises ValueError for a damaged or truncated one."""
    while header := stream.read(12):
        if len(header) < 12:
            raise ValueError("it ends within a record's header")
        length, checksum = struct.unpack("<QI", header)
        if masked_crc32c(header[:8]) != checksum:
            raise ValueError("a record's length does not match its checksum")
        if length > MAX_RECORD:
            raise ValueError(f"a record of {length} bytes is too large")
        data = stream.read(length)
        if len(data) < length or len(stream.read(4)) < 4:
            raise ValueError("it ends within a record")
        yield data


def masked_crc32c(data: bytes) -> int:
    """TFRecord's checksum (tensorflow/core/lib/hash/crc32c.h): CRC-32C, rotated right by 15 bits, plus a constant."""
    crc = 0xFFFFFFFF
    for byte in data:
        crc ^= byte
        for _ in range(8):
            crc = (crc >> 1) ^ (_CRC32C_POLYNOMIAL if crc & 1 else 0)
    crc ^= 0xFFFFFFFF
    return (((crc >> 15) | (crc << 17)) + _MASK_DELTA) & 0xFFFFFFFF
