"""Runs a script of plan.py against a fleet of processes on real brokers, and compares the books.

    torture.py --seed N --minutes M --old KIND --new KIND --order key|none --restarts up|any
               [--kill-every SECONDS] [--rate N] [--load N]
               --old-dir DIR --new-dir DIR --service PROGRAM --scripts FOLDER --folder FOLDER

run.sh builds the program, starts the brokers and calls this. Everything is kept in the folder: script.txt
(what was meant to happen), events.txt (what did), and of each process its config, its books and its log.
Exit status 0: the walk was completed, nothing was lost or, with order = key, reordered, nothing was handled
twice but what a fault explains, and nothing at all by a process that has dedup on. With --kill-every, nobody
has stood still for longer than STANDSTILL either, beside the time in which the broker was down.

What is not promised is not judged, and the report says so: the order of a group that the config does not
name once publishing has gone back, and what was confirmed by a topic before it was there again for a while
after its deletion.
"""

import argparse
import asyncio
import collections
import pathlib
import random
import re
import signal
import sys
import time

import admin
import plan
from books import Books, topic_of
from fleet import ADDRESS, Broker, Process, die_with_parent, take_precedence

STEP_PATIENCE = 150     # seconds for the fleet to reach a rung once nothing breaks any more
SETTLE_PATIENCE = 90    # seconds without a message handled until messages count as lost
SETTLE_LIMIT = 300
START_PATIENCE = 90
AFTERMATH = 10          # seconds after a fault in which a repeat is still put down to it
STANDSTILL = 30         # seconds after which what stands still has to go on
AGAIN = 40              # seconds after which a topic that was deleted has to be as it was
RELOAD = 5              # seconds in which a reload is seen
EXAMPLES = 10


class Stuck(Exception):
    """The fleet did not get where it was told to in time."""


