"""The script of a torture run: what happens to the fleet and when, made from the seed alone.

A step takes the whole fleet one rung further, up or down. Within a step the services are told at different
times, or one half long after the other; some change their minds twice, one of them may stay behind and jump
in the next step, and a step may begin before the last one is reached. Things break meanwhile, handlers are
slow, blocked or fail until they are healed, and what a reload may change changes. All of it is what the
README calls safe, which `check` proves of a script by playing it:

- at any time all services are told one of two neighbouring rungs, or are on the way from one to the other;
- where `restarts` says "up", what subscribes is not killed while a walk with an order goes down;
- where a group is not named, no step begins before the last is reached: nobody would ask for that group;
- only the topic that is nobody's business, scratch, is deleted, and positions expire only on a side that
  all groups have left.
"""

import collections
import dataclasses
import random
import sys

RUNGS = ("old", "dual-subscribe", "new-publish", "new")
KINDS = ("rabbitmq", "kafka", "activemq", "artemis")


@dataclasses.dataclass(frozen=True)
class Service:
    """A process: a member of a group, a producer, or both."""
    name: str
    group: str = ""
    produces: bool = False


FLEET = (Service("billing-0", "billing"), Service("billing-1", "billing"),
         Service("search-0", "search"), Service("search-1", "search", True),
         Service("producer-0", produces=True), Service("producer-1", produces=True))
GROUPS = ("billing", "search")
ORDERS, RECEIPTS, SCRATCH = "orders", "receipts", "scratch"
WALKING = (ORDERS, RECEIPTS)  # scratch lies on one broker and stays there
# Beside the orders of its group: a topic and a group for it.
BESIDE = {"billing-0": (RECEIPTS, "ledger"), "search-1": (RECEIPTS, "ledger"),
          "billing-1": (SCRATCH, "scrap"), "search-0": (SCRATCH, "scrap")}
GROUPS_OF = {ORDERS: GROUPS, RECEIPTS: ("ledger",), SCRATCH: ("scrap",)}
MEMBERS = {group: tuple(s.name for s in FLEET if group in (s.group, BESIDE.get(s.name, ("", ""))[1]))
           for groups in GROUPS_OF.values() for group in groups}
# What a producer sends to the other topics, in messages a second.
RATES_BESIDE = {"producer-0": ((RECEIPTS, 5), (SCRATCH, 3)), "producer-1": ((SCRATCH, 3),)}
# Subscriptions come before those who publish.
CLASSES = (tuple(s.name for s in FLEET if not s.produces),
           tuple(s.name for s in FLEET if s.group and s.produces),
           tuple(s.name for s in FLEET if not s.group))


@dataclasses.dataclass(frozen=True)
class Asked:
    """What a run was asked for."""
    seed: int
    minutes: float
    old: str
    new: str
    order: str = "key"
    restarts: str = "any"  # when subscribers are killed: at "any" time, or while an ordered walk goes "up"
    kill_every: float = 0  # seconds from one death of the old broker to the next; 0: a script of all faults
    rate: int = 0          # messages a second of the whole fleet; 0: the script's choice
    load: int = 0          # processes that want a processor all the time

    def command(self):
        text = (f"tests/torture/run.sh --seed {self.seed} --minutes {self.minutes:g} --old {self.old} "
                f"--new {self.new} --order {self.order} --restarts {self.restarts}")
        for option in ("kill_every", "rate", "load"):
            if value := getattr(self, option):
                text += f" --{option.replace('_', '-')} {value:g}"
        return text


@dataclasses.dataclass(frozen=True)
class Event:
    """Something that happens `at` seconds after its step began; a fault takes `seconds`."""
    at: float
    kind: str
    target: str
    seconds: float = 0.0
    detail: str = ""

    def __str__(self):
        text = f"{self.at:7.2f}  {self.kind} {self.target}"
        if self.seconds:
            text += f" for {self.seconds:.2f} s"
        return text + (f" {self.detail}" if self.detail else "")


