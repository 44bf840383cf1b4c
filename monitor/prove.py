"""Sees whether one version answers a request. Invariant: PROVED means that this version answered OK to a request that
names it; TRUSTED always says why it could not be asked; FAILED says what it answered.

What is asked: the model's own warm-up records if its files can be read here, else zeros of its signature's shape.
What an answer means (`judge`). A warm-up record is an example that the model's author vouches for, so every error
counts against the model. Zeros are a guess, and the codes with which TensorFlow rejects a *value* count against the
guess: the graph was there and ran far enough to look at it.

    answer                     to a warm-up record   to guessed zeros
    OK                         PROVED                PROVED
    INVALID_ARGUMENT           FAILED                TRUSTED  shapes that don't fit, a string that is no image, no
                                                              tf.Example: kernels check their inputs with this code
    OUT_OF_RANGE               FAILED                TRUSTED  a value beyond what an op allows
    FAILED_PRECONDITION        FAILED                FAILED   `Could not find variable`, a table never initialised
    NOT_FOUND                  FAILED                FAILED   a missing resource or asset, or just unloaded: tried again
    UNIMPLEMENTED              FAILED                FAILED   an op that this build or device lacks
    INTERNAL, UNKNOWN, DATA_LOSS, ABORTED            FAILED   it breaks on any input for all we know
    RESOURCE_EXHAUSTED         FAILED                FAILED   no memory for a batch of one, or a full queue: tried again
    DEADLINE_EXCEEDED, UNAVAILABLE, CANCELLED        FAILED   no answer: tried again
    PERMISSION_DENIED, UNAUTHENTICATED               FAILED   no client of ours would get an answer either

Before that: a signature that can't be guessed (unknown rank, a resource, variant, sparse or composite input, no
signature that Predict takes) is TRUSTED, and so is a model whose metadata the server refuses to tell. Predict takes
classify and regress signatures too; their input is a string, so the guess is an empty one, which is the serialised
empty tf.Example: a model whose features all have defaults answers it, others say INVALID_ARGUMENT.
"""

from __future__ import annotations

import asyncio

import grpc
from google.protobuf.message import Message

from monitor.client import CLASSIFY, PREDICT, REGRESS, CallError, ServerClient, model_spec
from monitor.pb import tfs_pb2 as tfs
from monitor.servables import Outcome, Probe
from monitor.signature import CannotGuess, choose_signature, zeros
from monitor.warmup import WarmupError, read_warmup
from registry.records import Proof

MOST_RECORDS = 3
_ABOUT_THE_VALUES = (grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.OUT_OF_RANGE)
# The server is there and says no to the question itself: the version may still be fine.
_NO_METADATA = (grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.UNIMPLEMENTED, grpc.StatusCode.PERMISSION_DENIED)


def judge(error: CallError | None, asked: str, *, guessed: bool) -> Outcome:
    """The table above; `asked` completes "answered …". None: it answered OK."""
    if error is None:
        return Outcome(Proof.PROVED, f"answered {asked}")
    if guessed and error.code in _ABOUT_THE_VALUES:
        return Outcome(Proof.TRUSTED, f"it runs, but {asked} are not valid for it: {error}")
    return Outcome(Proof.FAILED, str(error))


async def prove(client: ServerClient, probe: Probe, deadline: float) -> Outcome:
    """Ask one version; takes at most `deadline` seconds."""
    try:
        async with asyncio.timeout(deadline):
            return await _prove(client, probe, deadline)
    except TimeoutError:
        return Outcome(Proof.FAILED, f"no answer within {deadline:g} s")


async def _prove(client: ServerClient, probe: Probe, deadline: float) -> Outcome:
    name, version = probe.model.name, probe.version
    remark = ""
    try:
        records = await asyncio.to_thread(read_warmup, probe.model.base_path, version, MOST_RECORDS)
    except WarmupError as error:
        records, remark = [], f"; its warm-up records can't be read: {error}"
    if records:
        failure = await _replay(client, name, version, records, deadline)
        return judge(failure, f"{len(records)} of its own warm-up records", guessed=False)
    try:
        signatures = await client.signatures(name, version, deadline)
        signature = choose_signature(signatures)
        inputs = zeros(signatures[signature])
    except CallError as error:
        if error.code in _NO_METADATA:
            return Outcome(Proof.TRUSTED, f"the server does not tell its signature: {error}{remark}")
        return Outcome(Proof.FAILED, str(error))
    except CannotGuess as error:
        return Outcome(Proof.TRUSTED, f"{error}{remark}")
    request = tfs.PredictRequest(model_spec=model_spec(name, version, signature), inputs=inputs)
    outcome = judge(await _ask(client, PREDICT, request, deadline), f"zeros for {signature}", guessed=True)
    return Outcome(outcome.proof, outcome.detail + remark)


async def _replay(
    client: ServerClient, name: str, version: int, records: list[tfs.PredictionLog], deadline: float
) -> CallError | None:
    """The first error, if any."""
    for record in records:
        method, request = _request(record)
        # The record's author may have named another version, or none.
        request.model_spec.CopyFrom(model_spec(name, version, request.model_spec.signature_name))
        if error := await _ask(client, method, request, deadline):
            return error
    return None


def _request(record: tfs.PredictionLog) -> tuple[str, tfs.PredictRequest | tfs.ExamplesRequest]:
    match record.WhichOneof("log_type"):
        case "classify_log":
            return CLASSIFY, record.classify_log.request
        case "regress_log":
            return REGRESS, record.regress_log.request
        case _:
            return PREDICT, record.predict_log.request


async def _ask(client: ServerClient, method: str, request: Message, deadline: float) -> CallError | None:
    try:
        await client.call(method, request, deadline)
    except CallError as error:
        return error
    return None
