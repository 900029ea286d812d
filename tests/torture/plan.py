"""The script of a torture run: what happens to the fleet and when, made from the seed alone.

A step takes the whole fleet one rung further, up or down. Within a step the services are told at different
times, some change their minds twice, one of them may stay behind and jump in the next step, and things
break meanwhile. All of it is what the README calls safe, which `check` proves of a script by playing it:

- at any time all services stand on two neighbouring rungs, or are on the way from one to the other;
- where `restarts` says "up", what subscribes is not killed while a walk with an order goes down.
"""

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

    def command(self):
        return (f"tests/torture/run.sh --seed {self.seed} --minutes {self.minutes:g} --old {self.old} "
                f"--new {self.new} --order {self.order} --restarts {self.restarts}")


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
        lines = [text + f"; {self.seconds:.1f} s"]
        return "\n".join(lines + [f"  {event}" for event in self.events])


@dataclasses.dataclass
class Script:
    """A run, before it begins."""
    asked: Asked
    quiet: float      # seconds
    failover: bool    # sends may go to the other side
    settings: dict    # by service: what its config file says beside the policy
    steps: list

    def __str__(self):
        lines = [f"# {self.asked.command()}",
                 f"# quiet = {self.quiet:g} s, failover = {str(self.failover).lower()}"]
        for name, settings in self.settings.items():
            lines.append(f"# {name}: " + ", ".join(f"{k} {v}" for k, v in settings.items()))
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
        self._rate = 25 if self._waits or "activemq" in kinds else 70

    def make(self):
        settings = {service.name: self._settings(service) for service in FLEET}
        return Script(self._asked, self._quiet, self._failover(), settings, list(self._steps()))

    def _settings(self, service):
        pick = self._random.choice
        settings = {"send_timeout": pick(("6s", "12s", "30s", "30s")),
                    # Full after some hundred messages, or never.
                    "max_in_flight_bytes": pick((100_000, 400_000, 64 << 20)),
                    "prefetch": pick((256, 1000) if self._waits else (8, 64, 256)),
                    "concurrency": pick((1, 4))}
        if service.group:
            settings["dedup"] = pick(("off", "10m"))
        if service.produces:
            settings["rate"] = self._rate
        return settings

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
        for name in names:
            at = round(self._random.uniform(0, skew), 2)
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
            if event.at < free.get(place, 0.0):
                continue
            kept.append(event)
            free[place] = event.at + (step.seconds if event.kind == "broker-kill" else event.seconds + 1)
        return kept

    def _may_die(self, service, step):
        return not (service.group and self._ordered and step.end < step.begin and
                    self._asked.restarts == "up")

    @staticmethod
    def _place(event):
        where = "broker" if event.kind in ("broker-kill", "broker-stop", "alarm") else "net"
        return event.target if event.kind.startswith(("service", "group")) else f"{where} {event.target}"

    def _fault(self, step):
        uniform, pick = self._random.uniform, self._random.choice
        at = round(uniform(0, step.seconds), 2)
        kind = self._random.choices(
            ("broker-kill", "broker-stop", "service-kill", "service-stop", "group-stop", "cut", "stall",
             "slow", "swallow", "refuse", "alarm"), (2, 2, 4, 3, 1, 3, 2, 2, 3, 2, 1))[0]
        side = pick(("old", "new"))
        name = pick([s for s in FLEET if kind != "service-kill" or self._may_die(s, step)]).name
        stop = self._longest_stop

        def fault(target, low, high, detail=""):
            return Event(at, kind, target, round(uniform(low, high), 2), detail)

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
        behind = step.behind
        assert {at for name, at in rung.items() if name != behind} == {step.end}
        assert not behind or rung[behind] == step.begin


def main():
    """plan.py SEEDS: makes and checks the scripts of that many seeds, twice each."""
    events = {}
    for seed in range(int(sys.argv[1])):
        order = ("key", "none")[seed % 2]
        old, new = KINDS[seed // 2 % 4], KINDS[seed // 8 % 4]
        asked = Asked(seed, 0.5 + seed % 7, old, new, order, ("up", "any")[seed // 32 % 2])
        script = Maker(asked).make()
        check(script)
        assert str(script) == str(Maker(asked).make())
        for step in script.steps:
            for event in step.events:
                events[event.kind] = events.get(event.kind, 0) + 1
    print(f"{sys.argv[1]} scripts:", ", ".join(f"{n} {kind}" for kind, n in sorted(events.items())))


if __name__ == "__main__":
    main()