@dataclasses.dataclass
class Step:
    """One rung of the fleet."""
    begin: int
    end: int
    turns: bool
    jumps: str = ""   # was left behind in the step before, and is told to jump first
    behind: str = ""  # is told nothing in this step
    mixed: bool = False  # one half of the fleet is told at once, the other in the end
    hasty: bool = False  # the next step begins although this one may not be reached everywhere
    seconds: float = 0.0
    events: list = dataclasses.field(default_factory=list)

    def __str__(self):
        text = f"{RUNGS[self.begin]} -> {RUNGS[self.end]}"
        if self.turns:
            text += ", turning round"
        if self.jumps:
            text += f"; {self.jumps} jumps first, from {RUNGS[2 * self.begin - self.end]}"
        if self.behind:
            text += f"; {self.behind} stays behind"
        if self.mixed:
            text += "; one half is told in the end"
        if self.hasty:
            text += "; the next step does not wait"
        lines = [text + f"; {self.seconds:.1f} s"]
        return "\n".join(lines + [f"  {event}" for event in self.events])


@dataclasses.dataclass
class Script:
    """A run, before it begins."""
    asked: Asked
    quiet: float      # seconds
    failover: bool    # sends may go to the other side
    groups: tuple     # those of the orders that the config names at first
    scratch: str      # the side of the topic scratch
    single: bool      # in the end the topics have one broker
    settings: dict    # by service: what its config file says beside the policy
    steps: list

    def __str__(self):
        lines = [f"# {self.asked.command()}",
                 f"# quiet = {self.quiet:g} s, failover = {str(self.failover).lower()}, groups = "
                 f"{' '.join(self.groups) or 'none'}; scratch lies on {self.scratch}; " +
                 ('in the end the topics say broker = "new"' if self.single else "ends at new")]
        for name, settings in self.settings.items():
            lines.append(f"# {name}: " + ", ".join(f"{k} {v}" for k, v in settings.items() if v != ""))
        for number, step in enumerate(self.steps, 1):
            lines.append(f"\nstep {number}: {step}")
        return "\n".join(lines) + "\n"


