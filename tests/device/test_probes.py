"""Each probe is a plain function: what it makes of the kernel's documented layout, and of nonsense."""

from __future__ import annotations

import os
import struct
from pathlib import Path

import pytest

from edged.core.reading import Disk, Gpu, Memory, Network, Stall
from edged.device import clock, cpu, disk, files, gpu, memory, network, power, processes, thermal
from edged.device.files import GarbageError
from tests.device.boards import GARBAGE, JETSON, KERNEL, NET_DEV, PC, PI, PSI, Tree


def test_cpu_times_come_from_the_first_line(tree: Tree) -> None:
    """Idle and iowait are not work; the cores are counted."""
    assert cpu.CpuTimes(busy=150, total=1000, count=2) == cpu.cpu_times(tree(KERNEL))


def test_cpu_percent_is_of_the_time_between() -> None:
    """A quarter of the ticks were work; no time, or a clock that ran back, gives no figure or a bounded one."""
    before = cpu.CpuTimes(busy=100, total=1000, count=4)
    assert 25.0 == cpu.percent_used(before, cpu.CpuTimes(busy=200, total=1400, count=4))
    assert cpu.percent_used(before, before) is None
    assert 0.0 == cpu.percent_used(before, cpu.CpuTimes(busy=90, total=1400, count=4))


def test_cpu_clock_is_the_fastest_policy(tree: Tree) -> None:
    """Documentation/admin-guide/pm/cpufreq.rst: scaling_cur_freq is in kHz."""
    assert cpu.CpuClock(1510) == cpu.clock(cpu.find_clocks(tree(JETSON)))


def test_cpu_clock_from_cpuinfo(tree: Tree) -> None:
    """x86 without cpufreq has `cpu MHz`."""
    assert cpu.CpuClock(800) == cpu.clock_from_cpuinfo(tree(PC))


def test_load(tree: Tree) -> None:
    """proc(5): the first three figures of loadavg."""
    assert (0.49, 0.31, 0.13) == cpu.load(tree(KERNEL)).averages


def test_memory(tree: Tree) -> None:
    """proc(5): kB are 1,024 bytes."""
    expected = Memory(
        total_bytes=8_000_000 * 1024,
        available_bytes=6_000_000 * 1024,
        used_bytes=2_000_000 * 1024,
        swap_total_bytes=200_000 * 1024,
        swap_used_bytes=50_000 * 1024,
    )
    assert expected == memory.memory(tree(KERNEL))


def test_memory_of_an_old_kernel(tree: Tree) -> None:
    """Without MemAvailable, what is free or cached is used; without swap lines there is none."""
    root = tree({"proc/meminfo": "MemTotal: 1000 kB\nMemFree: 100 kB\nBuffers: 20 kB\nCached: 300 kB\n"})
    assert 420 * 1024 == memory.memory(root).available_bytes
    assert 0 == memory.memory(root).swap_total_bytes


@pytest.mark.parametrize(
    ("text", "expected"),
    [(PSI, Stall(1.5, 0.5)), ("some avg10=99.00 avg60=0.00 avg300=0.00 total=1\n", Stall(99.0, None))],
)
def test_stall(tree: Tree, text: str, expected: Stall) -> None:
    """Documentation/accounting/psi.rst, with and without the line `full`."""
    assert expected == memory.stall(tree({"proc/pressure/memory": text}), "memory").stall


def test_zones_of_a_jetson(tree: Tree) -> None:
    """Sensors on what computes come first; the PMIC's constant 100 °C is left out."""
    zones = thermal.find_zones(tree(JETSON))
    assert ["cpu-thermal", "gpu-thermal", "fan-est"] == [zone.name for zone in zones]
    assert thermal.ZoneTemperature("gpu-thermal", 50.7) == thermal.zone_temperature(zones[1])


def test_zones_of_a_pc(tree: Tree) -> None:
    """Documentation/hwmon/sysfs-interface.rst: chips of the CPU only, with their labels."""
    names = [zone.name for zone in thermal.find_zones(tree(PC))]
    assert ["coretemp-Package_id_0", "coretemp", "acpitz"] == names


def test_zones_are_bounded_and_their_names_unique(tree: Tree) -> None:
    """Forty zones of one hostile name become eight with short, distinct, harmless names."""
    root = tree({f"sys/class/thermal/thermal_zone{n}/type": 'a"b\n\x1b[31m' + "x" * 60 for n in range(40)})
    names = [zone.name for zone in thermal.find_zones(root)]
    assert thermal.MAX_ZONES == len(set(names))
    assert all(len(name) <= files.NAME_LENGTH and name.isascii() and name.isprintable() for name in names)


def test_zones_keep_the_kernels_order(tree: Tree) -> None:
    """Zone 10 comes after zone 2."""
    root = tree({f"sys/class/thermal/thermal_zone{n}/type": f"cpu{n}-thermal" for n in (10, 2, 0)})
    assert ["cpu0-thermal", "cpu2-thermal", "cpu10-thermal"] == [zone.name for zone in thermal.find_zones(root)]


