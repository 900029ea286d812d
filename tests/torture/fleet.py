"""The processes of a run: the services and the brokers. Only what was started here is signalled."""

import asyncio
import contextlib
import ctypes
import os
import pathlib
import re
import signal
import subprocess
import time

import admin
import plan
from proxy import Proxy

ADDRESS = "torture"
_PRIORITY = os.getpriority(os.PRIO_PROCESS, 0)
_DEATH_SIGNAL = 1  # PR_SET_PDEATHSIG of prctl(2)


def take_precedence():
    """Has the proxies come first where they may: what they add to a loaded machine is not to be measured."""
    with contextlib.suppress(OSError):
        os.setpriority(os.PRIO_PROCESS, 0, -10)


def be_ordinary():
    """For a child, before its program begins."""
    with contextlib.suppress(OSError):
        os.setpriority(os.PRIO_PROCESS, 0, _PRIORITY)


def die_with_parent():
    """The same for one that ends with this process."""
    be_ordinary()
    ctypes.CDLL(None).prctl(_DEATH_SIGNAL, signal.SIGKILL)


class Broker:
    """A broker that tests/brokers has started, and the proxy before it."""

    def __init__(self, side, kind, folder, scripts):
        self.side, self.kind, self.folder = side, kind, pathlib.Path(folder)
        self._script = str(pathlib.Path(scripts) / f"{kind}.sh")
        self._url = (self.folder / "url").read_text().strip()
        self.admin = admin.of(kind, self.folder, self._url)
        self.proxy = Proxy(int(self._port(self._url)))
        self.process = asyncio.Lock()  # one thing at a time happens to it
        self.url = ""

    @staticmethod
    def _port(url):
        return re.search(r":(\d+)/?$", url).group(1)

    async def start_proxy(self):
        # A Kafka tells its clients where it is to be found: at the port of the proxy.
        advertised = self.folder / "url-advertised"
        await self.proxy.start(int(self._port(advertised.read_text().strip())) if advertised.exists() else 0)
        self.url = re.sub(r":\d+(/?)$", rf":{self.proxy.port}\1", self._url)

    async def command(self, word, limit=300):
        """What the broker's script does: start, kill, pause, resume, block, unblock."""
        process = await asyncio.create_subprocess_exec(
            self._script, word, str(self.folder), stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, preexec_fn=be_ordinary)
        try:
            _, error = await asyncio.wait_for(process.communicate(), limit)
        except asyncio.TimeoutError:
            process.kill()
            raise RuntimeError(f"{self.kind}.sh {word} took longer than {limit} s") from None
        if process.returncode != 0:
            raise RuntimeError(f"{self.kind}.sh {word}: {error.decode().strip()}")


