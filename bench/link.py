"""A link of given rate and delay in front of a TCP server on this machine: what a far registry is like.

    link.py HOST:PORT RATE_MBIT ONE_WAY_DELAY_MS

Prints the address that stands for the server, then serves until its standard input ends. All connections share the rate, each
direction has its own. Every byte arrives ONE_WAY_DELAY_MS after it left, and a connection's first byte one round trip later
still, since the handshake crosses the link, too. A kernel's own shaping is not needed: many lack netem.
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


async def pump(reader, writer, direction, delay_s, first_delay_s):
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
    try:
        while piece := await reader.read(PIECE_BYTES):
            leaves = direction.departure(loop.time(), len(piece))
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
    up, down = Direction(rate), Direction(rate)

    async def accepted(near_reader, near_writer):
        try:
            far_reader, far_writer = await asyncio.open_connection(host, int(port))
        except OSError:
            near_writer.close()
            return
        await asyncio.gather(
            pump(near_reader, far_writer, up, delay_s, 2 * delay_s),
            pump(far_reader, near_writer, down, delay_s, 0),
            return_exceptions=True,
        )
        near_writer.close()
        far_writer.close()

    server = await asyncio.start_server(accepted, "127.0.0.1", 0, limit=PIECE_BYTES)
    print(f"127.0.0.1:{server.sockets[0].getsockname()[1]}", flush=True)
    await asyncio.get_running_loop().run_in_executor(None, sys.stdin.read)
    server.close()


asyncio.run(main())
