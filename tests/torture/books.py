"""The books of a run: what the services have written down, read while they go on writing.

service.cpp says how a line looks. A message is named PRODUCER.INCARNATION:SEQUENCE.
"""

import collections
import dataclasses
import pathlib


@dataclasses.dataclass(frozen=True)
class Handled:
    """A message was handled."""
    time: int
    service: str  # NAME.INCARNATION
    side: str
    marked: bool  # as a possible repeat
    sent: int


@dataclasses.dataclass
class Status:
    """Where a process was last."""
    time: int = 0
    policy: str = ""
    stage: str = ""


@dataclasses.dataclass
class Verdict:
    """What the books say in the end."""
    sent: int = 0        # confirmed by a broker
    processed: int = 0   # of those, handled by every group
    unknown: int = 0     # sends that ended without being certain
    refused: int = 0     # sends that ended as not sent
    handlings: int = 0
    corrupt: int = 0     # did not arrive as they were sent
    lost: list = dataclasses.field(default_factory=list)
    phantoms: list = dataclasses.field(default_factory=list)   # handled, though "not sent"
    repeats: list = dataclasses.field(default_factory=list)    # (group, id, first, again)
    seen_twice: list = dataclasses.field(default_factory=list)  # the same, by one process with dedup on
    reordered: list = dataclasses.field(default_factory=list)  # (group, key, id, after)
    late: int = 0        # the same of sends that were not confirmed: no order is promised for them


class Books:
    """Reads every file of a folder from where it stopped reading."""

    def __init__(self, folder, group_of, with_dedup):
        self._folder = pathlib.Path(folder)
        self._with_dedup = with_dedup  # names of services
        self._group_of = group_of  # by the name of a service
        self._read = {}            # by file: bytes
        self.confirmed = {}        # by id: (time, key)
        self.failed = {}           # by id: (time, key, U or N, code)
        self.handled = {group: collections.defaultdict(list) for group in set(group_of.values())}
        self.keys = {}             # by id, of what was handled
        self.waits = {group: set() for group in self.handled}  # confirmed, and not handled
        self.status = collections.defaultdict(Status)          # by NAME.INCARNATION
        self.phases = collections.defaultdict(set)             # by NAME.INCARNATION
        self.corrupt = []

    def poll(self):
        """Reads on. A line that is not whole yet is left for the next time."""
        for path in sorted(self._folder.glob("*.books")):
            begin = self._read.get(path, 0)
            if path.stat().st_size == begin:
                continue
            with path.open("rb") as file:
                file.seek(begin)
                data = file.read()
            whole = data.rfind(b"\n") + 1
            self._read[path] = begin + whole
            for line in data[:whole].decode().splitlines():
                self._enter(path.stem, line.split(" "))

    def _enter(self, service, words):
        kind, time = words[0], int(words[1])
        if kind == "H":
            self._enter_handled(service, time, *words[2:])
        elif kind == "C":
            message = f"{service}:{words[2]}"
            self.confirmed[message] = (time, words[3])
            for group, handled in self.handled.items():
                if message not in handled:
                    self.waits[group].add(message)
        elif kind in "UN":
            self.failed[f"{service}:{words[2]}"] = (time, words[3], kind, words[4])
        elif kind == "S":
            self.status[service] = Status(time, words[2], words[3])
        elif kind == "P":
            self.phases[service].add(words[2])
        elif kind == "B":
            self.corrupt.append((service, words[2]))

    def _enter_handled(self, service, time, message, key, side, marked, sent):
        group = self._group_of[service.split(".")[0]]
        self.handled[group][message].append(Handled(time, service, side, marked == "1", int(sent)))
        self.keys[message] = key
        self.waits[group].discard(message)

    def waiting(self):
        """What was confirmed and some group has not handled, as (group, id)."""
        return {(group, message) for group, messages in self.waits.items() for message in messages}

    def verdict(self):
        """The audit. Ids and sequences are compared, never totals."""
        verdict = Verdict(sent=len(self.confirmed), corrupt=len(self.corrupt))
        verdict.lost = sorted(self.waiting())
        verdict.processed = verdict.sent - len({message for _, message in verdict.lost})
        kinds = collections.Counter(kind for _, _, kind, _ in self.failed.values())
        verdict.unknown, verdict.refused = kinds["U"], kinds["N"]
        for group, handled in sorted(self.handled.items()):
            lanes = collections.defaultdict(list)
            for message, times in handled.items():
                times.sort(key=lambda one: one.time)
                verdict.handlings += len(times)
                verdict.repeats += [(group, message, times[0], again) for again in times[1:]]
                verdict.seen_twice += self._seen_twice(group, message, times)
                if self.failed.get(message, ("", "", ""))[2] == "N":
                    verdict.phantoms.append((group, message))
                producer, sequence = message.split(":")
                lanes[producer, self.keys[message]].append((times[0].time, int(sequence), message))
            for (_, key), lane in sorted(lanes.items()):
                self._check_lane(verdict, group, key, sorted(lane))
        return verdict

    # Every incarnation of a service is a process of its own.
    def _seen_twice(self, group, message, times):
        first = {}
        for one in times:
            earlier = first.setdefault(one.service, one)
            if earlier is not one and one.service.split(".")[0] in self._with_dedup:
                yield group, message, earlier, one

    # What a group has handled of one key of one producer, in the order of the first handlings.
    def _check_lane(self, verdict, group, key, lane):
        last, last_message = -1, ""
        for _, sequence, message in lane:
            if message not in self.confirmed:
                verdict.late += sequence < last
            elif sequence < last:
                verdict.reordered.append((group, key, message, last_message))
            else:
                last, last_message = sequence, message
