"""The books of a run: what the services have written down, read while they go on writing.

service.cpp says how a line looks. A message is named PRODUCER.INCARNATION/LANE:SEQUENCE.
"""

import collections
import dataclasses
import heapq
import pathlib


PIECE = 1 << 16  # bytes


def topic_of(message):
    """The topic of a message, which its id says: what handlers send has a lane of its own."""
    return message.split("/")[1].split(":")[0].rstrip("+")


@dataclasses.dataclass(frozen=True, slots=True)
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
    forgiven: int = 0    # confirmed and gone with a topic that was deleted
    late: int = 0        # the same of sends that were not confirmed: no order is promised for them


class Books:
    """Reads every file of a folder from where it stopped reading.

    `groups_of` says by topic which groups there are, `had_dedup(group, service, begin, end)` whether a
    service has had dedup on for a group all that time, and `is_forgiven(topic, time)` whether what was confirmed then may be gone.
    """

    def __init__(self, folder, groups_of, had_dedup, is_forgiven):
        self._folder = pathlib.Path(folder)
        self._groups_of = groups_of
        self._had_dedup = had_dedup
        self._is_forgiven = is_forgiven
        self._read = {}            # by file: bytes
        self.confirmed = {}        # by id: (time, key)
        self.failed = {}           # by id: (time, key, U or N, code)
        self.handled = {group: collections.defaultdict(list) for groups in groups_of.values() for group in groups}
        self.keys = {}             # by id, of what was handled
        self.waits = {group: set() for group in self.handled}  # confirmed, and not handled
        self.status = collections.defaultdict(Status)          # by (NAME.INCARNATION, topic)
        self.phases = collections.defaultdict(set)             # by NAME.INCARNATION
        self.corrupt = []

    def poll(self):
        """Reads on, a piece of each file: who calls has connections to serve. A line that is not whole yet
        is left for the next time. Says whether there is more."""
        more = False
        for path in sorted(self._folder.glob("*.books")):
            begin = self._read.get(path, 0)
            if path.stat().st_size == begin:
                continue
            with path.open("rb") as file:
                file.seek(begin)
                data = file.read(PIECE)
            more |= len(data) == PIECE
            whole = data.rfind(b"\n") + 1
            self._read[path] = begin + whole
            for line in data[:whole].decode().splitlines():
                self._enter(path.stem, line.split(" "))
        return more

    def _enter(self, service, words):
        kind, time = words[0], int(words[1])
        if kind == "H":
            self._enter_handled(service, time, *words[2:])
        elif kind == "C":
            message = words[2]
            self.confirmed[message] = (time, words[3])
            for group in self._groups_of[topic_of(message)]:
                if message not in self.handled[group]:
                    self.waits[group].add(message)
        elif kind in "UN":
            self.failed[words[2]] = (time, words[3], kind, words[4])
        elif kind == "S":
            self.status[service, words[2]] = Status(time, words[3], words[4])
        elif kind == "P":
            self.phases[service].add(words[2])
        elif kind == "B":
            self.corrupt.append((service, words[2]))

    def _enter_handled(self, service, time, group, message, key, side, marked, sent):
        self.handled[group][message].append(Handled(time, service, side, marked == "1", int(sent)))
        self.keys[message] = key
        self.waits[group].discard(message)

    def waiting(self):
        """What was confirmed and some group has not handled, as (group, id)."""
        return {(group, message) for group, messages in self.waits.items() for message in messages
                if not self._is_forgiven(topic_of(message), self.confirmed[message][0])}

    def silences(self, discount):
        """For each group and key, and for each producer, the longest time in which it stood still, in
        nanoseconds, with when that ended. A group stands still where messages of a key were confirmed and
        it handles none of them, a producer where no send is confirmed. `discount(begin, end)` is how much
        of a time does not count."""
        found = {}

        def note(who, begin, end):
            length = end - begin - discount(begin, end)
            if length > found.get(who, (0, 0))[0]:
                found[who] = (length, end)

        for group, handled in self.handled.items():
            lanes = collections.defaultdict(list)
            for message, times in handled.items():
                lanes[self.keys[message]].append((min(one.time for one in times), message))
            for key, lane in lanes.items():
                self._note_lane(lane, lambda begin, end, who=f"{group} {key}": note(who, begin, end))
        sends = collections.defaultdict(list)
        for message, (time, _) in self.confirmed.items():
            if "+" not in message and topic_of(message) == "orders":
                sends[message.split("/")[0]].append(time)
        for producer, times in sends.items():
            times.sort()
            for begin, end in zip(times, times[1:]):
                note(producer, begin, end)
        return found

    # A message waits from its confirm on; what counts of that is the time since the last one was handled.
    def _note_lane(self, lane, note):
        lane.sort()
        waiting, confirmed, last = [], sorted(
            (self.confirmed[message][0], time) for time, message in lane if message in self.confirmed), 0
        entered = 0
        for time, _ in lane:
            while entered < len(confirmed) and confirmed[entered][0] < time:
                heapq.heappush(waiting, confirmed[entered])
                entered += 1
            while waiting and waiting[0][1] < time:
                heapq.heappop(waiting)
            if waiting:
                note(max(last, waiting[0][0]), time)
            last = time

    def verdict(self):
        """The audit. Ids and sequences are compared, never totals."""
        verdict = Verdict(sent=len(self.confirmed), corrupt=len(self.corrupt))
        verdict.lost = sorted(self.waiting())
        verdict.processed = verdict.sent - len({message for _, message in verdict.lost})
        verdict.forgiven = sum(map(len, self.waits.values())) - len(verdict.lost)
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
            if earlier is not one and self._had_dedup(
                    group, one.service.split(".")[0], earlier.time, one.time):
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
