"""A reading of a whole board; sensors that are missing, broken, slow to answer or gone; a worker that is replaced."""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import msgspec
import pytest

from edged.core.reading import Network, ProcessMemory, Reading, Stall, Throttle
from edged.device import probe_runner, probes
from edged.device.sampler import Sampler
from tests.device.boards import CPUFREQ, GARBAGE, JETSON, KERNEL, PC, PI, STAT, Tree

PAGE = os.sysconf("SC_PAGE_SIZE")
# Long enough for a busy machine to finish files in memory, short enough to wait for in a test.
DEADLINE_S = 0.3


class Clock:
    """A clock that tests set."""

    def __init__(self, now: float = 1000.0) -> None:
        self.now = now

    def __call__(self) -> float:
        return self.now


def sampler(root: Path, uptime: Clock | None = None, **kwargs: float) -> Sampler:
    """A sampler of the board below `root`, whose agent has the process id 100."""
    return Sampler(
        root, root=root, agent_pid=100, wall=Clock(1_800_000_000.0), uptime=uptime or Clock(), deadline_s=5.0, **kwargs
    )


@contextmanager
def hanging(path: Path) -> Iterator[None]:
    """Turns a file into one whose reader blocks, as a sysfs file does while its driver waits for a dead bus."""
    content = path.read_bytes()
    path.unlink()
    os.mkfifo(path)
    try:
        yield
    finally:
        descriptor = os.open(path, os.O_RDWR | os.O_NONBLOCK)  # lets a blocked reader go, to an empty file
        path.unlink()
        path.write_bytes(content)
        os.close(descriptor)


def test_a_raspberry_pi(tree: Tree) -> None:
    """Everything that this board reports."""
    root = tree(PI)
    subject = sampler(root)
    first = subject.read(worker_pid=200)
    tree({"proc/stat": STAT.replace("cpu  100 0 50 800 50", "cpu  175 0 75 1100 50")})
    second = subject.read(worker_pid=200)
    assert first.cpu.percent is None
    assert 25.0 == second.cpu.percent
    assert 2400 == second.cpu.clock_mhz
    assert (0.49, 0.31, 0.13) == second.cpu.load
    assert 2 == second.cpu.count
    assert 52.1 == second.temperature_c
    assert {"cpu-thermal": 52.1} == second.zones
    assert second.throttled is True
    assert Throttle(("under_voltage", "throttled"), ("under_voltage", "throttled")) == second.throttle
    assert second.pressure is not None
    assert Stall(1.5, 0.5) == second.pressure.memory
    assert Network("eth0", 11194221, 204468) == second.network
    assert ProcessMemory(11008 * PAGE, 30000 * 1024) == second.agent
    assert ProcessMemory(250000 * PAGE, 30000 * 1024) == second.worker
    assert second.gpu is None
    assert ((), ()) == (second.broken, second.stuck)
    assert (1_800_000_000.0, 1000.0) == (second.at, second.uptime_s)


def test_a_jetson(tree: Tree) -> None:
    """GPU load, the hottest zone that matters, throttling by the kernel's cooling device."""
    root = tree(JETSON)
    subject = sampler(root)
    assert subject.read().throttled is False
    tree({"sys/class/thermal/cooling_device0/cur_state": "1\n"})
    reading = subject.read()
    assert reading.gpu is not None
    assert 43.7 == reading.gpu.load_percent
    assert 50.7 == reading.temperature_c
    assert reading.throttled is True
    tree({"sys/class/thermal/cooling_device0/cur_state": "0\n"})
    assert Throttle((), ("frequency_capped", "throttled")) == subject.read().throttle


def test_a_pc_whose_throttle_counters_grow(tree: Tree) -> None:
    """A counter that grew between two readings says now; what it had before only says since boot."""
    subject = sampler(tree(PC))
    assert Throttle((), ("throttled",)) == subject.read().throttle
    tree({"sys/devices/system/cpu/cpu1/thermal_throttle/core_throttle_count": "3\n"})
    reading = subject.read()
    assert Throttle(("throttled",), ("throttled",)) == reading.throttle
    assert reading.throttled is True
    assert subject.read().throttled is False
    assert 61.0 == reading.temperature_c


def test_a_board_that_tells_nothing(tree: Tree) -> None:
    """Without /proc and /sys there is still a reading, and nothing is called broken."""
    reading = sampler(tree({})).read(worker_pid=200)
    assert (None, None, None, None) == (reading.memory, reading.temperature_c, reading.throttled, reading.agent)
    assert ((), ()) == (reading.broken, reading.stuck)


def test_the_firmwares_memory_is_kept(tree: Tree) -> None:
    """The kernel's voltage driver clears the firmware's sticky bits: what was seen once stays since boot."""
    subject = sampler(tree(PI))
    subject.read()
    tree({"sys/devices/platform/soc/soc:firmware/get_throttled": "0\n"})
    reading = subject.read()
    assert Throttle((), ("under_voltage", "throttled")) == reading.throttle
    assert reading.throttled is False


