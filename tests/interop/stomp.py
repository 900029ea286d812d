"""A client of STOMP 1.2, as small as the tests of interoperation need it. Knows nothing of mq."""

import itertools
import socket
import urllib.parse

# What a header's name and value are written as (STOMP 1.2, "Value Encoding").
_ESCAPES = {"\\": "\\\\", "\r": "\\r", "\n": "\\n", ":": "\\c"}
_UNESCAPES = {escape[1]: char for char, escape in _ESCAPES.items()}


def _escape(text):
    return "".join(_ESCAPES.get(char, char) for char in text)


def _unescape(text):
    chars = iter(text)
    return "".join(_UNESCAPES[next(chars)] if char == "\\" else char for char in chars)


class Frame:
    """A command, its headers (the first of each name counts) and its body in bytes."""

    def __init__(self, command, headers, body=b""):
        self.command = command
        self.headers = headers
        self.body = body

    def __repr__(self):
        return f"{self.command} {self.headers} {self.body!r}"


class Client:
    """One connection. Every wait ends with an exception after `patience` seconds."""

    def __init__(self, url, patience=30):
        """Connects and logs in; the URL is stomp://USER:PASSWORD@HOST:PORT."""
        parts = urllib.parse.urlsplit(url)
        self._numbers = itertools.count(1)
        self._messages = []
        self._socket = socket.create_connection((parts.hostname, parts.port), patience)
        self._stream = self._socket.makefile("rb")
        # CONNECT and its answer are the only frames whose headers are not escaped.
        self._write("CONNECT", {"accept-version": "1.2", "host": parts.hostname,
                                "login": parts.username, "passcode": parts.password,
                                "heart-beat": "0,0"}, b"", str)
        frame = self._read()
        if frame.command != "CONNECTED" or frame.headers.get("version") != "1.2":
            raise ConnectionError(f"no session: {frame}")

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self._stream.close()
        self._socket.close()

    def subscribe(self, destination, headers=None):
        """Returns once the broker has subscribed it. Each message is acknowledged, unless the header
        `ack` is "auto"."""
        number = str(next(self._numbers))
        self._command("SUBSCRIBE", {"id": number, "destination": destination,
                                    "ack": "client-individual", **(headers or {})})

    def send(self, destination, body, headers=None, as_text=False):
        """Returns once the broker has it. As text it carries no length, by which the brokers tell."""
        sent = {"destination": destination, "persistent": "true", **(headers or {})}
        if not as_text:
            sent["content-length"] = str(len(body))
        self._command("SEND", sent, body)

    def receive(self):
        """The next message."""
        frame = self._messages.pop(0) if self._messages else self._read()
        if frame.command != "MESSAGE":
            raise ConnectionError(f"no message: {frame}")
        if "ack" in frame.headers:
            self._command("ACK", {"id": frame.headers["ack"]})
        return frame

    def _command(self, command, headers, body=b""):
        receipt = f"receipt-{next(self._numbers)}"
        self._write(command, {**headers, "receipt": receipt}, body, _escape)
        while True:
            frame = self._read()
            if frame.command == "MESSAGE":
                self._messages.append(frame)
            elif frame.command == "RECEIPT" and frame.headers.get("receipt-id") == receipt:
                return
            else:
                raise ConnectionError(f"{command} is answered by {frame}")

    def _write(self, command, headers, body, encode):
        lines = [command] + [f"{encode(name)}:{encode(value)}" for name, value in headers.items()]
        self._socket.sendall("\n".join(lines).encode() + b"\n\n" + body + b"\0")

    def _line(self):
        line = self._stream.readline()
        if not line.endswith(b"\n"):
            raise ConnectionError("the broker has closed the connection")
        return line[:-1].removesuffix(b"\r").decode()

    def _read(self):
        command = self._line()
        while not command:  # the line ends that may stand between frames
            command = self._line()
        headers = {}
        while line := self._line():
            name, _, value = line.partition(":")
            headers.setdefault(_unescape(name), _unescape(value))
        if "content-length" in headers:
            body = self._stream.read(int(headers["content-length"]))
            end = self._stream.read(1)
        else:
            body = bytearray()
            while (end := self._stream.read(1)) not in (b"\0", b""):
                body += end
        if end != b"\0":
            raise ConnectionError("a frame without its end")
        return Frame(command, headers, bytes(body))
