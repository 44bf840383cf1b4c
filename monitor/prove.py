"""Sees whether one version answers a request. Invariant: PROVED means that this version answered OK to a request that
names it; TRUSTED always says why it could not be asked; FAILED says what it answered, if anything.

What is asked first: the model's own warm-up records if its files can be read here, else zeros of its signature's shape.
What an answer means (`judge`). A warm-up record is an example that the model's author vouches for, so every error
counts against the model. Zeros are a guess, and the codes with which TensorFlow rejects a *value* count against the
guess: the graph was there and ran far enough to look at it. Asked again (`judge_again`), a request that was answered
has to be answered, and one whose values were refused may be refused again: that takes a server that runs it.

    answer                     to a warm-up record   to guessed zeros   the same request again
    OK                         PROVED                PROVED             good
    INVALID_ARGUMENT           FAILED                TRUSTED            good if it said so before: shapes that don't
                                                                        fit, a string that is no image, no tf.Example:
                                                                        kernels check their inputs with this code
    OUT_OF_RANGE               FAILED                TRUSTED            the same: a value beyond what an op takes
    FAILED_PRECONDITION        FAILED                FAILED             bad: `Could not find variable`
    NOT_FOUND                  FAILED                FAILED             bad: a missing file, or just unloaded
    UNIMPLEMENTED              FAILED                FAILED             bad: an op that this build or device lacks
    INTERNAL, UNKNOWN, DATA_LOSS, ABORTED            FAILED             bad: it breaks on any input for all we know
    RESOURCE_EXHAUSTED         FAILED                FAILED             bad: no memory for a batch of one
    DEADLINE_EXCEEDED, none    FAILED                FAILED             bad
    UNAVAILABLE, CANCELLED     FAILED                FAILED             says nothing: whether the server is there is
                                                                        told by the status calls, and a full batching
                                                                        queue (this code, too) is no reason to leave
    PERMISSION_DENIED, UNAUTHENTICATED               FAILED             bad: no client of ours gets an answer either

NaN and infinities are answers: models mask with them, and zeros may well be what they can't divide by. They are said.

Before that: a signature that can't be guessed (unknown rank, a resource, variant, sparse or composite input, no
signature that Predict takes) is TRUSTED, and so is a model whose metadata the server refuses to tell. Predict takes
classify and regress signatures too; their input is a string, so the guess is an empty one, which is the serialised
empty tf.Example: a model whose features all have defaults answers it, others say INVALID_ARGUMENT.
"""

from __future__ import annotations

import asyncio
import re
from dataclasses import replace
from functools import partial

import grpc

from monitor.client import CLASSIFY, PREDICT, REGRESS, CallError, ServerClient, model_spec
from monitor.numbers import strange_numbers
from monitor.open_calls import CALL, Answer, OpenCalls
from monitor.pb import tfs_pb2 as tfs
from monitor.servables import Outcome, Probe, Question
from monitor.signature import CannotGuess, choose_signature, zeros
from monitor.threads import in_daemon_thread
from monitor.warmup import WarmupError, read_warmup
from registry.records import Proof

MOST_RECORDS = 3
LARGEST_KEPT = 2**20
"""Bytes of a request that is kept to be asked again; a version with larger ones only is not."""
_ABOUT_THE_VALUES = (grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.OUT_OF_RANGE)
# The guess has the types that the signature tells, so it is the signature that is wrong (direct_session.cc).
_OTHER_TYPE = re.compile(r"Expects arg\[\d+\] to be \w+ but \w+ is provided")
_NOT_THE_MODELS = (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED)
# The server is there and says no to the question itself: the version may still be fine.
_NO_METADATA = (grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.UNIMPLEMENTED, grpc.StatusCode.PERMISSION_DENIED)


def judge(error: CallError | None, asked: str, *, guessed: bool) -> Outcome:
    """The table above; `asked` completes "answered …". None: it answered OK."""
    if error is None:
        return Outcome(Proof.PROVED, f"answered {asked}")
    if guessed and _OTHER_TYPE.match(error.detail):
        return Outcome(Proof.FAILED, f"its signature does not fit its graph: {error}")
    if guessed and error.code in _ABOUT_THE_VALUES:
        return Outcome(Proof.TRUSTED, f"it runs, but {asked} are not valid for it: {error}")
    return Outcome(Proof.FAILED, str(error), silent=error.code is grpc.StatusCode.DEADLINE_EXCEEDED)


def judge_again(error: CallError | None, question: Question) -> Outcome:
    """The table's last column."""
    if error is not None and error.code in _NOT_THE_MODELS:
        return Outcome(Proof.PENDING, str(error))
    if question.refused and error is not None and error.code in _ABOUT_THE_VALUES:
        return Outcome(Proof.TRUSTED, question.words)
    return judge(error, question.words, guessed=False)


