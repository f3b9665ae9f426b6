"""The connection of one attempt: to a public address only, unless the host allows others, and ended from outside.

A name is resolved once, and the connection goes to the address that was checked. So a name that later leads to another
address changes nothing. All calls block: for a thread. :meth:`Wire.cut` ends what the thread waits for.
"""

from __future__ import annotations

import ipaddress
import socket
import ssl
import threading
from contextlib import suppress

from worker.errors import OpsError

CONNECT_SECONDS = 10.0
"""For one address; a name may have several."""

QUIET_SECONDS = 20.0
"""How long the receiver may send nothing. The whole attempt has a limit of its own."""

_NAT64 = ipaddress.ip_network("64:ff9b::/96")


class NotSent(OpsError):
    """A message was not sent. ``final``: another attempt would end in the same way."""

    def __init__(self, message: str, *, final: bool = False) -> None:
        super().__init__(message)
        self.final = final


def is_public(address: str) -> bool:
    """Whether it is an address of the internet: not private, shared, loopback, link-local, multicast or reserved.

    Of an IPv6 address that contains an IPv4 address, the latter decides, since the packets go there.
    """
    ip = ipaddress.ip_address(address.partition("%")[0])
    if isinstance(ip, ipaddress.IPv6Address):
        inner = ip.ipv4_mapped or ip.sixtofour or (ip.teredo[1] if ip.teredo else None)
        if ip in _NAT64:
            inner = ipaddress.IPv4Address(int(ip) & 0xFFFFFFFF)
        if inner is not None:
            return is_public(str(inner))
        if ip.is_site_local:
            return False
    return ip.is_global and not (ip.is_multicast or ip.is_reserved)


class Wire:
    """At most one connection."""

    def __init__(self, *, allow_private: bool, ca_file: str | None = None) -> None:
        self._allow_private = allow_private
        self._ca_file = ca_file
        self._lock = threading.Lock()
        self._handle: socket.socket | None = None
        self._cut = False

    def connect(self, host: str, port: int) -> socket.socket:
        """A connection to the first address of the host that answers. Raises ``NotSent`` and ``OSError``."""
        try:
            found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
        except UnicodeError:
            raise NotSent(f"{host}: not the name of a host") from None
        refused = [str(address[0]) for *_, address in found if not self._may_reach(str(address[0]))]
        problem: Exception = NotSent(
            f"{host} is at {', '.join(dict.fromkeys(refused))}, which is no public address; allow_private permits it"
        )
        for family, kind, protocol, _, address in found:
            if str(address[0]) in refused:
                continue
            connection = socket.socket(family, kind, protocol)
            try:
                connection.settimeout(CONNECT_SECONDS)
                self._hold(connection)
                connection.connect(address)
                connection.settimeout(QUIET_SECONDS)
            except (OSError, NotSent) as error:
                connection.close()
                problem = error
            else:
                return connection
        raise problem

    def secure(self, connection: socket.socket, host: str) -> ssl.SSLSocket:
        """TLS on that connection; the certificate must be valid for the host. Raises ``OSError``."""
        return ssl.create_default_context(cafile=self._ca_file).wrap_socket(connection, server_hostname=host)

    def cut(self) -> None:
        """Ends the connection, and every call that waits for it. May be called from another thread."""
        with self._lock:
            self._cut = True
            self._drop()

    def _may_reach(self, address: str) -> bool:
        return self._allow_private or is_public(address)

    def _hold(self, connection: socket.socket) -> None:
        """Keeps a second handle of the connection: the first one may be closed, or be wrapped, at any time."""
        with self._lock:
            self._drop()
            if self._cut:
                raise NotSent("the attempt was ended")
            self._handle = connection.dup()

    def _drop(self) -> None:
        if self._handle is not None:
            with suppress(OSError):
                self._handle.shutdown(socket.SHUT_RDWR)
            self._handle.close()
            self._handle = None
