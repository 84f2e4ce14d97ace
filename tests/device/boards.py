"""Boards made of files: the parts of /proc and /sys that a probe reads, in the kernel's documented layout."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

Tree = Callable[[Mapping[str, "str | bytes"]], Path]

# proc(5): user nice system idle iowait irq softirq steal guest guest_nice
STAT = (
    "cpu  100 0 50 800 50 0 0 0 0 0\ncpu0 50 0 25 400 25 0 0 0 0 0\ncpu1 50 0 25 400 25 0 0 0 0 0\n"
    "intr 1234 0 9\nctxt 99\nbtime 1767225600\n"
)
MEMINFO = (
    "MemTotal:  8000000 kB\nMemFree:   1000000 kB\nMemAvailable:  6000000 kB\nBuffers:   50000 kB\n"
    "Cached:    4000000 kB\nSwapCached:      0 kB\nSwapTotal:      200000 kB\nSwapFree: 150000 kB\n"
)
# Documentation/accounting/psi.rst
PSI = "some avg10=1.50 avg60=0.80 avg300=0.40 total=12345\nfull avg10=0.50 avg60=0.20 avg300=0.10 total=2345\n"
ROUTE = (
    "Iface\tDestination\tGateway \tFlags\tRefCnt\tUse\tMetric\tMask\t\tMTU\tWindow\tIRTT\n"
    "wlan0\t00000000\t0101A8C0\t0003\t0\t0\t600\t00000000\t0\t0\t0\n"
    "eth0\t00000000\t0101A8C0\t0003\t0\t0\t100\t00000000\t0\t0\t0\n"
    "eth0\t0001A8C0\t00000000\t0001\t0\t0\t100\t00FFFFFF\t0\t0\t0\n"
)
# The kernel pads these columns more widely; proc(5) promises only the blanks between them.
NET_DEV = (
    "Inter-|   Receive                                  |  Transmit\n"
    " face |bytes packets errs drop fifo frame compressed multicast|bytes packets errs drop fifo colls carrier compr\n"
    "    lo:     100    1 0 0 0 0 0 0    100    1 0 0 0 0 0 0\n"
    "  eth0:11194221 3147 0 0 0 0 0 0 204468 1679 0 0 0 0 0 0\n"
    " wlan0:     777    9 0 0 0 0 0 0    888    9 0 0 0 0 0 0\n"
)
SMAPS_ROLLUP = (
    "555cb5911000-7ffda3108000 ---p 00000000 00:00 0                          [rollup]\n"
    "Rss:        44032 kB\nPss:        30000 kB\nPss_Dirty:  20000 kB\nShared_Clean:  1568 kB\n"
)
CPUINFO_PI5 = (
    "processor\t: 0\nBogoMIPS\t: 108.00\n"
    "Features\t: fp asimd evtstrm aes pmull sha1 sha2 crc32 atomics fphp asimdhp cpuid asimdrdm lrcpc dcpop asimddp\n"
    "CPU implementer\t: 0x41\n\nModel\t\t: Raspberry Pi 5 Model B Rev 1.0\n"
)
KERNEL: dict[str, str | bytes] = {
    "proc/stat": STAT,
    "proc/loadavg": "0.49 0.31 0.13 1/85 4052\n",
    "proc/meminfo": MEMINFO,
    "proc/pressure/cpu": PSI,
    "proc/pressure/memory": PSI,
    "proc/pressure/io": PSI,
    "proc/net/route": ROUTE,
    "proc/net/dev": NET_DEV,
    "proc/100/statm": "20000 11008 2000 1 0 9000 0\n",
    "proc/100/smaps_rollup": SMAPS_ROLLUP,
    "proc/200/statm": "900000 250000 2000 1 0 9000 0\n",
    "proc/200/smaps_rollup": SMAPS_ROLLUP,
}
CPUFREQ = "sys/devices/system/cpu/cpufreq"
PI: dict[str, str | bytes] = {
    **KERNEL,
    "proc/cpuinfo": CPUINFO_PI5,
    "proc/device-tree/model": b"Raspberry Pi 5 Model B Rev 1.0\0",
    f"{CPUFREQ}/policy0/scaling_cur_freq": "2400000\n",
    "sys/class/thermal/thermal_zone0/type": "cpu-thermal\n",
    "sys/class/thermal/thermal_zone0/temp": "52150\n",
    "sys/devices/platform/soc/soc:firmware/get_throttled": "50005\n",
    "sys/class/hwmon/hwmon0/name": "cpu_thermal\n",
    "sys/class/hwmon/hwmon0/temp1_input": "52150\n",
    "sys/class/hwmon/hwmon2/name": "rpi_volt\n",
    "sys/class/hwmon/hwmon2/in0_lcrit_alarm": "0\n",
    "sys/fs/cgroup/cgroup.controllers": "cpuset cpu io pids\n",
}
JETSON: dict[str, str | bytes] = {
    **KERNEL,
    "proc/device-tree/model": b"NVIDIA Jetson Orin Nano Developer Kit\0",
    f"{CPUFREQ}/policy0/scaling_cur_freq": "1510400\n",
    f"{CPUFREQ}/policy4/scaling_cur_freq": "729600\n",
    **{
        f"sys/class/thermal/thermal_zone{number}/{file}": text
        for number, (name, temp) in enumerate(
            (("cpu-thermal", "49531"), ("gpu-thermal", "50718"), ("PMIC-Die", "100000"), ("fan-est", "61000"))
        )
        for file, text in (("type", name + "\n"), ("temp", temp + "\n"))
    },
    "sys/class/thermal/cooling_device0/type": "cpufreq-cpu0\n",
    "sys/class/thermal/cooling_device0/cur_state": "0\n",
    "sys/class/thermal/cooling_device1/type": "pwm-fan\n",
    "sys/class/thermal/cooling_device1/cur_state": "3\n",
    "sys/devices/platform/gpu.0/load": "437\n",
}
PC: dict[str, str | bytes] = {
    **KERNEL,
    "proc/cpuinfo": "processor\t: 0\nmodel name\t: Intel(R) N100\ncpu MHz\t\t: 800.051\n"
    "flags\t\t: fpu avx2 fma f16c avx_vnni\n",
    "proc/cgroups": "#subsys_name\thierarchy\tnum_cgroups\tenabled\ncpu\t0\t1\t1\nmemory\t0\t23\t1\n",
    "sys/class/dmi/id/sys_vendor": "Beelink\n",
    "sys/class/dmi/id/product_name": "EQ12\n",
    "sys/class/thermal/thermal_zone0/type": "acpitz\n",
    "sys/class/thermal/thermal_zone0/temp": "96800\n",
    "sys/class/hwmon/hwmon3/name": "coretemp\n",
    "sys/class/hwmon/hwmon3/temp1_input": "61000\n",
    "sys/class/hwmon/hwmon3/temp1_label": "Package id 0\n",
    "sys/class/hwmon/hwmon3/temp2_input": "59000\n",
    "sys/class/hwmon/hwmon4/name": "nvme\n",
    "sys/class/hwmon/hwmon4/temp1_input": "84000\n",
    "sys/devices/system/cpu/cpu0/thermal_throttle/core_throttle_count": "7\n",
    "sys/devices/system/cpu/cpu1/thermal_throttle/core_throttle_count": "0\n",
    "sys/devices/system/cpu/cpu0/thermal_throttle/package_throttle_count": "1\n",
    "sys/devices/system/cpu/cpu1/thermal_throttle/package_throttle_count": "1\n",
}
# What no sensor's file should ever hold: all of it must end as "broken", never as an exception or a figure.
GARBAGE: tuple[bytes, ...] = (
    b"",
    b"\n",
    b"\0\0\0\0",
    b"\xff\xfe\x80\x81",
    b"\x7fELF\x02\x01\x01",
    b"NaN\n",
    b"-99999999999\n",
    b"1e9\n",
    b"1_000\n",
    "٤٢\n".encode(),
    b"9" * 400,
    b"x" * 200_000,
    b"some avg10=-1.00\n",
    b"cpu\n",
    b"some\n",
)
