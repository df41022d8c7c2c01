"""Local TCP ports: is one free, which one to take, does something listen."""

import errno
import random
import socket

from infra.errors import MachineUnfit, PortInUse

LOOPBACK = "127.0.0.1"

# Below Linux's ephemeral range (32768 and up): while a server is down, a client that retries its port can be given that
# very port as its own source port, connect to itself, and keep the server from ever binding it again.
_FIRST_PORT, _LAST_PORT = 20_000, 31_999
_ATTEMPTS = 200


def is_free(port: int, host: str = LOOPBACK) -> bool:
    """True if a server could bind `port` on `host` now."""
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        # As servers do: connections of a previous run that linger in TIME_WAIT must not count as a listener.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            if error.errno in (errno.EADDRINUSE, errno.EACCES):
                return False
            raise
    return True


def free_port(host: str = LOOPBACK) -> int:
    """A port on `host` that is free now. Raises MachineUnfit if none can be found."""
    for _ in range(_ATTEMPTS):
        port = random.randint(_FIRST_PORT, _LAST_PORT)
        if is_free(port, host):
            return port
    raise MachineUnfit(f"no free TCP port between {_FIRST_PORT} and {_LAST_PORT} on {host}")


def require_free(port: int, host: str, how_to_change: str) -> None:
    """Raises PortInUse, naming the port and `how_to_change` it, unless `port` is free on `host`."""
    if not is_free(port, host):
        raise PortInUse(f"port {port} on {host} is in use by another process; {how_to_change}")


def listens(host: str, port: int, timeout_s: float = 0.5) -> bool:
    """True if something accepts connections on `host`:`port` within `timeout_s`."""
    try:
        with socket.create_connection((host, port), timeout=timeout_s):
            return True
    except OSError:
        return False
