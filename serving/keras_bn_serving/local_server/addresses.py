"""The addresses that a host name stands for on this machine, and sockets that listen on all of them."""

import errno
import socket

_TRIES = 20  # to choose a port that is free on every address


def addresses(host: str) -> list[str]:
    """The numeric addresses of `host` that this machine has; an OSError if it has none.

    A machine without IPv6 may have an IPv6 address for localhost in its tables.
    """
    if host == "[::]":  # all interfaces, of IPv4 too
        return ["::"]
    found, problem = [], OSError(f"{host} has no address")
    for family, _, _, _, address in socket.getaddrinfo(host.strip("[]"), None, type=socket.SOCK_STREAM):
        try:
            with socket.socket(family, socket.SOCK_STREAM) as probe:
                probe.bind((address[0], 0))
        except OSError as error:
            problem = error
        else:
            found.append(str(address[0]))
    if not found:
        raise problem
    return found


def listen(host: str, port: int, backlog: int = 2048) -> list[socket.socket]:
    """A listening socket for every address of `host`, all on `port`, or on one that is chosen if it is 0.

    Raises:
        OSError: the port is taken on one of the addresses.
    """
    for _ in range(_TRIES):
        sockets: list[socket.socket] = []
        chosen = port
        try:
            for address in addresses(host):
                family = socket.AF_INET6 if ":" in address else socket.AF_INET
                both = address == "::" and socket.has_dualstack_ipv6()
                one = socket.create_server(
                    (address, chosen), family=family, backlog=backlog, dualstack_ipv6=both
                )
                sockets.append(one)
                chosen = int(one.getsockname()[1])
            return sockets
        except OSError as error:
            for one in sockets:
                one.close()
            if port or error.errno != errno.EADDRINUSE:
                raise
    raise OSError(errno.EADDRINUSE, f"no port is free on all addresses of {host}")
