"""What other programs do to what lies on a broker: delete a topic and make it anew, let positions expire."""

import http.client
import re
import socket
import struct
import urllib.error
import urllib.request

PATIENCE = 60  # seconds


class Kafka:
    """By three requests of Kafka's protocol, in versions that every broker still has or had for years."""

    _CREATE_TOPICS, _DELETE_TOPICS, _DELETE_GROUPS = (19, 1), (20, 1), (42, 0)

    def __init__(self, url):
        self._port = int(re.search(r":(\d+)/?$", url).group(1))

    def delete(self, what, address):
        """Deletes the topic, and all that is in it."""
        assert what == "topic"
        self._ask(self._DELETE_TOPICS, self._strings(address) + struct.pack(">i", PATIENCE * 1000))

    def make(self, what, address):
        """Makes the topic anew, unless somebody else was sooner."""
        assert what == "topic"
        self._ask(self._CREATE_TOPICS, struct.pack(">i", 1) + self._string(address) +
                  struct.pack(">ihiii?", 4, 1, 0, 0, PATIENCE * 1000, False))

    def expire(self, groups):
        """Deletes the positions of groups that have no member; says what came of it, one code a group."""
        answer = self._ask(self._DELETE_GROUPS, self._strings(*groups))
        codes, at = {}, 8  # behind the time of throttling and the count
        for _ in groups:
            length, = struct.unpack_from(">h", answer, at)
            name = answer[at + 2:at + 2 + length].decode()
            codes[name], = struct.unpack_from(">h", answer, at + 2 + length)
            at += 4 + length
        return codes

    @staticmethod
    def _string(text):
        return struct.pack(">h", len(text)) + text.encode()

    def _strings(self, *texts):
        return struct.pack(">i", len(texts)) + b"".join(map(self._string, texts))

    def _ask(self, api, body):
        request = struct.pack(">hhi", *api, 1) + self._string("torture") + body
        with socket.create_connection(("127.0.0.1", self._port), PATIENCE) as connection:
            connection.sendall(struct.pack(">i", len(request)) + request)
            with connection.makefile("rb") as answer:
                length, = struct.unpack(">i", answer.read(4))
                return answer.read(length)[4:]


class RabbitMQ:
    """By the HTTP API of its management."""

    def __init__(self, folder):
        self._url = (folder / "management").read_text().strip()

    def delete(self, what, address):
        """Deletes the exchange, or the queue of the group scrap on it, and all that is in it."""
        self._ask("DELETE", what, address)

    def make(self, what, address):
        """Makes an exchange anew, bound to nothing. A queue is left to who wants it."""
        if what == "exchange":
            self._ask("PUT", what, address, b'{"type": "fanout", "durable": true}')

    def expire(self, groups):
        """Nothing here expires."""
        raise NotImplementedError(groups)

    def _ask(self, method, what, address, body=None):
        name = address + (".scrap" if what == "queue" else "")
        request = urllib.request.Request(f"{self._url}/api/{what}s/%2F/{name}", body, method=method, headers={
            "Authorization": "Basic Z3Vlc3Q6Z3Vlc3Q=", "Content-Type": "application/json"})
        try:
            urllib.request.urlopen(request, timeout=PATIENCE).close()
        except urllib.error.HTTPError as error:
            # It is not there: another one was sooner, or nobody has made it yet.
            if error.code not in (400, 404):
                raise


# What a broker answers that is dying at the moment.
FAILURES = (OSError, struct.error, http.client.HTTPException)


def of(kind, folder, url):
    """Who can do that on a broker of that kind; None where nobody can."""
    return {"kafka": lambda: Kafka(url), "rabbitmq": lambda: RabbitMQ(folder)}.get(kind, lambda: None)()
