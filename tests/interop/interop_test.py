"""A program that speaks STOMP and one that uses mq read each other's messages on one broker.

MQ_TEST_ACTIVEMQ_DIR and MQ_TEST_ARTEMIS_DIR name the folders of brokers that tests/brokers has started;
MQ_TEST_RELAY the program that uses mq. Writes "PASSED FAILED SKIPPED" into the file that MQ_TEST_TALLY
names.
"""

import os
import pathlib
import subprocess
import sys
import unittest
import uuid

import stomp

PATIENCE = 60  # seconds
BODY = "Zoë".encode() + bytes(range(256))


class Relay:
    """The program that uses mq."""

    def __init__(self, *arguments):
        self._process = subprocess.Popen([os.environ["MQ_TEST_RELAY"], *arguments],
                                         stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self._process.kill()
        self._process.communicate()

    def expect(self, line):
        said = self._process.stdout.readline().strip()
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
        for line in self._process.stdout:
            name, *values = line.rstrip("\n").split(" ")
            if name == "end":
                return fields, headers
            values = [bytes.fromhex(value) for value in values]
            if name == "header":
                headers[values[0].decode()] = values[1].decode()
            else:
                fields[name] = values[0]
        raise AssertionError("the program that uses mq has ended")


class Interop:
    """What holds on every broker. A broker's own class says what things are called there."""

    folder_variable = ""
    key_header = None  # where the broker shows a STOMP client the group that a message belongs to

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
        self.send_by_mq({"body": BODY, "key": b"customer-7", "id": b"order-1",
                         "correlation_id": b"request-1", "content_type": b"application/json"},
                        {"tenant": "acme", "text": "a: b\\c\nZoë"})
        message = client.receive()
        self.assertEqual(message.body, BODY)
        self.assertEqual(message.headers["tenant"], "acme")
        self.assertEqual(message.headers["text"], "a: b\\c\nZoë")
        if self.key_header:
            self.assertEqual(message.headers[self.key_header], "customer-7")
        self.assertEqual(message.headers["correlation-id"], "request-1")
        self.assertEqual(message.headers["persistent"], "true")

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

    def subscribe(self, client):
        client.subscribe(f"/topic/VirtualTopic.{self.address}")

    def subscribe_to_group(self, client, group):
        client.subscribe(f"/queue/Consumer.{group}.VirtualTopic.{self.address}")

    def send(self, client, body, headers=None, as_text=False):
        client.send(f"/topic/VirtualTopic.{self.address}", body, headers, as_text)


class Artemis(Interop, unittest.TestCase):
    folder_variable = "MQ_TEST_ARTEMIS_DIR"
    key_header = "_AMQ_GROUP_ID"

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
