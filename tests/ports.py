"""Ports for servers that must be told theirs before they start."""

import os
import socket


def free_ports(count: int) -> list[int]:
    """TCP ports of the loopback interface that nothing else takes before a server does.

    Ports that the system gives out (port 0, outgoing connections) come from 32768 up on Linux and from 49152
    up elsewhere; one that was tried and closed may be given away again at once. These are below, and each
    process of a test run tries a block of its own.
    """
    first = 10_000 + os.getpid() % 2_000 * 10
    found = []
    for port in range(first, first + 10):
        try:
            socket.create_server(("localhost", port)).close()
        except OSError:
            continue
        found.append(port)
    return found[:count]
