"""A program that speaks STOMP and one that uses mq read each other's messages on one broker.

MQ_TEST_ACTIVEMQ_DIR and MQ_TEST_ARTEMIS_DIR name the folders of brokers that tests/brokers has started;
MQ_TEST_RELAY the program that uses mq. Writes "PASSED FAILED SKIPPED" into the file that MQ_TEST_TALLY
names.
"""

import os
import pathlib
import queue
import subprocess
import sys
import threading
import time
import unittest
import uuid

import stomp

PATIENCE = 60  # seconds
BODY = "Zoë".encode() + bytes(range(256))


# What has another form in Java's own encoding of text: beyond U+FFFF, and U+0000.
TEXT = "Zoë 😀 a\0b"


class Relay:
    """The program that uses mq. Every wait ends with an exception after PATIENCE seconds."""

    def __init__(self, *arguments):
        self._process = subprocess.Popen([os.environ["MQ_TEST_RELAY"], *arguments],
                                         stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self._lines = queue.Queue()
        self._reader = threading.Thread(target=self._read_lines)
        self._reader.start()

    def _read_lines(self):
        for line in self._process.stdout:
            self._lines.put(line.rstrip("\n"))
        self._lines.put(None)

    def _line(self):
        try:
            line = self._lines.get(timeout=PATIENCE)
        except queue.Empty:
            raise AssertionError("the program that uses mq says nothing") from None
        if line is None:
            raise AssertionError("the program that uses mq has ended")
        return line

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self._process.kill()
        self._reader.join()
        self._process.stdin.close()
        self._process.stdout.close()
        self._process.wait()

    def expect(self, line):
        said = self._line()
        if said != line:
            raise AssertionError(f"the program that uses mq said {said!r} instead of {line!r}")

    def write(self, fields, headers):
        lines = [f"{name} {value.hex()}" for name, value in fields.items()]
        lines += [f"header {name.encode().hex()} {value.encode().hex()}"
                  for name, value in headers.items()]
        self._process.stdin.write("\n".join(lines) + "\nend\n")
        self._process.stdin.flush()

    def read(self):
        """The fields of the next message, and its headers."""
        fields, headers = {}, {}
        while (line := self._line()) != "end":
            name, *values = line.split(" ")
            values = [bytes.fromhex(value) for value in values]
            if name == "header":
                headers[values[0].decode()] = values[1].decode()
            else:
                fields[name] = values[0]
        return fields, headers


class Interop:
    """What holds on every broker. A broker's own class says what things are called there."""

    folder_variable = ""
    # Where the broker shows a STOMP client the group that a message belongs to, if it does, and the id.
    key_header = None
    id_header = None
    id_prefix = ""

    def setUp(self):
        folder = os.environ.get(self.folder_variable)
        if not folder:
            self.skipTest(f"there is no broker ({self.folder_variable})")
        self.folder = pathlib.Path(folder)
        self.address = f"interop-{uuid.uuid4().hex}"
        self.url = (self.folder / "url").read_text().strip()

    def until_the_end(self, resource):
        self.addCleanup(resource.__exit__, None, None, None)
        return resource.__enter__()

    def client(self):
        url = (self.folder / "url-stomp").read_text().strip()
        return self.until_the_end(stomp.Client(url, PATIENCE))

    def relay(self, *arguments):
        return self.until_the_end(Relay(*arguments))

    def send_by_mq(self, fields, headers):
        relay = self.relay("send", self.url, self.address)
        relay.write(fields, headers)
        relay.expect("confirmed")

    def receive_by_mq(self, count):
        relay = self.relay("receive", self.url, self.address, "billing", str(count))
        relay.expect("ready")
        return relay

    def test_a_stomp_client_reads_what_mq_sent(self):
        client = self.client()
        self.subscribe(client)
        before = time.time()
        self.send_by_mq({"body": BODY, "key": b"customer-7", "id": b"order-1", "reply_to": b"answers",
                         "correlation_id": b"request-1", "content_type": b"image/png"},
                        {"tenant": "acme", "text": "a: b\\c\nZoë"})
        message = client.receive()
        self.assertEqual(message.body, BODY)
        self.assertEqual(message.headers[self.id_header], self.id_prefix + "order-1")
        self.assertEqual(message.headers["reply-to"].removeprefix("/queue/").removeprefix("queue://"),
                         "answers")
        self.assertAlmostEqual(int(message.headers["timestamp"]) / 1000, before, delta=PATIENCE)
        self.assertEqual(self.content_type_of(message), "image/png")
        self.assertEqual(message.headers["tenant"], "acme")
        self.assertEqual(message.headers["text"], "a: b\\c\nZoë")
        if self.key_header:
            self.assertEqual(message.headers[self.key_header], "customer-7")
        self.assertEqual(message.headers["correlation-id"], "request-1")
        self.assertEqual(message.headers["persistent"], "true")

    def content_type_of(self, message):
        return message.headers.get("mq-content-type", message.headers["JMS_AMQP_ContentType"])

    def test_a_stomp_client_reads_text_that_mq_sent(self):
        client = self.client()
        self.subscribe(client)
        for text in ("Zoë", TEXT):
            for content_type in ("text/plain", "application/json"):
                self.send_by_mq({"body": text.encode(), "content_type": content_type.encode()}, {})
                message = client.receive()
                self.assertEqual(message.body, text.encode())
                self.assertEqual(self.content_type_of(message), content_type)

    def test_mq_reads_bytes_that_a_stomp_client_sent(self):
        relay = self.receive_by_mq(1)
        self.send(self.client(), BODY, {"tenant": "acme", "JMSXGroupID": "customer-7",
                                        "correlation-id": "request-1", "text": "a: b\\c\nZoë"})
        fields, headers = relay.read()
        self.assertEqual(fields["body"], BODY)
        self.assertEqual(fields["key"], b"customer-7")
        self.assertEqual(fields["correlation_id"], b"request-1")
        self.assertEqual(headers["tenant"], "acme")
        self.assertEqual(headers["text"], "a: b\\c\nZoë")

    def test_mq_reads_text_that_a_stomp_client_sent(self):
        relay = self.receive_by_mq(1)
        self.send(self.client(), "Zoë".encode(), as_text=True)
        self.assertEqual(relay.read()[0]["body"], "Zoë".encode())

    def test_mq_reads_any_text_that_a_stomp_client_sent_as_bytes(self):
        relay = self.receive_by_mq(1)
        self.send(self.client(), TEXT.encode(), {"content-type": "text/plain", "reply-to": "/queue/answers"})
        fields, _ = relay.read()
        self.assertEqual(fields["body"], TEXT.encode())
        self.assertIn(b"answers", fields["reply_to"])

    def test_the_messages_of_a_key_stay_in_order_across_the_two(self):
        relay = self.receive_by_mq(20)
        client = self.client()
        for number in range(20):
            self.send(client, str(number).encode(), {"JMSXGroupID": "customer-7"})
        self.assertEqual([relay.read()[0]["body"] for _ in range(20)],
                         [str(number).encode() for number in range(20)])

    def test_a_stomp_client_takes_over_what_a_group_of_mq_has_left(self):
        # Killed after it has subscribed: the group's queue stays, and the message waits in it.
        with Relay("receive", self.url, self.address, "billing", "1") as relay:
            relay.expect("ready")
        self.send_by_mq({"body": b"left"}, {})
        client = self.client()
        self.subscribe_to_group(client, "billing")
        self.assertEqual(client.receive().body, b"left")


class ActiveMq(Interop, unittest.TestCase):
    folder_variable = "MQ_TEST_ACTIVEMQ_DIR"
    id_header = "mq-id"

    def subscribe(self, client):
        client.subscribe(f"/topic/VirtualTopic.{self.address}")

    def subscribe_to_group(self, client, group):
        client.subscribe(f"/queue/Consumer.{group}.VirtualTopic.{self.address}")

    def send(self, client, body, headers=None, as_text=False):
        client.send(f"/topic/VirtualTopic.{self.address}", body, headers, as_text)


class Artemis(Interop, unittest.TestCase):
    folder_variable = "MQ_TEST_ARTEMIS_DIR"
    key_header = "_AMQ_GROUP_ID"
    id_header = "NATIVE_MESSAGE_ID"
    id_prefix = "ID:AMQP_NO_PREFIX:"

    def subscribe(self, client):
        client.subscribe(self.address, {"subscription-type": "MULTICAST"})

    def subscribe_to_group(self, client, group):
        client.subscribe(f"{self.address}::{self.address}.{group}:global")

    def send(self, client, body, headers=None, as_text=False):
        headers = {"destination-type": "MULTICAST", **(headers or {})}
        client.send(self.address, body, headers, as_text)


def main():
    tally = os.environ.get("MQ_TEST_TALLY", os.devnull)

    class Result(unittest.TextTestResult):
        def startTest(self, test):
            super().startTest(test)
            if tally != os.devnull:
                pathlib.Path(tally + ".running").write_text(f"{test.id()}\n")

        def addSkip(self, test, reason):
            super().addSkip(test, reason)
            print(f"skipped: {test.id()}: {reason}", flush=True)

    program = unittest.main(verbosity=2, exit=False,
                            testRunner=unittest.TextTestRunner(resultclass=Result, verbosity=2))
    result = program.result
    failed = len(result.failures) + len(result.errors)
    skipped = len(result.skipped)
    passed = result.testsRun - failed - skipped
    pathlib.Path(tally).write_text(f"{passed} {failed} {skipped}\n")
    sys.exit(0 if failed == 0 else 1)


if __name__ == "__main__":
    main()
