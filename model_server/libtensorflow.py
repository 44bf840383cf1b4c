"""TensorFlow's C library (tensorflow/c/c_api.h), by ctypes: the same loader and session that TF Serving runs.

Invariant: every foreign call releases the GIL, so neither a load nor a run holds up another request; every TF_Status
that is not OK becomes a ServingError with TensorFlow's own code and message.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
from collections.abc import Iterator, Sequence
from ctypes import POINTER, c_char_p, c_int, c_int64, c_size_t, c_void_p
from dataclasses import dataclass, field
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from model_server.errors import Code, ServingError
from model_server.messages import config_pb2

_Deallocator = ctypes.CFUNCTYPE(None, c_void_p, c_size_t, c_void_p)


class _Output(ctypes.Structure):
    _fields_ = (("operation", c_void_p), ("index", c_int))


_PROTOTYPES: dict[str, tuple[Any, list[Any]]] = {
    "TF_Version": (c_char_p, []),
    "TF_NewStatus": (c_void_p, []),
    "TF_DeleteStatus": (None, [c_void_p]),
    "TF_GetCode": (c_int, [c_void_p]),
    "TF_Message": (c_char_p, [c_void_p]),
    "TF_NewBufferFromString": (c_void_p, [c_char_p, c_size_t]),
    "TF_DeleteBuffer": (None, [c_void_p]),
    "TF_NewGraph": (c_void_p, []),
    "TF_DeleteGraph": (None, [c_void_p]),
    "TF_GraphOperationByName": (c_void_p, [c_void_p, c_char_p]),
    "TF_NewSessionOptions": (c_void_p, []),
    "TF_DeleteSessionOptions": (None, [c_void_p]),
    "TF_SetConfig": (None, [c_void_p, c_char_p, c_size_t, c_void_p]),
    "TF_NewSession": (c_void_p, [c_void_p, c_void_p, c_void_p]),
    "TF_LoadSessionFromSavedModel": (
        c_void_p,
        [c_void_p, c_void_p, c_char_p, POINTER(c_char_p), c_int, c_void_p, c_void_p, c_void_p],
    ),
    "TF_CloseSession": (None, [c_void_p, c_void_p]),
    "TF_DeleteSession": (None, [c_void_p, c_void_p]),
    "TF_SessionRun": (
        None,
        [
            *(c_void_p, c_void_p),
            *(POINTER(_Output), POINTER(c_void_p), c_int),
            *(POINTER(_Output), POINTER(c_void_p), c_int),
            *(c_void_p, c_int, c_void_p, c_void_p),
        ],
    ),
    "TF_AllocateTensor": (c_void_p, [c_int, POINTER(c_int64), c_int, c_size_t]),
    "TF_NewTensor": (c_void_p, [c_int, POINTER(c_int64), c_int, c_void_p, c_size_t, _Deallocator, c_void_p]),
    "TF_DeleteTensor": (None, [c_void_p]),
    "TF_TensorType": (c_int, [c_void_p]),
    "TF_NumDims": (c_int, [c_void_p]),
    "TF_Dim": (c_int64, [c_void_p, c_int]),
    "TF_TensorByteSize": (c_size_t, [c_void_p]),
    "TF_TensorData": (c_void_p, [c_void_p]),
    "TF_StringInit": (None, [c_void_p]),
    "TF_StringCopy": (None, [c_void_p, c_char_p, c_size_t]),
    "TF_StringDealloc": (None, [c_void_p]),
    "TF_StringGetDataPointer": (c_void_p, [c_void_p]),
    "TF_StringGetSize": (c_size_t, [c_void_p]),
    "malloc": (c_void_p, [c_size_t]),
    "free": (None, [c_void_p]),
}
_STRING_BYTES = 24  # sizeof(TF_TString), fixed by its ABI
DT_STRING = 7
# Sessions run in the thread that asks: no hand-over for a small graph, and a slow model can't use up a shared pool.
_IN_CALLER_THREAD = -1


@cache
def library() -> Any:
    """Load the library, once. Takes half a second, and 45 MB that are not shared with other processes."""
    # Level 2 leaves errors. What is logged before TensorFlow reads the level is chatter about absent GPUs.
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    spec = find_spec("tensorflow")
    places = list(spec.submodule_search_locations or ()) if spec else []
    found = [path for place in places for path in sorted(Path(place).glob("libtensorflow_cc.*"))]
    if not found:
        raise FileNotFoundError("TensorFlow's wheel brings no libtensorflow_cc; install tensorflow 2.19 or newer")
    with _quiet_stderr():
        loaded = ctypes.CDLL(str(found[0]))
        for name, (result, arguments) in _PROTOTYPES.items():
            function = getattr(loaded, name)
            function.restype, function.argtypes = result, arguments
        # The first session initialises the devices, which is where the rest of the chatter comes from.
        status, graph, options = loaded.TF_NewStatus(), loaded.TF_NewGraph(), loaded.TF_NewSessionOptions()
        loaded.TF_DeleteSession(loaded.TF_NewSession(graph, options, status), status)
    return loaded


@contextlib.contextmanager
def _quiet_stderr() -> Iterator[None]:
    kept, sink = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(sink, 2)
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(sink)


@contextlib.contextmanager
def _status() -> Iterator[int]:
    status = library().TF_NewStatus()
    try:
        yield status
        code = library().TF_GetCode(status)
        if code:
            raise ServingError(Code(code), library().TF_Message(status).decode(errors="replace"))
    finally:
        library().TF_DeleteStatus(status)


@contextlib.contextmanager
def _run_options(timeout: float | None) -> Iterator[int]:
    options = config_pb2.RunOptions(inter_op_thread_pool=_IN_CALLER_THREAD)
    if timeout is not None:
        options.timeout_in_ms = max(1, int(timeout * 1000))
    raw = options.SerializeToString()
    buffer = library().TF_NewBufferFromString(raw, len(raw))
    try:
        yield buffer
    finally:
        library().TF_DeleteBuffer(buffer)


@dataclass(frozen=True, slots=True)
class Tensor:
    """A dense tensor in host memory: `data` is its bytes in row-major order, or the strings of a DT_STRING."""

    dtype: int
    shape: tuple[int, ...]
    data: bytes | Sequence[bytes]


@dataclass(slots=True)
class Session:
    """A loaded graph. `run` may be called by many threads at once; `close` only when no run is under way."""

    _session: int
    _graph: int
    _operations: dict[str, int] = field(default_factory=dict)

    @classmethod
    def load(cls, path: Path, tags: Sequence[str], config: bytes = b"") -> Session:
        """Load a SavedModel as TF Serving does; `config` is a serialised ConfigProto. Raises ServingError."""
        lib = library()
        options, graph = lib.TF_NewSessionOptions(), lib.TF_NewGraph()
        wanted = (c_char_p * len(tags))(*(tag.encode() for tag in tags))
        try:
            with _status() as status:
                lib.TF_SetConfig(options, config, len(config), status)
            with _run_options(None) as run, _status() as status:
                session = lib.TF_LoadSessionFromSavedModel(
                    options, run, os.fsencode(path), wanted, len(tags), graph, None, status
                )
        except ServingError:
            lib.TF_DeleteGraph(graph)
            raise
        finally:
            lib.TF_DeleteSessionOptions(options)
        return cls(session, graph)

    def close(self) -> None:
        """Free the graph, its variables and its threads."""
        lib = library()
        with contextlib.suppress(ServingError), _status() as status:
            lib.TF_CloseSession(self._session, status)
        with contextlib.suppress(ServingError), _status() as status:
            lib.TF_DeleteSession(self._session, status)
        lib.TF_DeleteGraph(self._graph)

    def run(self, feeds: Sequence[tuple[str, Tensor]], fetches: Sequence[str], timeout: float | None) -> list[Tensor]:
        """Feed tensors by name (`x:0`), fetch others. `timeout` in seconds. Raises ServingError."""
        lib = library()
        inputs = (_Output * len(feeds))(*(self._output(name) for name, _ in feeds))
        outputs = (_Output * len(fetches))(*map(self._output, fetches))
        values, results = (c_void_p * len(feeds))(), (c_void_p * len(fetches))()
        try:
            for place, (_, tensor) in enumerate(feeds):
                values[place] = _to_c(tensor)
            with _run_options(timeout) as options, _status() as status:
                lib.TF_SessionRun(
                    *(self._session, options, inputs, values, len(feeds), outputs, results, len(fetches)),
                    *(None, 0, None, status),
                )
            return [_from_c(result) for result in results if result is not None]
        finally:
            for handle in (*values, *results):
                if handle:
                    lib.TF_DeleteTensor(handle)

    def _output(self, name: str) -> _Output:
        operation, _, index = name.partition(":")
        handle = self._operations.get(operation)
        if handle is None:
            handle = library().TF_GraphOperationByName(self._graph, operation.encode())
            if not handle:
                raise ServingError(Code.NOT_FOUND, f"Node {operation!r} of the signature is not in the graph")
            self._operations[operation] = handle
        return _Output(handle, int(index or 0))


def _free(data: int, size: int, _argument: int) -> None:
    # TensorFlow calls this when the last user of the tensor is gone, which can be long after the run that it fed.
    for place in range(data, data + size, _STRING_BYTES):
        library().TF_StringDealloc(place)
    library().free(data)


_free_strings = _Deallocator(_free)


def _to_c(tensor: Tensor) -> int:
    lib = library()
    shape = (c_int64 * len(tensor.shape))(*tensor.shape)
    if isinstance(tensor.data, bytes):
        size = len(tensor.data)
        handle: int = lib.TF_AllocateTensor(tensor.dtype, shape, len(shape), size)
        ctypes.memmove(lib.TF_TensorData(handle), tensor.data, size)
        return handle
    count = len(tensor.data)
    size = count * _STRING_BYTES
    start = lib.malloc(max(1, size))
    for place, value in zip(range(start, start + size, _STRING_BYTES), tensor.data, strict=True):
        lib.TF_StringInit(place)
        lib.TF_StringCopy(place, value, len(value))
    created: int = lib.TF_NewTensor(tensor.dtype, shape, len(shape), start, size, _free_strings, None)
    return created


def _from_c(handle: int) -> Tensor:
    lib = library()
    dtype, shape = lib.TF_TensorType(handle), tuple(lib.TF_Dim(handle, n) for n in range(lib.TF_NumDims(handle)))
    size, start = lib.TF_TensorByteSize(handle), lib.TF_TensorData(handle)
    if dtype != DT_STRING:
        return Tensor(dtype, shape, ctypes.string_at(start, size) if size else b"")
    strings = range(start or 0, (start or 0) + size, _STRING_BYTES)
    return Tensor(
        dtype,
        shape,
        [ctypes.string_at(lib.TF_StringGetDataPointer(one), lib.TF_StringGetSize(one)) for one in strings],
    )