class Maker:
    """Makes a script. One random generator, asked in one order."""

    def __init__(self, asked):
        self._asked = asked
        self._random = random.Random(f"{asked.seed}/{asked.old}/{asked.new}/{asked.order}")
        self._ordered = asked.order == "key"
        kinds = (asked.old, asked.new)
        self._quiet = 4.0 if "rabbitmq" in kinds else 2.0
        # RabbitMQ does not tell what other processes hold: who holds messages for longer than `quiet`
        # is a slow handler, which the README asks to make `quiet` longer for.
        self._longest_stop = 0.3 * self._quiet if self._ordered and "rabbitmq" in kinds else 8.0
        # Between two sides a member handles, of what comes from the one that is held, no more than its
        # prefetch in each `quiet`, where the other one cannot tell what other processes hold.
        self._waits = self._ordered and "rabbitmq" in kinds
        # Of each of three producers. Both ActiveMQs sync their disks for what is in flight at once.
        self._rate = 25 if self._waits else self._random.choice((70, 120, 200))
        if asked.rate:
            self._rate = max(1, round(asked.rate / sum(s.produces for s in FLEET)))
        # Who names no group at all is told of no group by RabbitMQ.
        self._groups = GROUPS
        if self._random.random() < 0.3 and not asked.kill_every:
            self._groups = self._random.choice(
                [GROUPS[:1], GROUPS[1:]] + ([()] if "rabbitmq" not in kinds else []))
        self._expires = ""  # the side whose positions expire once, when all groups have left it

    def make(self):
        settings = {service.name: self._settings(service) for service in FLEET}
        failover, scratch = self._failover(), self._random.choice(("old", "new"))
        self._scratch = scratch
        kafkas = [side for side in ("old", "new") if getattr(self._asked, side) == "kafka"]
        if kafkas and self._random.random() < 0.5:
            self._expires = self._random.choice(kafkas)
        steps = list(self._killing() if self._asked.kill_every else self._steps())
        single = self._random.random() < 0.5 and not self._asked.kill_every
        return Script(self._asked, self._quiet, failover, self._groups, scratch, single, settings, steps)

    def _settings(self, service):
        pick = self._random.choice
        settings = {"send_timeout": pick(("6s", "12s", "30s", "30s")),
                    # Full after some hundred messages, or never.
                    "max_in_flight_bytes": pick((100_000, 400_000, 64 << 20)),
                    "prefetch": pick((256, 1000) if self._waits else (8, 64, 256)),
                    "concurrency": pick((1, 4))}
        if service.group:
            settings["dedup"] = pick(("off", "10m"))
            # Handlers of orders that send: to the orders themselves, or to another topic.
            settings["sends"] = pick(("", "", ORDERS, RECEIPTS))
        if service.produces:
            settings["rate"] = self._rate
        if self._asked.kill_every:
            settings |= {"send_timeout": "120s", "max_in_flight_bytes": 64 << 20, "prefetch": 256,
                         "concurrency": 4} | ({"dedup": "off", "sends": ""} if service.group else {})
        return settings

    # The old broker dies again and again, and nothing else happens.
    def _killing(self):
        step = Step(0, 1, False, seconds=self._asked.minutes * 60)
        step.events = [Event(0.5, "policy", service.name, detail=RUNGS[1]) for service in FLEET]
        at = min(15.0, self._asked.kill_every)
        while at < step.seconds:
            step.events.append(
                Event(round(at, 2), "broker-kill", "old", round(self._random.uniform(0.3, 4.0), 2)))
            at += self._asked.kill_every
        yield step

    # Without an order to keep, what cannot be sent to one side may go to the other.
    def _failover(self):
        return not self._ordered and self._random.random() < 0.5

    # The fleet wanders over the ladder. What the run has no time for is left out.
    def _steps(self):
        total, rung, direction, behind = 0.0, 0, 1, ""
        base = min(12.0, max(5.0, self._asked.minutes * 60 / 8))
        first = True
        while total < self._asked.minutes * 60:
            turns = not first and (rung + direction not in range(4) or
                                   (not behind and self._random.random() < 0.2))
            if turns:
                direction = -direction
            step = Step(rung, rung + direction, turns, jumps=behind)
            step.seconds = round(base * self._random.uniform(0.7, 1.3), 1)
            goes_on = rung + 2 * direction in range(4)
            behind = ""
            if goes_on and self._random.random() < 0.35:
                behind = self._random.choice([s.name for s in FLEET if s.name != step.jumps])
            step.behind = behind
            step.mixed = self._random.random() < 0.25
            if step.mixed:
                step.seconds = round(1.5 * step.seconds, 1)
            # A group that nobody asks for is waited for here.
            step.hasty = (self._random.random() < 0.25 and self._groups == GROUPS and
                          not step.behind and not step.jumps)
            step.events = self._tell(step) + self._faults(step)
            step.events.sort(key=lambda event: (event.at, event.target))
            total += step.seconds
            rung, first = step.end, False
            yield step

    def _told(self, step):
        return [s.name for s in FLEET if s.name not in (step.jumps, step.behind)]

    def _tell(self, step):
        skew = self._random.choice((0.3, 3.0, 0.8 * step.seconds))
        names = self._told(step)
        self._random.shuffle(names)
        events = []
        for number, name in enumerate(names):
            at = round(self._random.uniform(0, skew), 2)
            if step.mixed:
                at = round(self._random.uniform(0, 1) + (number % 2) * 0.75 * step.seconds, 2)
            events.append(Event(at, "policy", name, detail=RUNGS[step.end]))
            if self._random.random() < 0.15:
                # Less than a second, or after the change has settled.
                for rung in (step.begin, step.end):
                    at = round(at + self._random.uniform(0.1, self._random.choice((0.8, 5.0))), 2)
                    events.append(Event(at, "policy", name, detail=RUNGS[rung]))
        return events

    # What breaks in a step: no two things at once that concern the same process or connections, and
    # no broker dies twice in it.
    def _faults(self, step):
        count = self._random.randint(1, 1 + round(step.seconds / 2.5))
        kept, free = [], {}
        for event in sorted((self._fault(step) for _ in range(count)), key=lambda event: event.at):
            place = self._place(event)
            places = ("broker old", "broker new") if event.kind == "both-kill" else (place,)
            if any(event.at < free.get(place, 0.0) for place in places):
                continue
            kept.append(event)
            for place in places:
                free[place] = event.at + (step.seconds if "kill" in event.kind and "broker" in place
                                          else event.seconds + 1)
        return kept + self._expiry(step)

    # Where all groups are at the end of the ladder, they have left the other side.
    def _expiry(self, step):
        left = {0: "new", 3: "old"}.get(step.begin)
        if left != self._expires or step.jumps or step.hasty:
            return []
        self._expires = ""
        return [Event(0.0, "expire", left)]

    def _may_die(self, service, step):
        return not (service.group and self._ordered and step.end < step.begin and
                    self._asked.restarts == "up")

    @staticmethod
    def _place(event):
        where = "broker" if event.kind in ("broker-kill", "broker-stop", "alarm") else "net"
        if event.kind in ("handlers", "poison", "burst", "reload"):
            return f"{event.kind} {event.target}"
        if event.kind == "delete":
            return event.kind
        return (event.target if event.kind.startswith(("service", "group", "leave"))
                else f"{where} {event.target}")

    def _fault(self, step):
        uniform, pick = self._random.uniform, self._random.choice
        at = round(uniform(0, step.seconds), 2)
        kind = self._random.choices(
            ("broker-kill", "broker-stop", "service-kill", "service-stop", "group-stop", "cut", "stall",
             "slow", "swallow", "refuse", "alarm", "both-kill", "handlers", "poison", "burst", "leave",
             "reload", "delete"), (2, 2, 4, 3, 1, 3, 2, 2, 3, 2, 1, 1, 3, 2, 3, 3, 5, 2))[0]
        side = pick(("old", "new"))
        name = pick([s for s in FLEET if kind != "service-kill" or self._may_die(s, step)]).name
        stop = self._longest_stop

        def fault(target, low, high, detail=""):
            return Event(at, kind, target, round(uniform(low, high), 2), detail)

        if kind in ("handlers", "poison", "burst", "leave", "reload", "delete"):
            return self._load(kind, at, fault)
        if kind == "both-kill":
            return fault("both", 0.3, 4.0)
        if kind == "broker-kill":
            return fault(side, 0.3, 4.0)
        if kind == "broker-stop":
            return fault(side, 0.5, 8.0)
        if kind == "service-kill":
            return fault(name, 0.1, 3.0)
        if kind == "service-stop":
            return fault(name, 0.2, stop)
        if kind == "group-stop":
            return fault(pick(GROUPS), 0.2, stop)
        if kind == "cut":
            return Event(at, kind, side, detail=f"{uniform(0.2, 1.0):.2f}")
        if kind == "slow":
            return fault(side, 1.0, 6.0, f"{round(uniform(20, 250))} ms")
        if kind == "refuse":
            return fault(side, 0.5, 4.0)
        if kind == "alarm" and getattr(self._asked, side) == "rabbitmq":
            return fault(side, 1.0, 4.0)
        kind = "stall" if kind == "stall" else "swallow"
        return fault(side, 0.2, min(stop, 3.0))

    # What services do to themselves, and other programs to a topic.
    def _load(self, kind, at, fault):
        uniform, pick = self._random.uniform, self._random.choice
        member = pick([s for s in FLEET if s.group]).name
        if kind == "handlers":
            if pick((True, False)):
                return fault(member, 0.2, self._longest_stop, "block")
            return fault(member, 1.0, 6.0, f"slow {round(uniform(5, 40))}")
        if kind == "poison":
            return fault(pick(GROUPS), 2.0, 12.0)
        if kind == "burst":
            return fault(pick([s for s in FLEET if s.produces]).name, 1.0, 5.0, f"{pick((4, 8))}")
        if kind == "leave":
            return fault(member, 0.5, 6.0)
        if kind == "reload":
            return Event(at, kind, pick(FLEET).name, detail=self._change())
        if getattr(self._asked, self._scratch) in ("kafka", "rabbitmq"):
            what = "topic" if getattr(self._asked, self._scratch) == "kafka" else pick(("exchange", "queue"))
            return fault(self._scratch, 0.5, 4.0, what)
        return Event(at, "reload", pick(FLEET).name, detail=self._change())

    # A group that the config names at first is named all the time.
    def _change(self):
        pick = self._random.choice
        what = pick(("groups", "groups", "quiet", "dedup"))
        if what == "groups":
            groups = [group for group in GROUPS if group in self._groups or pick((True, False))]
            self._random.shuffle(groups)
            return "groups " + " ".join(groups)
        if what == "quiet":
            return f"quiet {self._quiet * pick((1, 1.5, 2)):g}"
        return "dedup " + pick(("off", "5m", "10m", "20m"))


