"""A long, bad line between two network namespaces: late packets, lost packets.

    python far_line.py NAMESPACE ADDRESS NAMESPACE ADDRESS SECONDS LOSS

Makes a TUN device with its address (as 10.78.0.1/24) in each namespace and carries packets between
them, each way SECONDS late, of which the share LOSS never arrives. For kernels without netem too.
"""

import ctypes
import fcntl
import heapq
import itertools
import os
import random
import select
import struct
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

TUNSETIFF = 0x400454CA
IFF_TUN_NO_PI = 0x0001 | 0x1000
DEVICE = "far0"


def open_end(namespace: str, address: str) -> int:
    """Make one end of the line and return what its packets are read from."""
    libc = ctypes.CDLL(None, use_errno=True)
    with Path("/run/netns", namespace).open() as file:
        if libc.setns(file.fileno(), 0) != 0:
            raise OSError(ctypes.get_errno(), f"cannot enter {namespace}")
    end = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK)
    fcntl.ioctl(end, TUNSETIFF, struct.pack("16sH", DEVICE.encode(), IFF_TUN_NO_PI))
    subprocess.run(["ip", "addr", "add", address, "dev", DEVICE], check=True)
    subprocess.run(["ip", "link", "set", DEVICE, "up"], check=True)
    return end


def carry(ends: tuple[int, int], seconds: float, loss: float) -> None:
    """Carry packets, for ever."""
    other = dict(zip(ends, reversed(ends), strict=True))
    chance, numbers = random.Random(0), itertools.count()
    under_way: list[tuple[float, int, int, bytes]] = []
    while True:
        wait = max(under_way[0][0] - time.monotonic(), 0) if under_way else None
        for end in select.select(ends, [], [], wait)[0]:
            try:
                packet = os.read(end, 65536)
            except OSError:
                time.sleep(0.01)  # a device that is down
                continue
            if chance.random() >= loss:
                due = time.monotonic() + seconds
                heapq.heappush(under_way, (due, next(numbers), other[end], packet))
        while under_way and under_way[0][0] <= time.monotonic():
            _, _, end, packet = heapq.heappop(under_way)
            with suppress(OSError):  # lost: the device is down
                os.write(end, packet)


if __name__ == "__main__":
    _, here, at_here, there, at_there, late, lost = sys.argv
    carry((open_end(here, at_here), open_end(there, at_there)), float(late), float(lost))
