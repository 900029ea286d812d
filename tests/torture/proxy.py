"""What stands between the services and a broker, and can be told to misbehave."""

import asyncio
import contextlib


class _Connection:
    """A connection of a client, and the one to the broker that belongs to it."""

    def __init__(self, client, broker):
        self.client, self.broker = client, broker  # (reader, writer) each
        self.swallowed = False

    def cut(self):
        for _, writer in (self.client, self.broker):
            writer.transport.abort()


class Proxy:
    """Forwards a port of loopback to another one."""

    def __init__(self, upstream):
        self._upstream = upstream
        self._server = None
        self._connections = set()
        self._flows = asyncio.Event()
        self._flows.set()
        self._delay = 0.0
        self._swallows = False
        self._refuses = False
        self.port = 0

    async def start(self, port=0):
        """Listens on the port, or on a free one."""
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", port)
        self.port = self._server.sockets[0].getsockname()[1]

    async def stop(self):
        """Takes no more connections, and ends those there are."""
        if self._server:
            self._server.close()
        self.cut()

    @property
    def connections(self):
        """How many there are."""
        return len(self._connections)

    def cut(self, connections=None):
        """Ends the connections, or these, at once and without notice."""
        for connection in list(self._connections if connections is None else connections):
            connection.cut()

    def cut_some(self, fraction, choose):
        """Ends that part of the connections; says how many."""
        count = round(fraction * len(self._connections))
        chosen = choose(sorted(self._connections, key=id), count)
        self.cut(chosen)
        return count

    @contextlib.contextmanager
    def stalled(self):
        """Nothing gets through in either direction, and nothing is lost."""
        self._flows.clear()
        try:
            yield
        finally:
            self._flows.set()

    @contextlib.contextmanager
    def slowed(self, seconds):
        """Every piece takes that much longer."""
        self._delay = seconds
        try:
            yield
        finally:
            self._delay = 0.0

    @contextlib.contextmanager
    def swallowing(self):
        """The broker gets everything and its answers are lost, until the connections end."""
        self._swallows = True
        try:
            yield
        finally:
            self._swallows = False
            self.cut([one for one in self._connections if one.swallowed])

    @contextlib.contextmanager
    def refusing(self):
        """The broker is not to be reached."""
        self._refuses = True
        self.cut()
        try:
            yield
        finally:
            self._refuses = False

    # Streams complain of a server's task that is cancelled.
    async def _serve(self, reader, writer):
        with contextlib.suppress(asyncio.CancelledError):
            await self._forward(reader, writer)

    async def _forward(self, reader, writer):
        if self._refuses:
            writer.transport.abort()
            return
        try:
            broker = await asyncio.open_connection("127.0.0.1", self._upstream)
        except OSError:
            writer.transport.abort()
            return
        connection = _Connection((reader, writer), broker)
        self._connections.add(connection)
        try:
            await asyncio.gather(self._pump(connection, reader, broker[1], False),
                                 self._pump(connection, broker[0], writer, True))
        finally:
            connection.cut()
            self._connections.discard(connection)

    # Ends when either end does, and with it the other direction.
    async def _pump(self, connection, reader, writer, to_client):
        with contextlib.suppress(OSError):
            while data := await reader.read(1 << 16):
                if self._delay:
                    await asyncio.sleep(self._delay)
                await self._flows.wait()
                if to_client and (self._swallows or connection.swallowed):
                    connection.swallowed = True
                    continue
                writer.write(data)
                await writer.drain()
        # What was written is still on its way out: the end comes after it.
        with contextlib.suppress(OSError, asyncio.TimeoutError):
            writer.close()
            await asyncio.wait_for(writer.wait_closed(), 1.0)
        connection.cut()