def check(script):
    """Plays a script, and raises AssertionError where it does what the README does not call safe."""
    rung = {service.name: 0 for service in FLEET}
    behind, direction = "", 1
    for step in script.steps:
        assert abs(step.end - step.begin) == 1 and {step.begin, step.end} <= set(range(4))
        assert step.turns == (step.end - step.begin != direction)
        direction = step.end - step.begin
        assert step.jumps == behind
        if behind:
            # Alone a rung behind the others: in the middle of the jump it is where they are.
            assert not step.turns
            assert {at for name, at in rung.items() if name != behind} == {step.begin}
            rung[behind] = step.end
        if step.end < step.begin and (script.asked.order, script.asked.restarts) == ("key", "up"):
            subscribers = {s.name for s in FLEET if s.group}
            assert not any(e.kind == "service-kill" and e.target in subscribers for e in step.events)
        for event in (event for event in step.events if event.kind == "policy"):
            assert rung[event.target] != RUNGS.index(event.detail)
            rung[event.target] = RUNGS.index(event.detail)
            assert set(rung.values()) <= {step.begin, step.end}
        assert not step.hasty or (not step.behind and script.groups == GROUPS)
        for event in step.events:
            assert event.kind != "expire" or (step.begin, event.target) in ((0, "new"), (3, "old"))
            assert event.kind != "delete" or event.target == script.scratch
            if event.detail.startswith("groups"):
                assert set(script.groups) <= set(event.detail.split()[1:])
        behind = step.behind
        assert {at for name, at in rung.items() if name != behind} == {step.end}
        assert not behind or rung[behind] == step.begin


