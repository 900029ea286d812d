"""The processes of a run: the services and the brokers. Only what was started here is signalled."""

import asyncio
import contextlib
import ctypes
import pathlib
import re
import signal
import subprocess
import time

import plan
from proxy import Proxy

ADDRESS = "torture"
_DEATH_SIGNAL = 1  # PR_SET_PDEATHSIG of prctl(2)


def _die_with_parent():
    ctypes.CDLL(None).prctl(_DEATH_SIGNAL, signal.SIGKILL)


class Broker:
    """A broker that tests/brokers has started, and the proxy before it."""

    def __init__(self, side, kind, folder, scripts):
        self.side, self.kind, self.folder = side, kind, pathlib.Path(folder)
        self._script = str(pathlib.Path(scripts) / f"{kind}.sh")
        self._url = (self.folder / "url").read_text().strip()
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
            stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
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
        """Replaces the config file in one go, as an editor does."""
        settings, run = self._settings, self._run
        lines = ["[client]", f'send_timeout = "{settings["send_timeout"]}"', 'subscribe_timeout = "5s"',
                 f'max_in_flight_bytes = {settings["max_in_flight_bytes"]}',
                 f'prefetch = {settings["prefetch"]}']
        for side, broker in run.brokers.items():
            option = '"session.timeout.ms" = 8000' if broker.kind == "kafka" else 'heartbeat = "4s"'
            lines += [f"[brokers.{side}]", f'url = "{broker.url}"', f"options = {{ {option} }}"]
        lines += ["[topics.orders]", 'old = "old"', 'new = "new"', f'policy = "{rung}"',
                  "groups = [" + ", ".join(f'"{group}"' for group in plan.GROUPS) + "]",
                  f'address = {{ old = "{ADDRESS}", new = "{ADDRESS}" }}',
                  f'order = "{run.script.asked.order}"', f'quiet = "{round(run.script.quiet * 1000)}ms"',
                  f"failover = {str(run.script.failover).lower()}"]
        if settings.get("dedup", "off") != "off":
            lines.append(f'dedup = "{settings["dedup"]}"')
        draft = self._config.with_suffix(".draft")
        draft.write_text("\n".join(lines) + "\n")
        self.told_at = time.monotonic_ns()
        draft.rename(self._config)

    async def start(self):
        self._incarnation += 1
        books = self._run.folder / self.title
        command = [self._run.program, "--name", self.title, "--config", str(self._config),
                   "--books", str(books), "--concurrency", str(self._settings["concurrency"])]
        if self.service.group:
            command += ["--consume", self.service.group]
        if self.service.produces:
            command += ["--produce", str(self._settings["rate"])]
        with open(f"{books}.log", "ab") as log:
            # pylint: disable-next=subprocess-popen-preexec-fn
            self._process = await asyncio.create_subprocess_exec(
                *command, stdin=subprocess.DEVNULL, stdout=log, stderr=log,
                preexec_fn=_die_with_parent)
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