class Run:
    """One run."""

    def __init__(self, script, options):
        self.script = script
        self.folder = pathlib.Path(options.folder)
        self.program = options.service
        self.ending = False
        self._began = time.monotonic()
        self._tasks = set()
        self._trouble = []
        self._events = (self.folder / "events.txt").open("w", buffering=1)
        self.brokers = {side: Broker(side, kind, folder, options.scripts)
                        for side, kind, folder in (("old", script.asked.old, options.old_dir),
                                                   ("new", script.asked.new, options.new_dir))}
        self.processes = {s.name: Process(s, script.settings[s.name], self) for s in plan.FLEET}
        self.books = Books(self.folder, plan.GROUPS_OF, self._had_dedup, self._is_forgiven)
        # (time, whether it is on), by service
        self._dedup = {name: [(0, settings.get("dedup", "off") != "off")]
                       for name, settings in script.settings.items()}
        self._unnamed = [group for group in plan.GROUPS if group not in script.groups]
        self._back = 0       # when publishing was first told to go back
        self._deleted = []   # (begin, end) of each deletion, times in nanoseconds
        self._expired = set()  # sides whose positions have expired
        self._busy = []
        # What is left open by the script (which of the connections are cut) is not to be the same ever.
        self._random = random.Random()
        self._lost = []
        self._in_vain = 0
        self._done = collections.Counter()  # what has happened, by kind
        self.faults = []  # what explains a repeat: (kind, place, begin, end), times in nanoseconds
        self._told = {}  # by service: a rung
        self._rung = 0

    # ---- what the parts need

    def note(self, text):
        line = f"{time.monotonic() - self._began:8.2f}  {text}"
        self._events.write(f"{time.monotonic_ns()} {line}\n")
        print(line, flush=True)

    def spawn(self, coroutine):
        task = asyncio.get_running_loop().create_task(coroutine)
        self._tasks.add(task)
        task.add_done_callback(self._ended)
        return task

    def _ended(self, task):
        self._tasks.discard(task)
        if not task.cancelled() and task.exception() is not None:
            self._trouble.append(task.exception())

    async def until(self, what, done, limit):
        """Waits until `done` says so. Raises Stuck after so many seconds."""
        deadline = time.monotonic() + limit
        while True:
            self.books.poll()
            if self._trouble:
                raise self._trouble[0]
            if done():
                return
            if time.monotonic() >= deadline:
                raise Stuck(f"not within {limit} s: {what}")
            await asyncio.sleep(0.1)

    # ---- where the fleet is

    def _stands(self, name, rungs):
        """Whether a process is on one of the rungs, and has seen what it was told last."""
        process = self.processes[name]
        statuses = [self.books.status.get((process.title, topic)) for topic in plan.WALKING]
        return process.runs and all(
            status is not None and status.time > process.told_at and status.stage in rungs and
            status.policy == self._told[name] for status in statuses)

    def tell(self, name, rung):
        self._told[name] = rung
        self.processes[name].tell(rung)
        if rung == plan.RUNGS[1] and self._rung == 2 and not self._back:
            self._back = time.monotonic_ns()
        self.note(f"policy {name} {rung}")

    def _describe(self):
        lines = []
        for name, process in self.processes.items():
            for topic in plan.WALKING:
                status = self.books.status.get((process.title, topic))
                lines.append(f"{process.title} {topic}: told {self._told.get(name)}, " +
                             (f"policy {status.policy}, stage {status.stage}" if status else "says nothing") +
                             ("" if process.runs else ", does not run"))
        return "\n".join(lines)

    async def _read_all(self):
        while self.books.poll():
            await asyncio.sleep(0)

    # The books are read while they are written: all at once they would keep the proxies waiting.
    async def _keep_books(self):
        while True:
            await asyncio.sleep(0 if self.books.poll() else 0.2)

    async def settle(self):
        """Waits until every group has handled what was confirmed before now."""
        await self._read_all()
        wanted = self.books.waiting()
        begin = moved = time.monotonic()
        count = len(wanted)
        while wanted:
            await asyncio.sleep(0.2)
            self.books.poll()
            wanted &= self.books.waiting()
            now = time.monotonic()
            if len(wanted) < count:
                count, moved = len(wanted), now
            if now - moved > SETTLE_PATIENCE or now - begin > SETTLE_LIMIT:
                some = " ".join(f"{g}/{m}" for g, m in sorted(wanted)[:EXAMPLES])
                raise Stuck(f"{len(wanted)} confirmed messages are not handled: {some}")

    # ---- the script

    async def play(self):
        self.spawn(self._keep_books())
        await self._start()
        end = self._began + self.script.asked.minutes * 60
        for number, step in enumerate(self.script.steps, 1):
            if time.monotonic() >= end and not step.jumps:
                break
            await self._step(number, step)
        await self._finish()

    async def _start(self):
        for broker in self.brokers.values():
            await broker.start_proxy()
        for _ in range(self.script.asked.load):
            self._busy.append(await asyncio.create_subprocess_exec(
                "sh", "-c", "while :; do :; done", preexec_fn=die_with_parent))
        # Groups begin with what is sent after they have subscribed, on some brokers: consumers first.
        for names in plan.CLASSES:
            for name in names:
                self.tell(name, plan.RUNGS[0])
                await self.processes[name].start()
            await self.until("the services to start", lambda names=names: all(
                self.books.phases[f"{name}.0"] >= ({"subscribed"} if self.processes[name].service.group
                                                  else {"producing"}) for name in names), START_PATIENCE)
        self.note("the fleet works")

    async def _step(self, number, step):
        self.note(f"step {number}: {plan.RUNGS[step.begin]} -> {plan.RUNGS[step.end]}"
                  f"{', turning round' if step.turns else ''}")
        target = plan.RUNGS[step.end]
        if step.jumps:
            self.tell(step.jumps, target)
            await self.until(f"{step.jumps} to leave {plan.RUNGS[2 * step.begin - step.end]}",
                             lambda: self._stands(step.jumps, (plan.RUNGS[step.begin], target)),
                             STEP_PATIENCE)
        begin = time.monotonic()
        faults = []
        for event in step.events:
            await asyncio.sleep(max(0.0, begin + event.at - time.monotonic()))
            if event.kind == "policy":
                self.tell(event.target, event.detail)
            else:
                faults.append(self.spawn(self._fault(event)))
        await asyncio.sleep(max(0.0, begin + step.seconds - time.monotonic()))
        if faults:
            await asyncio.wait(faults)
        if not step.hasty:
            await self._reach(target, [name for name in self.processes if name != step.behind])
        self._rung = step.end

    async def _reach(self, target, names):
        await self.until(f"everybody to reach {target}",
                         lambda: all(self._stands(name, (target,)) for name in names), STEP_PATIENCE)
        self.note(f"everybody is at {target}")

    # Everything is up again by now: the walk is completed, and what is left is handled.
    async def _finish(self):
        self.note("the end: up to new, without faults")
        while self._rung < 3:
            self._rung += 1
            for name in self.processes:
                self.tell(name, plan.RUNGS[self._rung])
            await self._reach(plan.RUNGS[self._rung], list(self.processes))
        if self.script.steps and self.script.steps[-1].hasty:
            await self._reach(plan.RUNGS[3], list(self.processes))
        if self.script.single:
            self.note('the topics say broker = "new"')
            for process in self.processes.values():
                process.stay()
            # What is sent from now on is a part of the audit.
            await asyncio.sleep(RELOAD)
        for process in self.processes.values():
            if process.service.produces:
                process.signal(signal.SIGUSR1)
        await self.until("the producers to end", lambda: all(
            self.books.phases[p.title] & {"flushed", "unflushed"}
            for p in self.processes.values() if p.service.produces), START_PATIENCE)
        try:
            await self.settle()
        except Stuck as stuck:
            self.note(f"settling: {stuck}")
        # What comes again comes now.
        await asyncio.sleep(1.0)
        self.ending = True
        ends = await asyncio.gather(*(process.end(60) for process in self.processes.values()))
        if not all(ends):
            raise Stuck("a service did not end well")
        await self._read_all()

    # A run that gave up says what is lost, and not what is merely on its way.
    async def _salvage(self):
        self._trouble = []
        for process in self.processes.values():
            process.signal(signal.SIGCONT)
            for word in ("slow", "block", "poison", "away"):
                process.mood(word, 0)
            if process.service.produces:
                process.signal(signal.SIGUSR1)
        try:
            await self.settle()
        except Stuck as stuck:
            self.note(f"settling: {stuck}")

    # ---- faults

    async def _fault(self, event):
        begin = time.monotonic_ns()
        self.note(f"{event.kind} {event.target}" + (f" {event.seconds:.2f} s" if event.seconds else "") +
                  (f" {event.detail}" if event.detail else ""))
        places = await getattr(self, "_" + event.kind.replace("-", "_"))(event)
        self.note(f"   {event.kind} {event.target} is over")
        self._done[event.kind] += 1
        for place in places:
            self.faults.append((event.kind, place, begin, time.monotonic_ns()))

    async def _broker_pair(self, event, first, second):
        broker = self.brokers[event.target]
        async with broker.process:
            await broker.command(first)
            await asyncio.sleep(event.seconds)
            await broker.command(second)
        return [event.target]

    async def _broker_kill(self, event):
        return await self._broker_pair(event, "kill", "start")

    async def _broker_stop(self, event):
        return await self._broker_pair(event, "pause", "resume")

    async def _alarm(self, event):
        return await self._broker_pair(event, "block", "unblock")

    async def _service_kill(self, event):
        process = self.processes[event.target]
        async with process.lock:
            await process.kill()
            await asyncio.sleep(event.seconds)
            await process.start()
        return [event.target]

    async def _service_stop(self, event):
        process = self.processes[event.target]
        async with process.lock:
            process.signal(signal.SIGSTOP)
            await asyncio.sleep(event.seconds)
            process.signal(signal.SIGCONT)
        return [event.target]

    async def _group_stop(self, event):
        names = plan.MEMBERS[event.target]
        await asyncio.gather(*(self._service_stop(plan.Event(event.at, event.kind, name, event.seconds))
                               for name in names))
        return names

    async def _both_kill(self, event):
        await asyncio.gather(*(self._broker_kill(plan.Event(event.at, "broker-kill", side, event.seconds))
                               for side in self.brokers))
        return list(self.brokers)

    # ---- loads

    async def _mood(self, names, word, number, seconds):
        try:
            for name in names:
                self.processes[name].mood(word, number)
            await asyncio.sleep(seconds)
        finally:
            for name in names:
                self.processes[name].mood(word, 0)
        return list(names)

    async def _handlers(self, event):
        word, _, number = event.detail.partition(" ")
        return await self._mood([event.target], word, int(number or 1), event.seconds)

    async def _poison(self, event):
        return await self._mood(plan.MEMBERS[event.target], "poison", 1, event.seconds)

    async def _leave(self, event):
        return await self._mood([event.target], "away", 1, event.seconds)

    async def _burst(self, event):
        await self._mood([event.target], "burst", int(event.detail), event.seconds)
        return []

    async def _reload(self, event):
        what, *words = event.detail.split()
        if what == "dedup":
            self._dedup[event.target].append((time.monotonic_ns(), words[0] != "off"))
        self.processes[event.target].change(event.detail)
        return []

    async def _delete(self, event):
        broker, address = self.brokers[event.target], f"{ADDRESS}-{plan.SCRATCH}"
        begin = time.monotonic_ns()
        async with broker.process:
            try:
                await asyncio.to_thread(broker.admin.delete, event.detail, address)
                await asyncio.sleep(event.seconds)
                await asyncio.to_thread(broker.admin.make, event.detail, address)
            except admin.FAILURES as error:
                self.note(f"   the {event.detail} was not deleted: {error}")
        self._deleted.append((begin, time.monotonic_ns()))
        return [event.target]

    async def _expire(self, event):
        broker = self.brokers[event.target]
        async with broker.process:
            try:
                codes = await asyncio.to_thread(broker.admin.expire, plan.GROUPS)
            except admin.FAILURES as error:
                self.note(f"   the positions were not deleted: {error}")
                return []
        self.note(f"   positions on {event.target} deleted, with these codes: {codes}")
        if not all(codes.values()):
            self._expired.add(event.target)
        return [event.target]

    # ---- faults of connections

    async def _cut(self, event):
        count = self.brokers[event.target].proxy.cut_some(float(event.detail), self._random.sample)
        self.note(f"   {count} connections")
        return [event.target]

    async def _during(self, event, effect):
        with effect:
            await asyncio.sleep(event.seconds)
        return [event.target]

    async def _stall(self, event):
        return await self._during(event, self.brokers[event.target].proxy.stalled())

    async def _slow(self, event):
        seconds = int(event.detail.split()[0]) / 1000
        return await self._during(event, self.brokers[event.target].proxy.slowed(seconds))

    async def _swallow(self, event):
        return await self._during(event, self.brokers[event.target].proxy.swallowing())

    async def _refuse(self, event):
        return await self._during(event, self.brokers[event.target].proxy.refusing())

    # ---- what came of it

    def _had_dedup(self, group, name, begin, end):
        if group in plan.GROUPS_OF[plan.SCRATCH]:
            return False
        since = None
        for at, is_on in self._dedup[name]:
            if at > end:
                break
            since = (since if since is not None else at) if is_on else None
        return since is not None and since + (RELOAD * 10**9 if since else 0) <= begin

    # What a topic had confirmed that was deleted then, or was not yet what it was.
    def _is_forgiven(self, topic, confirmed):
        return topic == plan.SCRATCH and any(confirmed <= end + AGAIN * 10**9 for _, end in self._deleted)

    # Where a group is not named, nobody asks for it when publishing goes back.
    def _is_promised(self, group, message):
        return not (group in self._unnamed and self._back and
                    self.books.handled[group][message][0].time > self._back) and not (
                        topic_of(message) == plan.SCRATCH)

    # How much of a time the old broker, or the new one, was down.
    def _down(self, begin, end):
        return sum(max(0, min(end, until) - max(begin, since)) for kind, _, since, until in self.faults
                   if kind in ("broker-kill", "both-kill"))

    def explained(self, group, message, first, again):
        """Whether something broke, between its sending and its repeat, that the repeat can come from:
        a fault of the script, or a connection that was lost on a slow machine, as the logs say."""
        if again.side in self._expired or topic_of(message) == plan.SCRATCH and self._deleted:
            return True
        places = {first.side, again.side, message.split(".")[0]} | set(plan.MEMBERS[group])
        return any(place in places and begin <= again.time and end + AFTERMATH * 10**9 >= again.sent
                   for _, place, begin, end in self.faults + self._lost)

    # Connections that were lost, and fences that waited in vain.
    def _read_logs(self):
        for path in sorted(self.folder.glob("*.log")):
            name = path.stem.split(".")[0]
            for line in path.read_text(errors="replace").splitlines():
                when, _, text = line.partition(" ")
                if not when.isdigit():
                    continue
                if text.startswith("warning:") and re.search(
                        r"reconnecting|SESSTMOUT|timed out|disconnect", text):
                    self._lost.append(("lost connection", name, int(when), int(when)))
                self._in_vain += ": lets go of what came from " in text

    def report(self, completed):
        """Prints the audit; whether it is as it has to be."""
        while self.books.poll():
            pass
        verdict = self.books.verdict()
        self._read_logs()
        unexplained = [repeat for repeat in verdict.repeats if not self.explained(*repeat)]
        crossed = sum(first.side != again.side for _, _, first, again in verdict.repeats)
        crashes = sum(process.crashes for process in self.processes.values())
        ordered = self.script.asked.order == "key"
        reordered = [one for one in verdict.reordered if self._is_promised(one[0], one[2])]
        silences = sorted(self.books.silences(self._down).items(), key=lambda one: -one[1][0])
        silent = [(who, length / 1e9, end) for who, (length, end) in silences
                  if who.split(" ")[0] != "scrap"]
        stood = self.script.asked.kill_every and silent and silent[0][1] > STANDSTILL

        def examples(what, lines):
            for line in lines[:EXAMPLES]:
                print(f"  {what}: {line}")

        examples("lost", [f"{g} {m} confirmed at {self.books.confirmed[m][0]}" for g, m in verdict.lost])
        examples("reordered", [f"{g} {k} {m} after {a}, at {self._when(g, m)} and {self._when(g, a)}"
                               for g, k, m, a in reordered])
        examples("handled, though not sent", [f"{g} {m}" for g, m in verdict.phantoms])
        examples("unexplained repeat", [" ".join(map(str, repeat)) for repeat in unexplained])
        examples("seen twice with dedup", [" ".join(map(str, repeat)) for repeat in verdict.seen_twice])
        examples("corrupt", self.books.corrupt)
        print("faults: " + (", ".join(f"{kind} {count}" for kind, count in sorted(self._done.items())) or "none"))
        print(f"messages: confirmed {verdict.sent}, unknown {verdict.unknown}, not sent {verdict.refused}; "
              f"handled {verdict.handlings}; corrupt {verdict.corrupt}; handled though not sent "
              f"{len(verdict.phantoms)}; crashes {crashes}")
        print(f"repeats: explained {len(verdict.repeats) - len(unexplained)}, unexplained {len(unexplained)}, "
              f"from the other side {crossed}, seen twice by a process with dedup {len(verdict.seen_twice)}; "
              f"unconfirmed and late {verdict.late}; connections lost {len(self._lost)}; "
              f"fences that waited in vain {self._in_vain}")
        spared = collections.Counter(group for group, *_ in set(verdict.reordered) - set(reordered))
        print("not promised, and so not judged: " + "".join(
            f"{count} out of order for {group}, " for group, count in sorted(spared.items())) +
              f"{verdict.forgiven} gone with a topic that was deleted" + "".join(
                  f"; {group} was not named when publishing went back"
                  for group in self._unnamed if self._back))
        print("longest silences, without the times in which a broker was down: " + (", ".join(
            f"{who} {seconds:.1f} s until {end}" for who, seconds, end in silent[:5]) or "none"))
        if stood:
            print(f"  stood still for longer than {STANDSTILL} s: " +
                  ", ".join(who for who, seconds, _ in silent if seconds > STANDSTILL))
        print(f"audit: sent={verdict.sent} processed={verdict.processed} lost={len(verdict.lost)} "
              f"duplicated={len(verdict.repeats)} reordered={len(reordered)}", flush=True)
        return (completed and verdict.sent > 0 and not verdict.lost and not verdict.phantoms and
                not verdict.corrupt and not crashes and not unexplained and not verdict.seen_twice and
                not (ordered and reordered) and not stood)

    def _when(self, group, message):
        first = self.books.handled[group][message][0]
        return f"{first.time} {first.side} {first.service}"

    async def close(self):
        """Leaves nothing behind: whatever is stopped goes on, and whatever runs ends."""
        self.ending = True
        for task in list(self._tasks):
            task.cancel()
        for process in self.processes.values():
            process.signal(signal.SIGKILL)
        for busy in self._busy:
            busy.kill()
        for broker in self.brokers.values():
            await broker.proxy.stop()
        self._events.close()

    async def execute(self):
        try:
            return await self._execute()
        finally:
            await self.close()

    async def _execute(self):
        completed = False
        # The steps take their time: a run that has become slow ends all the same.
        limit = self.script.asked.minutes * 60 * 3 + 600
        try:
            await asyncio.wait_for(self.play(), limit)
            completed = True
        except (Stuck, RuntimeError, asyncio.TimeoutError) as error:
            self.note(f"GAVE UP: {error or f'not done after {limit:.0f} s'}\n{self._describe()}")
            for process in self.processes.values():
                if process.runs:
                    process.dump_stack()
            await self._salvage()
            for process in self.processes.values():
                await process.kill()
        return self.report(completed)