# What some of a hundred scripts must have.
EVERYTHING = ("policy", "broker-kill", "broker-stop", "service-kill", "service-stop", "group-stop", "cut",
              "stall", "slow", "swallow", "refuse", "alarm", "both-kill", "handlers slow", "handlers block",
              "poison", "burst", "leave", "reload groups", "reload quiet", "reload dedup", "delete topic",
              "delete exchange", "delete queue", "expire", "mixed", "hasty", "unnamed group",
              "single broker")


def main():
    """plan.py SEEDS: makes and checks the scripts of that many seeds, twice each."""
    events = collections.Counter()
    for seed in range(int(sys.argv[1])):
        order = ("key", "none")[seed % 2]
        old, new = KINDS[seed // 2 % 4], KINDS[seed // 8 % 4]
        asked = Asked(seed, 0.5 + seed % 7, old, new, order, ("up", "any")[seed // 32 % 2])
        script = Maker(asked).make()
        check(script)
        assert str(script) == str(Maker(asked).make())
        events["unnamed group"] += script.groups != GROUPS
        events["single broker"] += script.single
        for step in script.steps:
            events["mixed"] += step.mixed
            events["hasty"] += step.hasty
            for event in step.events:
                word = event.detail.split(" ")[0] if event.kind in ("reload", "handlers", "delete") else ""
                events[f"{event.kind} {word}".strip()] += 1
    missing = [kind for kind in EVERYTHING if not events[kind]]
    assert not missing or int(sys.argv[1]) < 100, missing
    print(f"{sys.argv[1]} scripts:", ", ".join(f"{n} {kind}" for kind, n in sorted(events.items())))


if __name__ == "__main__":
    main()
