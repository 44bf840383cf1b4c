"""What the command line says about a person's mistake: one line that names the thing and the mend, and no traceback."""

from __future__ import annotations

import errno
from collections.abc import Iterator

FAILURE, USAGE, CONFLICT, UNHEARD, DIFFERENT, INTERRUPTED = 1, 2, 3, 4, 5, 130
"""Exit codes; 0 is success. 4 is a monitor's (superseded)."""


class UserError(Exception):
    """Something that the person at the keyboard can mend."""

    exit_code = FAILURE


class ConflictError(UserError):
    """Somebody else changed it in between; what was asked for was not done."""

    exit_code = CONFLICT


class OptionError(UserError):
    """A flag, environment variable or key of the file that can't be used."""

    exit_code = USAGE


def as_user_error(error: BaseException) -> UserError | None:
    """The user's error behind `error`, looked for inside exception groups too; None if any part is something else.

    The services raise their own types for what a user can mend (a busy port, an etcd that refuses the password), and
    run in task groups, which wrap them. A part that is none of those is a bug and keeps its traceback.
    """
    found = [_one(leaf) for leaf in _leaves(error)]
    known = [one for one in found if one is not None]
    return known[0] if known and len(known) == len(found) else None


def _leaves(error: BaseException) -> Iterator[BaseException]:
    if isinstance(error, BaseExceptionGroup):
        for part in error.exceptions:
            yield from _leaves(part)
    else:
        yield error


def _raised_by_services() -> tuple[type[Exception], ...]:
    # Imported only now: a command that goes well never pays for them.
    from monitor.errors import MonitorError
    from registry.etcd.errors import EtcdError

    return MonitorError, EtcdError


def _one(error: BaseException) -> UserError | None:
    if isinstance(error, UserError):
        return error
    if isinstance(error, _raised_by_services()):
        mistake = UserError(str(error))
        mistake.exit_code = getattr(error, "exit_code", FAILURE)
        return mistake
    if isinstance(error, OSError) and type(error).__module__ != "builtins":
        return UserError(str(error))  # a service's own type, whose message says it all
    if isinstance(error, OSError) and error.errno in (errno.EADDRINUSE, errno.EACCES, errno.EADDRNOTAVAIL):
        return UserError(
            str(error.strerror or error) if error.filename is None else f"{error.filename}: {error.strerror}"
        )
    return None
