"""What a managed model's troubles are called, and what is said of them (docs/conditions.md). Pure.

Invariant: a text holds no number that counts up, so that a trouble that lasts is one trouble.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

from monitor.known import cut
from monitor.servables import HeldVersion
from monitor.told import ConditionKey
from registry.records import Condition, Proof, ServableState

if TYPE_CHECKING:
    from monitor.manage import ManagedModel


def about_model(
    name: str, model: ManagedModel, there: Mapping[int, HeldVersion], *, late: bool, tries: int
) -> dict[ConditionKey, Condition]:
    """The troubles of one model. `late`: its assignment has had the time that a load may take."""
    found: dict[ConditionKey, Condition] = {}

    def say(condition: str, text: str, version: int | None = None, *, final: bool = False) -> None:
        subject = "" if version is None else str(version)
        found[condition, name, subject] = Condition(condition, text, name, version, final)

    if model.assigned is not None and model.moved_away and not model.unloading:
        say("BasePathChanged", _moved(name, model))
    for version, attempt in model.attempts.items():
        what, one = f"model {name} version {version}", there.get(version)
        if attempt.given_up:
            mend = f"given up after {tries} tries; it is tried again when its files or its assignment change"
            say("LoadFailed", f"{what}: {cut(attempt.error, 300)}; {mend}", version, final=True)
        elif attempt.error:
            say("LoadFailed", f"{what}: {cut(attempt.error, 300)}; it is tried again", version)
        elif one is not None and one.state is ServableState.AVAILABLE and one.proof is Proof.FAILED:
            say("ProofFailed", f"{what}: it is loaded, but does not answer: {cut(one.detail, 300)}", version)
        elif late and not (one is not None and one.answers):
            state = "not there" if one is None else str(one.state)
            text = f"{what}: still {state} long after it was assigned; what it replaces does not wait any longer"
            say("LoadLate", text, version)
    if model.kept_old:
        old, new = model.target - model.versions, model.versions
        text = f"model {name}: version {_numbers(old)} is kept, for none of those assigned ({_numbers(new)}) answers"
        say("OldVersionsKept", text)
    return found


def owned(names: Iterable[str]) -> dict[ConditionKey, Condition]:
    """Models that are assigned although the server's own configuration has them."""
    text = "it is in the server's own configuration, which wins; take it out there, or rename the policy"
    return {("OwnedByServer", name, ""): Condition("OwnedByServer", f"model {name}: {text}", name) for name in names}


def _moved(name: str, model: ManagedModel) -> str:
    assert model.assigned is not None
    if model.base_path != model.assigned.base_path:
        what = f"it is loaded from {model.base_path} and assigned from {model.assigned.base_path}"
    else:
        what = f"it is loaded as {model.platform} and assigned as {model.assigned.platform}"
    return f"model {name}: {what}, which a server can't hold both; unload it here first"


def _numbers(numbers: Iterable[int]) -> str:
    return ", ".join(str(number) for number in sorted(numbers, reverse=True))