@pytest.mark.parametrize(
    ("zones", "expected"),
    [({"cpu-thermal": 50.0, "acpitz": 90.0}, 50.0), ({"acpitz": 27.8, "wifi": 40.0}, 40.0), ({}, None)],
)
def test_hottest(zones: dict[str, float], expected: float | None) -> None:
    """Sensors on what computes count before all others."""
    assert expected == thermal.hottest(zones)


def test_firmware_bits(tree: Tree) -> None:
    """Raspberry Pi documentation: bits 0 to 3 now, 16 to 19 since boot."""
    sample = power.firmware_file(str(power.find_firmware_file(tree(PI))))
    assert {"under_voltage", "throttled"} == sample.now
    assert {"under_voltage", "throttled"} == sample.since_boot
    assert {"frequency_capped", "soft_temp_limit"} == power.decode(0xA0000).since_boot
    assert frozenset() == power.decode(0xA0000).now


def test_mailbox_asks_as_documented(tree: Tree) -> None:
    """Mailbox property interface: tag 0x00030046 with the value 0 (clear nothing), the answer in its place."""
    device = str(power.find_mailbox(tree({"dev/vcio": b""})))
    asked: list[tuple[int, bytes]] = []

    def ioctl(_descriptor: int, request: int, message: bytearray) -> int:
        asked.append((request, bytes(message)))
        struct.pack_into("=I", message, 4, 0x80000000)
        struct.pack_into("=II", message, 16, 0x80000004, 0x50000)
        return 0

    assert {"under_voltage", "throttled"} == power.mailbox(device, ioctl).since_boot
    request, message = asked[0]
    assert 0xC0006400 | struct.calcsize("P") << 16 == request
    assert (32, 0, 0x00030046, 4, 0, 0, 0, 0) == struct.unpack("=8I", message)


@pytest.mark.parametrize("answer", [(0x80000001, 0x80000004), (0x80000000, 0), (0, 0)])
def test_mailbox_that_refuses(tree: Tree, answer: tuple[int, int]) -> None:
    """A parse error, an unknown tag, or no answer at all is no reading."""

    def ioctl(_descriptor: int, _request: int, message: bytearray) -> int:
        struct.pack_into("=I", message, 4, answer[0])
        struct.pack_into("=I", message, 16, answer[1])
        return 0

    with pytest.raises(GarbageError):
        power.mailbox(str(tree({"dev/vcio": b""}) / "dev/vcio"), ioctl)


def test_voltage_alarm(tree: Tree) -> None:
    """drivers/hwmon/raspberrypi-hwmon.c: the alarm knows about the voltage and nothing else."""
    root = tree(PI)
    path = str(power.find_voltage_alarm(root))
    assert frozenset() == power.voltage_alarm(path).now
    Path(path).write_text("1\n")
    assert {"under_voltage"} == power.voltage_alarm(path).now
    assert {"under_voltage"} == power.voltage_alarm(path).knows


def test_cooling_devices(tree: Tree) -> None:
    """sysfs-api.rst: a cpufreq cooling device above state 0 slows the processor; a fan does not."""
    root = tree(JETSON)
    paths = power.find_cooling(root)
    assert 1 == len(paths)
    assert frozenset() == power.cooling(paths).now
    Path(paths[0]).write_text("2\n")
    assert {"frequency_capped", "throttled"} == power.cooling(paths).now


def test_throttle_counters(tree: Tree) -> None:
    """intel_thermal_throttle.rst: the package's counter is the same for each core and counted once."""
    assert power.ThrottleCount(8) == power.throttle_count(power.find_throttle_counts(tree(PC)))


def test_network_counts_the_default_route(tree: Tree) -> None:
    """proc(5): the route with the smallest metric wins, bytes are columns 1 and 9."""
    assert Network("eth0", 11194221, 204468) == network.network(tree(KERNEL))


def test_network_by_ipv6_alone(tree: Tree) -> None:
    """Where IPv4 has no default route, the IPv6 table decides; its loopback reject routes do not."""
    zero = "0" * 32
    table = (
        f"{zero} 00 {zero} 00 {zero} ffffffff 00000001 00000000 00200200       lo\n"
        f"{zero} 00 {zero} 00 fe80000000000000000000000000abcd 00000400 00000001 00000000 00000003    wlan0\n"
    )
    root = tree({"proc/net/route": "Iface\tDestination\n", "proc/net/dev": NET_DEV, "proc/net/ipv6_route": table})
    assert Network("wlan0", 777, 888) == network.network(root)


def test_network_without_a_route(tree: Tree) -> None:
    """Offline is no fault."""
    assert network.network(tree({"proc/net/route": "Iface\n", "proc/net/dev": NET_DEV})) is None


@pytest.mark.parametrize(
    ("answer", "expected"), [((0, 0), True), ((5, 0x40), False), ((0, 0x2041), False), ((5, 0), False), ((0, 1), True)]
)
def test_clock_by_the_kernel(tmp_path: Path, answer: tuple[int, int], expected: bool) -> None:
    """adjtimex(2): TIME_ERROR or STA_UNSYNC means that nobody keeps the clock."""
    assert clock.clock_state(tmp_path, lambda: answer).synced is expected