def parse():
    parser = argparse.ArgumentParser(description="Runs a torture script; see run.sh.")
    parser.add_argument("--seed", type=int, required=True)
    parser.add_argument("--minutes", type=float, required=True)
    parser.add_argument("--order", choices=("key", "none"), default="key")
    parser.add_argument("--restarts", choices=("up", "any"), default="any")
    parser.add_argument("--kill-every", type=float, default=0)
    for name in ("rate", "load"):
        parser.add_argument(f"--{name}", type=int, default=0)
    for side in ("old", "new"):
        parser.add_argument(f"--{side}", choices=plan.KINDS, required=True)
        parser.add_argument(f"--{side}-dir", default="")
    for name in ("service", "scripts", "folder"):
        parser.add_argument(f"--{name}", default="")
    parser.add_argument("--script-only", action="store_true", help="print the script and end")
    return parser.parse_args()


async def run(script, options):
    body = asyncio.get_running_loop().create_task(Run(script, options).execute())
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, body.cancel)
    return await body


def main():
    options = parse()
    asked = plan.Asked(options.seed, options.minutes, options.old, options.new, options.order,
                       options.restarts, options.kill_every, options.rate, options.load)
    script = plan.Maker(asked).make()
    plan.check(script)
    if options.script_only:
        print(script, end="")
        return 0
    take_precedence()
    pathlib.Path(options.folder).mkdir(parents=True, exist_ok=True)
    (pathlib.Path(options.folder) / "script.txt").write_text(str(script))
    try:
        return 0 if asyncio.run(run(script, options)) else 1
    except asyncio.CancelledError:
        return 130


if __name__ == "__main__":
    sys.exit(main())
