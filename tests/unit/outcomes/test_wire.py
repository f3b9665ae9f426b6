"""Which addresses a connection may reach."""

from __future__ import annotations

import socket

import pytest

from worker.outcomes.wire import NotSent, Wire, is_public

PRIVATE = [
    "127.0.0.1", "127.8.8.8", "10.0.0.1", "172.16.0.1", "192.168.1.1", "169.254.169.254", "100.64.0.1", "0.0.0.0",  # noqa: S104
    "224.0.0.1", "240.0.0.1", "255.255.255.255", "192.0.2.1", "198.18.0.1",
    "::1", "::", "fe80::1", "fe80::1%eth0", "fc00::1", "fec0::1", "ff02::1", "2001:db8::1", "::127.0.0.1",
    "::ffff:127.0.0.1", "::ffff:10.0.0.1", "64:ff9b::7f00:1", "64:ff9b::a9fe:a9fe", "2002:7f00:1::", "2002:a00:1::1",
    "2001:0:4136:e378:8000:63bf:3fff:fdd2",
]  # fmt: skip
PUBLIC = ["1.1.1.1", "93.184.216.34", "2606:4700:4700::1111", "::ffff:1.1.1.1", "64:ff9b::101:101"]


@pytest.mark.parametrize("address", PRIVATE)
def test_an_address_that_is_not_of_the_internet_is_not_public(address: str) -> None:
    assert not is_public(address)


@pytest.mark.parametrize("address", PUBLIC)
def test_an_address_of_the_internet_is_public(address: str) -> None:
    assert is_public(address)


class Resolver:
    """Answers with these addresses, and counts the questions; connections go nowhere, and are recorded."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *addresses: str) -> None:
        self.addresses, self.asked, self.reached = addresses, 0, list[str]()
        monkeypatch.setattr("worker.outcomes.wire.socket.getaddrinfo", self.getaddrinfo)
        monkeypatch.setattr("worker.outcomes.wire.socket.socket", self.socket)

    def getaddrinfo(self, host: str, port: int, **_: object) -> list[tuple[object, ...]]:
        self.asked += 1
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, port)) for address in self.addresses]

    def socket(self, *_: object) -> Resolver:
        return self

    def connect(self, address: tuple[str, int]) -> None:
        self.reached.append(address[0])
        raise ConnectionRefusedError(111, "Connection refused")

    def dup(self) -> Resolver:
        return self

    def settimeout(self, _: float) -> None: ...
    def shutdown(self, _: int) -> None: ...
    def close(self) -> None: ...


def test_a_name_is_resolved_once_and_only_public_addresses_are_reached(monkeypatch: pytest.MonkeyPatch) -> None:
    resolver = Resolver(monkeypatch, "10.0.0.1", "1.1.1.1", "127.0.0.1", "2.2.2.2")
    with pytest.raises(ConnectionRefusedError):
        Wire(allow_private=False).connect("rebind.example", 443)
    assert (resolver.asked, resolver.reached) == (1, ["1.1.1.1", "2.2.2.2"])


def test_a_name_of_private_addresses_only_is_refused_unless_the_host_allows_it(monkeypatch: pytest.MonkeyPatch) -> None:
    resolver = Resolver(monkeypatch, "169.254.169.254", "::1")
    with pytest.raises(NotSent, match=r"^inner\.example is at 169\.254\.169\.254, ::1, which is no public address;"):
        Wire(allow_private=False).connect("inner.example", 80)
    assert resolver.reached == []
    with pytest.raises(ConnectionRefusedError):
        Wire(allow_private=True).connect("inner.example", 80)
    assert resolver.reached == ["169.254.169.254", "::1"]
