"""How to reach etcd. Invariant: a config that exists is one that can be dialled: endpoints parsed, TLS files paired."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from registry.addresses import split_address

_PLAIN, _TLS = "http://", "https://"


@dataclass(frozen=True)
class EtcdConfig:
    """Where etcd is and who we are there. Raises ValueError naming the field and the mend."""

    endpoints: tuple[str, ...] = field(
        default=("127.0.0.1:2379",),
        metadata={
            "help": "etcd members, HOST:PORT, comma-separated; https://HOST:PORT asks for TLS",
            "metavar": "HOST:PORT",
            "flag": "--etcd",
        },
    )
    ca_cert: Path | None = field(
        default=None,
        metadata={
            "help": "PEM file of the authority that signed etcd's certificate; turns TLS on",
            "metavar": "FILE",
            "flag": "--etcd-ca-cert",
        },
    )
    cert: Path | None = field(
        default=None,
        metadata={"help": "PEM file of our own client certificate", "metavar": "FILE", "flag": "--etcd-cert"},
    )
    key: Path | None = field(
        default=None,
        metadata={"help": "PEM file of the client certificate's key", "metavar": "FILE", "flag": "--etcd-key"},
    )
    user: str | None = field(
        default=None,
        metadata={"help": "etcd user, where etcd has authentication on", "metavar": "NAME", "flag": "--etcd-user"},
    )
    password: str | None = field(
        default=None,
        repr=False,
        metadata={
            "help": "the etcd user's password; prefer the environment variable, flags show in the process list",
            "metavar": "PASSWORD",
            "flag": "--etcd-password",
        },
    )
    timeout: float = field(
        default=5.0,
        metadata={
            "help": "seconds that one call to etcd may take, retries included",
            "metavar": "SECONDS",
            "flag": "--etcd-timeout",
        },
    )

    def __post_init__(self) -> None:
        self.validate()

    def validate(self) -> None:
        """Check what a type can't say. Raises ValueError."""
        if not self.endpoints:
            raise ValueError("endpoints: name at least one etcd member, like 127.0.0.1:2379")
        for endpoint in self.endpoints:
            _check_endpoint(endpoint)
        schemes = {endpoint.startswith(_TLS) for endpoint in self.endpoints if "://" in endpoint}
        if len(schemes) > 1:
            raise ValueError("endpoints: http:// and https:// can't be mixed; all members speak one of them")
        if (self.cert is None) != (self.key is None):
            raise ValueError("cert and key belong together: give both or neither")
        if schemes == {False} and self.ca_cert is not None:
            raise ValueError("ca_cert: TLS is asked for, but the endpoints say http://; write https:// or no scheme")
        if (self.user is None) != (self.password is None):
            raise ValueError("user and password belong together: give both or neither")
        if self.cert is not None and not self.tls:
            raise ValueError("cert: a client certificate needs TLS; write https:// endpoints or give ca_cert")
        if not 0 < self.timeout <= 300:
            raise ValueError(f"timeout: {self.timeout} s is not between 0 and 300")

    @property
    def tls(self) -> bool:
        """Whether connections are encrypted: an authority is given, or the endpoints say https://."""
        return self.ca_cert is not None or any(endpoint.startswith(_TLS) for endpoint in self.endpoints)

    @property
    def addresses(self) -> tuple[str, ...]:
        """The endpoints as HOST:PORT, without a scheme."""
        return tuple(_address(endpoint) for endpoint in self.endpoints)


def _address(endpoint: str) -> str:
    return endpoint.removeprefix(_PLAIN).removeprefix(_TLS).rstrip("/")


def _check_endpoint(endpoint: str) -> None:
    try:
        split_address(_address(endpoint))
    except ValueError as error:
        raise ValueError(f"endpoints: {error}; write it like 127.0.0.1:2379") from None