def test_clock_by_timesyncd(tree: Tree) -> None:
    """systemd-timesyncd.service(8): where the kernel must not be asked, its mark shows it, or nothing does."""

    def refused() -> tuple[int, int]:
        raise PermissionError

    root = tree({})
    assert clock.clock_state(root, refused).synced is None
    tree({"run/systemd/timesync/.keep": ""})
    assert clock.clock_state(root, refused).synced is False
    tree({"run/systemd/timesync/synchronized": ""})
    assert clock.clock_state(root, refused).synced is True


def test_clock_of_this_machine() -> None:
    """The real call answers, and its status is made of known bits (linux/timex.h)."""
    returned, status = clock.read_adjtimex()
    assert 0 <= returned <= 5
    assert 0 <= status < 0x10000


def test_process_memory(tree: Tree) -> None:
    """proc(5): pages in statm, kB in smaps_rollup; a process that is gone, or dying, has none."""
    root = tree({**KERNEL, "proc/300/smaps_rollup": ""})
    assert 11008 * os.sysconf("SC_PAGE_SIZE") == processes.rss_bytes(root, 100)
    assert 30000 * 1024 == processes.pss_bytes(root, 100)
    assert processes.rss_bytes(root, 999) is None
    assert processes.pss_bytes(root, 999) is None
    assert processes.pss_bytes(root, 300) is None


def test_process_memory_of_this_process() -> None:
    """The running kernel has this layout."""
    own = processes.pss_bytes(Path("/"), os.getpid())
    assert own is None or 1_000_000 < own < 10_000_000_000


def test_gpu_load_of_a_jetson(tree: Tree) -> None:
    """The load is in thousandths."""
    assert Gpu(43.7) == gpu.gpu(str(gpu.find_gpu(tree(JETSON))))
    assert gpu.find_gpu(tree({}) / "elsewhere") is None


def test_disk_of_a_folder_that_is_not_there_yet(tmp_path: Path) -> None:
    """The nearest parent decides."""
    found = disk.disk(tmp_path / "not" / "there")
    assert isinstance(found, Disk)
    assert 0 <= found.free_bytes <= found.total_bytes


@pytest.mark.parametrize("content", GARBAGE)
def test_garbage_is_refused(tree: Tree, content: bytes) -> None:
    """No nonsense becomes a figure: each probe says GarbageError, and nothing else."""
    names = ["proc/stat", "proc/loadavg", "proc/meminfo", "proc/pressure/cpu", "temp", "proc/7/statm", "flag"]
    root = tree(dict.fromkeys(names, content))
    for probe in (
        lambda: cpu.cpu_times(root),
        lambda: cpu.load(root),
        lambda: memory.memory(root),
        lambda: memory.stall(root, "cpu"),
        lambda: thermal.zone_temperature(thermal.Zone("z", str(root / "temp"))),
        lambda: processes.rss_bytes(root, 7),
        lambda: power.voltage_alarm(str(root / "flag")),
        lambda: cpu.clock([str(root / "temp")]),
        lambda: power.cooling([str(root / "temp")]),
        lambda: gpu.gpu(str(root / "temp")),
    ):
        with pytest.raises(GarbageError):
            probe()


@pytest.mark.parametrize(
    "text",
    [
        "MemTotal: 10 kB\nMemAvailable: 20 kB\n",
        "MemTotal: 0 kB\n",
        "MemTotal: 10\n",
        "MemTotal: -5 kB\n",
        "MemTotal: 10 kB\nSwapFree: 5 kB\n",
        "MemTotal: 99999999999999999999 kB\n",
    ],
)
def test_memory_that_does_not_add_up(tree: Tree, text: str) -> None:
    """More available than there is, nothing at all, negative, or beyond any machine."""
    with pytest.raises(GarbageError):
        memory.memory(tree({"proc/meminfo": text}))


@pytest.mark.parametrize("text", ["-274000", "255000000", "2147483647", "52150 extra", "0x10", "+1"])
def test_temperatures_that_cannot_be(tree: Tree, text: str) -> None:
    """What unconnected sensors say is not handed on."""
    with pytest.raises(GarbageError):
        thermal.zone_temperature(thermal.Zone("z", str(tree({"temp": text}) / "temp")))


def test_head_cut_within_a_character(tree: Tree) -> None:
    """A bounded read of longer text does not trip over its last character."""
    path = str(tree({"file": "a" * 9 + "é"}) / "file")
    assert "a" * 9 == files.read_head(path, 10)


def test_a_file_that_is_too_large(tree: Tree) -> None:
    """A sensor's file without end is not read to its end."""
    path = str(tree({"file": "7" + " " * 5000}) / "file")
    with pytest.raises(GarbageError, match="larger than 4096 bytes"):
        files.read_text(path)