class Process:
    """One service, over all its incarnations."""

    def __init__(self, service, settings, run):
        self.service, self.name = service, service.name
        self._settings, self._run = settings, run
        self._config = run.folder / f"{service.name}.toml"
        self._mood = run.folder / f"{service.name}.mood"
        self._moods = {}
        self._rung = plan.RUNGS[0]
        self._groups, self._quiet = run.script.groups, run.script.quiet
        self._single = False
        self._incarnation = -1
        self._process = None
        self._expected = False  # its end
        self.lock = asyncio.Lock()
        self.crashes = 0
        self.told_at = 0

    @property
    def title(self):
        """The process that runs now, as the books call it."""
        return f"{self.name}.{self._incarnation}"

    @property
    def runs(self):
        return self._process is not None and self._process.returncode is None

    def tell(self, rung):
        """Has the config say another rung."""
        self._rung = rung
        self._write()

    def change(self, detail):
        """Has the config say something else of the orders: "groups A B", "quiet SECONDS", "dedup TIME"."""
        what, *words = detail.split()
        if what == "groups":
            self._groups = words
        elif what == "quiet":
            self._quiet = float(words[0])
        else:
            self._settings = self._settings | {"dedup": words[0]}
        self._write()

    def stay(self):
        """Has the config say that the topics have one broker, the new one."""
        self._single = True
        self._write()

    def mood(self, word, number):
        """Has the service behave like that; 0: no longer."""
        self._moods[word] = number
        draft = self._mood.with_suffix(".mood-draft")
        draft.write_text("".join(f"{word} {number}\n" for word, number in self._moods.items() if number))
        draft.rename(self._mood)

    def _topic(self, topic, groups):
        run, dedup = self._run, self._settings.get("dedup", "off")
        lines = [f"[topics.{topic}]", f'order = "{run.script.asked.order}"',
                 "groups = [" + ", ".join(f'"{group}"' for group in groups) + "]"]
        if dedup != "off":
            lines.append(f'dedup = "{dedup}"')
        if self._single:
            return lines + ['broker = "new"', f'address = "{ADDRESS}-{topic}"']
        return lines + ['old = "old"', 'new = "new"', f'policy = "{self._rung}"',
                        f'address = {{ old = "{ADDRESS}-{topic}", new = "{ADDRESS}-{topic}" }}',
                        f'quiet = "{round(self._quiet * 1000)}ms"',
                        f"failover = {str(run.script.failover).lower()}"]

    # Replaces the file in one go, as an editor does.
    def _write(self):
        settings, run = self._settings, self._run
        lines = ["[client]", f'send_timeout = "{settings["send_timeout"]}"', 'subscribe_timeout = "5s"',
                 f'max_in_flight_bytes = {settings["max_in_flight_bytes"]}',
                 f'prefetch = {settings["prefetch"]}']
        for side, broker in run.brokers.items():
            option = '"session.timeout.ms" = 8000' if broker.kind == "kafka" else 'heartbeat = "4s"'
            lines += [f"[brokers.{side}]", f'url = "{broker.url}"', f"options = {{ {option} }}"]
        lines += [f"[topics.{plan.SCRATCH}]", f'broker = "{run.script.scratch}"',
                  f'address = "{ADDRESS}-{plan.SCRATCH}"', 'groups = ["scrap"]']
        lines += self._topic(plan.RECEIPTS, plan.GROUPS_OF[plan.RECEIPTS])
        lines += self._topic(plan.ORDERS, self._groups)
        draft = self._config.with_suffix(".draft")
        draft.write_text("\n".join(lines) + "\n")
        self.told_at = time.monotonic_ns()
        draft.rename(self._config)

    async def start(self):
        self._incarnation += 1
        books = self._run.folder / self.title
        command = [self._run.program, "--name", self.title, "--config", str(self._config),
                   "--books", str(books), "--concurrency", str(self._settings["concurrency"]),
                   "--mood", str(self._mood)]
        for topic in plan.WALKING:
            command += ["--topic", topic]
        if self.service.group:
            command += ["--consume", f"{plan.ORDERS}:{self.service.group}"]
        if self.name in plan.BESIDE:
            command += ["--consume", ":".join(plan.BESIDE[self.name])]
        if self._settings.get("sends"):
            command += ["--sends", self._settings["sends"]]
        if self.service.produces:
            command += ["--produce", f"{plan.ORDERS}:{self._settings['rate']}"]
            for topic, rate in plan.RATES_BESIDE.get(self.name, ()):
                command += ["--produce", f"{topic}:{rate}"]
        with open(f"{books}.log", "ab") as log:
            # pylint: disable-next=subprocess-popen-preexec-fn
            self._process = await asyncio.create_subprocess_exec(
                *command, stdin=subprocess.DEVNULL, stdout=log, stderr=log,
                preexec_fn=die_with_parent)
        self._expected = False
        self._run.spawn(self._mind(self._process))

    # A service that ends by itself has a defect; it is started again all the same.
    async def _mind(self, process):
        await process.wait()
        if process is not self._process or self._expected:
            return
        self.crashes += 1
        self._run.note(f"{self.title} ended by itself with status {process.returncode}")
        await asyncio.sleep(1.0)
        if self.crashes < 20 and not self._run.ending:
            await self.start()

    def signal(self, number):
        if self.runs:
            self._process.send_signal(number)

    async def kill(self):
        """SIGKILL."""
        self._expected = True
        if self.runs:
            self._process.kill()
            await self._process.wait()

    async def end(self, limit):
        """SIGTERM; says whether it ended well within the limit."""
        self._expected = True
        if not self.runs:
            return False
        self._process.terminate()
        try:
            return await asyncio.wait_for(self._process.wait(), limit) == 0
        except asyncio.TimeoutError:
            # Where it hangs is what a person wants to know.
            self._run.note(f"{self.title} does not end")
            self.dump_stack()
            await self.kill()
            return False

    def dump_stack(self):
        """The stacks of all its threads into its folder, where there is a debugger."""
        with contextlib.suppress(OSError, subprocess.SubprocessError):
            out = subprocess.run(["gdb", "-p", str(self._process.pid), "-batch", "-ex", "thread apply all bt"],
                                 capture_output=True, timeout=30, check=False)
            (self._run.folder / f"{self.title}.stacks").write_bytes(out.stdout)