def test_only_the_voltage_alarm(tree: Tree) -> None:
    """A board that knows its voltage but not its throttling says so."""
    root = tree(PI)
    (root / "sys/devices/platform/soc/soc:firmware/get_throttled").unlink()
    tree({"sys/class/hwmon/hwmon2/in0_lcrit_alarm": "1\n"})
    reading = sampler(root).read()
    assert reading.throttled is None
    assert Throttle(("under_voltage",), ("under_voltage",)) == reading.throttle


SENSORS = {
    "cpu": "proc/stat",
    "load": "proc/loadavg",
    "memory": "proc/meminfo",
    "pressure:io": "proc/pressure/io",
    "cpu_clock": f"{CPUFREQ}/policy0/scaling_cur_freq",
    "zone:cpu-thermal": "sys/class/thermal/thermal_zone0/temp",
    "throttle:voltage": "sys/class/hwmon/hwmon2/in0_lcrit_alarm",
    "agent_rss": "proc/100/statm",
}


@pytest.mark.parametrize("content", GARBAGE)
@pytest.mark.parametrize("name", SENSORS)
def test_garbage_is_named_and_the_rest_goes_on(tree: Tree, name: str, content: bytes) -> None:
    """Exactly the sensor that gives nonsense is called broken; the next good reading has it back."""
    subject = sampler(tree({**PI, SENSORS[name]: content}))
    reading = subject.read()
    assert (name,) == reading.broken
    assert reading.disk is not None
    assert (reading.memory is None) == (name == "memory")
    tree(PI)
    assert () == subject.read().broken


def test_many_broken_sensors_stay_a_short_list(tree: Tree) -> None:
    """The list of names is bounded."""
    assert 8 == len(sampler(tree(dict.fromkeys(PI, b"\xff\xff"))).read().broken)


def test_a_sensor_that_hangs_does_not_stop_the_others(tree: Tree) -> None:
    """The probes behind it are still read; it is listed until it answers; readings do not pile up threads."""
    root = tree(PI)
    subject = Sampler(root, root=root, agent_pid=100, deadline_s=DEADLINE_S)
    assert () == subject.read().stuck
    temp = root / "sys/class/thermal/thermal_zone0/temp"
    before = threading.active_count()
    with hanging(temp):
        for _ in range(5):
            reading = subject.read()
            assert ("zone:cpu-thermal",) == reading.stuck
            assert reading.temperature_c is None
            assert reading.disk is not None
            assert reading.agent is not None
            assert threading.active_count() <= before + 1
    assert _until(lambda: subject.read().stuck == ())
    assert 52.1 == subject.read().temperature_c
    assert threading.active_count() <= before


def test_all_sensors_hang(tree: Tree) -> None:
    """Even then there is a reading, one thread a probe at most, and the board comes back."""
    root = tree({name: content for name, content in PI.items() if "/pressure/" in name or "/type" in name})
    subject = Sampler(root, root=root, agent_pid=100, deadline_s=DEADLINE_S)
    subject.read()
    before = threading.active_count()
    with hanging(root / "proc/pressure/cpu"), hanging(root / "proc/pressure/io"):
        for _ in range(3):
            assert ("pressure:cpu", "pressure:io") == subject.read().stuck
        assert threading.active_count() <= before + 2
    assert _until(lambda: subject.read().stuck == ())


def test_the_late_result_of_a_probe_that_hung_is_dropped() -> None:
    """What a probe returns after its thread was abandoned belongs to no reading."""
    gate, runs = threading.Event(), probe_runner.ProbeRunner(deadline_s=0.02)

    def slow() -> str:
        gate.wait()
        return "late"

    threads: list[str] = []
    jobs: list[probe_runner.Job] = [
        ("first", lambda: 1),
        ("slow", slow),
        ("last", lambda: threads.append(str(threading.get_ident()))),
    ]
    assert {"first", "last"} == set(runs.run(jobs))
    assert {"first", "last"} == set(runs.run(jobs))
    gate.set()
    ended = _until(lambda: "slow" in runs.run([("slow", lambda: 2)]))
    assert ended
    assert 2 == len(threads)  # the abandoned thread did not run what the next one had run


def test_a_probe_that_raises_anything_is_broken() -> None:
    """A bug in one probe costs that probe alone."""

    def bug() -> object:
        raise ZeroDivisionError("division by zero")

    found = probe_runner.ProbeRunner(deadline_s=5.0).run([("bug", bug), ("good", lambda: 1)])
    assert probe_runner.Outcome("broken", why="ZeroDivisionError: division by zero") == found["bug"]
    assert 1 == found["good"].value


