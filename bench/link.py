"""A link of given rate and delay in front of a TCP server on this machine: what a far registry is like.

    link.py HOST:PORT RATE_MBIT ONE_WAY_DELAY_MS [slow-start]

Prints the address that stands for the server, then serves until its standard input ends. All connections share the rate, each
direction has its own. Every byte arrives ONE_WAY_DELAY_MS after it left, and a connection's first byte one round trip later
still, since the handshake crosses the link, too. With `slow-start` a sender has no more bytes under way on a connection than
TCP would let it: ten segments at first and after a pause, doubling with each round trip. A kernel's own shaping is not needed:
many lack netem.
"""

import asyncio
import sys

PIECE_BYTES = 64 << 10
# What may be under way: the rate times the delay, and as much again in buffers.
MAX_QUEUED = 256


class Direction:
    """One direction of the link, shared by all connections."""

    def __init__(self, bytes_per_s):
        self.bytes_per_s = bytes_per_s
        self.free_at = 0.0

    def departure(self, now, length):
        """When the last of `length` bytes has left, if they queue now."""
        self.free_at = max(self.free_at, now) + length / self.bytes_per_s
        return self.free_at


class Window:
    """How much one side of a connection may have under way: TCP's slow start, without loss. None means any amount."""

    FIRST_BYTES = 10 * 1448
    LARGEST_BYTES = 4 << 20
    # After such a pause Linux forgets what it knew (tcp_slow_start_after_idle).
    IDLE_S = 0.2

    def __init__(self, delay_s):
        self.delay_s = delay_s
        self.bytes = self.FIRST_BYTES
        self.under_way = 0
        self.sent_at = 0.0
        self.changed = asyncio.Event()

    async def room(self):
        """How many bytes may be sent now; waits until it is some."""
        loop = asyncio.get_running_loop()
        if not self.under_way and loop.time() > self.sent_at + self.IDLE_S + 2 * self.delay_s:
            self.bytes = self.FIRST_BYTES
        while self.under_way >= self.bytes:
            self.changed.clear()
            await self.changed.wait()
        return self.bytes - self.under_way

    def sent(self, length, arrives):
        """`length` bytes left that arrive then; half a round trip later the sender hears of it."""
        self.under_way += length
        loop = asyncio.get_running_loop()
        self.sent_at = loop.time()
        loop.call_at(arrives + self.delay_s, self.acknowledged, length)

    def acknowledged(self, length):
        self.under_way -= length
        self.bytes = min(self.bytes + length, self.LARGEST_BYTES)
        self.changed.set()


async def pump(reader, writer, direction, delay_s, first_delay_s, slow_start):
    """Carries bytes one way; what is read is on its way while more is read."""
    loop = asyncio.get_running_loop()
    queue = asyncio.Queue(MAX_QUEUED)

    async def deliver():
        while (item := await queue.get()) is not None:
            at, piece = item
            await asyncio.sleep(max(0, at - loop.time()))
            writer.write(piece)
            await writer.drain()
        writer.write_eof()

    delivery = asyncio.create_task(deliver())
    extra = first_delay_s
    window = Window(delay_s) if slow_start else None
    try:
        while piece := await reader.read(min(PIECE_BYTES, await window.room()) if window else PIECE_BYTES):
            leaves = direction.departure(loop.time(), len(piece))
            if window:
                window.sent(len(piece), leaves + delay_s)
            await queue.put((leaves + delay_s + extra, piece))
            extra = 0
            # A sender is told of a full link by not being read.
            await asyncio.sleep(max(0, leaves - loop.time() - delay_s))
        await queue.put(None)
        await delivery
    except (ConnectionError, OSError):
        delivery.cancel()
        writer.close()


async def main():
    host, port = sys.argv[1].rsplit(":", 1)
    rate, delay_s = float(sys.argv[2]) * 1e6 / 8, float(sys.argv[3]) / 1e3
    slow_start = sys.argv[4:] == ["slow-start"]
    up, down = Direction(rate), Direction(rate)

    async def accepted(near_reader, near_writer):
        try:
            far_reader, far_writer = await asyncio.open_connection(host, int(port))
        except OSError:
            near_writer.close()
            return
        await asyncio.gather(
            pump(near_reader, far_writer, up, delay_s, 2 * delay_s, slow_start),
            pump(far_reader, near_writer, down, delay_s, 0, slow_start),
            return_exceptions=True,
        )
        near_writer.close()
        far_writer.close()

    server = await asyncio.start_server(accepted, "127.0.0.1", 0, limit=PIECE_BYTES)
    print(f"127.0.0.1:{server.sockets[0].getsockname()[1]}", flush=True)
    await asyncio.get_running_loop().run_in_executor(None, sys.stdin.read)
    server.close()


asyncio.run(main())