class Prober:
    """Asks the versions of one server; its calls belong to the caller's group."""

    def __init__(self, client: ServerClient, deadline: float, group: asyncio.TaskGroup) -> None:
        """`deadline`: seconds that a first proof may take, and a re-proof at most."""
        self._client = client
        self._deadline = deadline
        self._calls = OpenCalls(client, group)
        self._reading: dict[tuple[str, int], asyncio.Future[list[tfs.PredictionLog]]] = {}

    def close(self) -> None:
        """Give up what is under way."""
        self._calls.close()

    async def prove(self, probe: Probe) -> Outcome:
        """Ask one version; takes at most the deadline, or the probe's patience."""
        patience = self._deadline if probe.patience is None else probe.patience
        try:
            async with asyncio.timeout(patience):
                return await (self._again(probe, probe.question) if probe.question else self._first(probe))
        except TimeoutError:
            return Outcome(Proof.FAILED, f"no answer within {patience:.3g} s", silent=True)

    async def _again(self, probe: Probe, question: Question) -> Outcome:
        answer = await self._ask(probe, question)
        return replace(judge_again(answer.error, question), seconds=answer.seconds)

    async def _first(self, probe: Probe) -> Outcome:
        remark = ""
        try:
            records = await self._warmup(probe.model.base_path, probe.version)
        except WarmupError as error:
            records, remark = [], f"; its warm-up records can't be read: {error}"
        if records:
            return await self._replay(probe, records)
        try:
            signatures = await self._client.signatures(probe.model.name, probe.version, self._deadline)
            signature = choose_signature(signatures)
            inputs = zeros(signatures[signature])
        except CallError as error:
            if error.code in _NO_METADATA:
                return Outcome(Proof.TRUSTED, f"the server does not tell its signature: {error}{remark}")
            return Outcome(Proof.FAILED, str(error))
        except CannotGuess as error:
            return Outcome(Proof.TRUSTED, f"{error}{remark}")
        request = tfs.PredictRequest(model_spec=model_spec(probe.model.name, probe.version, signature), inputs=inputs)
        question = Question(PREDICT, request.SerializeToString(), f"zeros for {signature}")
        answer = await self._ask(probe, question)
        outcome = judge(answer.error, question.words, guessed=True)
        return Outcome(
            outcome.proof,
            f"{outcome.detail}{_numbers(question, answer)}{remark}",
            question=replace(question, refused=outcome.proof is Proof.TRUSTED),
            seconds=answer.seconds,
        )

    async def _warmup(self, base_path: str, version: int) -> list[tfs.PredictionLog]:
        # A disk that does not answer gets one thread, however often the version is asked, and none waits at the end.
        reading = self._reading.get((base_path, version))
        if reading is None:
            read = partial(read_warmup, base_path, version, MOST_RECORDS)
            reading = self._reading[base_path, version] = in_daemon_thread(read, "warm-up records")
            reading.add_done_callback(lambda _: self._reading.pop((base_path, version), None))
        return await asyncio.shield(reading)

    async def _replay(self, probe: Probe, records: list[tfs.PredictionLog]) -> Outcome:
        """All of them; the smallest one is asked from then on."""
        words, remark = f"{len(records)} of its own warm-up records", ""
        asked: list[tuple[Question, Answer]] = []
        for record in records:
            method, request = _request(record)
            # The record's author may have named another version, or none.
            spec = model_spec(probe.model.name, probe.version, request.model_spec.signature_name)
            request.model_spec.CopyFrom(spec)
            question = Question(method, request.SerializeToString(), words)
            answer = await self._ask(probe, question)
            if answer.error:
                return judge(answer.error, words, guessed=False)
            remark = remark or _numbers(question, answer)
            asked.append((question, answer))
        smallest, answer = min(asked, key=lambda pair: len(pair[0].request))
        kept = smallest if len(smallest.request) <= LARGEST_KEPT else None
        return Outcome(Proof.PROVED, f"answered {words}{remark}", question=kept, seconds=answer.seconds)

    async def _ask(self, probe: Probe, question: Question) -> Answer:
        key = (probe.model.name, probe.version, probe.incarnation)
        deadline = max(CALL, self._deadline)
        # A second call sees whether it is just the first that was unlucky, which matters only where it is in use.
        most = 2 if probe.question else 1
        return await self._calls.ask(key, question.method, question.request, most=most, deadline=deadline)


def _numbers(question: Question, answer: Answer) -> str:
    if question.method != PREDICT or answer.error:
        return ""
    found = strange_numbers(answer.body)
    return f", with {found}" if found else ""


def _request(record: tfs.PredictionLog) -> tuple[str, tfs.PredictRequest | tfs.ExamplesRequest]:
    match record.WhichOneof("log_type"):
        case "classify_log":
            return CLASSIFY, record.classify_log.request
        case "regress_log":
            return REGRESS, record.regress_log.request
        case _:
            return PREDICT, record.predict_log.request