@pytest.mark.parametrize(
    ("error", "verdict"),
    [
        (BlockingIOError(11, "switched off"), "silent"),
        (OSError(61, "no data"), "silent"),
        (FileNotFoundError(2, "gone"), "gone"),
        (PermissionError(13, "not ours"), "gone"),
        (OSError(5, "input/output error"), "broken"),
        (OSError("no number"), "broken"),
    ],
)
def test_what_a_sensor_may_raise(error: OSError, verdict: str) -> None:
    """A part that is switched off or pulled out is no fault; an I/O error is one."""

    def probe() -> object:
        raise error

    assert verdict == probe_runner.attempt(probe).verdict


def test_no_thread_to_be_had(monkeypatch: pytest.MonkeyPatch) -> None:
    """At the limit of threads a reading is empty, not an exception."""

    def refuse(_thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", refuse)
    assert {} == probe_runner.ProbeRunner(deadline_s=5.0).run([("any", lambda: 1)])


def test_a_missing_source_costs_nothing(tree: Tree) -> None:
    """What is not there has no probe; looking reads no temperature, so that it cannot hang."""
    root = tree(PI)
    names = [probe.name for probe in probes.discover(tree({}) / "empty", root)]
    assert ["clock_synced", "disk"] == names
    temp = root / "sys/class/thermal/thermal_zone0/temp"
    with hanging(temp):
        assert "zone:cpu-thermal" in [probe.name for probe in probes.discover(root, root)]


def test_a_source_that_goes_and_comes_is_looked_for_rarely(tree: Tree) -> None:
    """An unplugged sensor is dropped without a word, and found again at the next look."""
    root, uptime = tree(PI), Clock()
    subject = sampler(root, uptime, rediscover_every_s=600.0)
    temp = root / "sys/class/thermal/thermal_zone0/temp"
    assert 52.1 == subject.read().temperature_c
    temp.unlink()
    assert () == subject.read().broken
    temp.write_text("40000\n")
    uptime.now += 599
    assert subject.read().temperature_c is None
    uptime.now += 1
    assert 40.0 == subject.read().temperature_c


def test_pss_is_read_rarely_and_anew_for_another_worker(tree: Tree) -> None:
    """PSS is kept for a minute; a new process has its own at once; a dead one has none."""
    root, uptime = tree(KERNEL), Clock()
    subject = sampler(root, uptime, pss_every_s=60.0)
    assert ProcessMemory(250000 * PAGE, 30000 * 1024) == subject.read(worker_pid=200).worker
    tree({"proc/200/smaps_rollup": "Pss: 31000 kB\n", "proc/200/statm": "1 2 3\n"})
    uptime.now += 59
    assert ProcessMemory(2 * PAGE, 30000 * 1024) == subject.read(worker_pid=200).worker
    uptime.now += 1
    assert ProcessMemory(2 * PAGE, 31000 * 1024) == subject.read(worker_pid=200).worker
    tree({"proc/201/smaps_rollup": "Pss: 5 kB\n", "proc/201/statm": "1 1 1\n"})
    assert ProcessMemory(PAGE, 5 * 1024) == subject.read(worker_pid=201).worker
    assert subject.read(worker_pid=999).worker is None
    assert subject.read().worker is None


def test_the_real_machine_gives_a_small_reading(tmp_path: Path) -> None:
    """Whatever machine runs this: no sensor is called broken, and the JSON is far below 2 KB."""
    subject = Sampler(tmp_path, deadline_s=5.0)
    subject.read()
    reading = subject.read(os.getpid())
    assert ((), ()) == (reading.broken, reading.stuck)
    assert reading.memory is not None
    assert reading.worker is not None
    assert len(msgspec.json.encode(reading)) < 1600


def test_the_largest_reading_stays_small(tree: Tree) -> None:
    """Every sensor, the longest names, the largest figures: below 1.6 KB, so 2 KB with speed and queue."""
    root = tree(
        {
            **PI,
            "sys/devices/platform/gpu.0/load": "1000",
            "sys/devices/platform/soc/soc:firmware/get_throttled": "f000f",
            **{f"sys/class/thermal/thermal_zone{n}/type": f"cpu-{n}-" + "x" * 40 for n in range(8)},
            **{f"sys/class/thermal/thermal_zone{n}/temp": "179999" for n in range(8)},
            **{f"proc/pressure/{name}": "garbage" for name in ("memory", "io")},
            "proc/loadavg": "garbage",
        }
    )
    encoded = msgspec.json.encode(sampler(root).read(worker_pid=200))
    assert len(encoded) < 1600
    assert msgspec.json.decode(encoded, type=Reading).zones == json.loads(encoded)["zones"]


def _until(condition: object) -> bool:
    """Waits, without sleeping for a fixed time, until a thread let go has ended."""
    pause = threading.Event()
    for _ in range(500):
        if callable(condition) and condition():
            return True
        pause.wait(0.01)
    return False
