"""What this machine can do and what to fix: the facts for `edged doctor`. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import msgspec

from edged.core.reading import Reading, ThrottleFlag
from edged.device.board import Board
from edged.device.rules import CLOCK_FLOOR, Limits, free_space_wanted

Status = Literal["ok", "warn", "fail"]
_FLAG_TEXTS: dict[ThrottleFlag, str] = {
    "under_voltage": "too low a voltage",
    "frequency_capped": "a capped clock",
    "throttled": "throttling",
    "soft_temp_limit": "the soft temperature limit",
}


class Advice(msgspec.Struct, frozen=True):
    """One fact. `fix` says what to do; None where nothing has to be done."""

    code: str
    status: Status
    fact: str
    fix: str | None = None


def examine_board(
    board: Board, reading: Reading, *, limits: Limits | None = None, model_bytes: int | None = None
) -> list[Advice]:
    """The facts in the order to show them. `model_bytes` is the size of the configured model's file, where known."""
    found = [
        Advice("board", "ok", f"{board.model}, {board.architecture}, {board.cores} cores, Linux {board.kernel}"),
        _processor(board),
        _memory(board, reading),
        _model(reading, model_bytes),
        _swap(reading),
        _memory_cgroup(board),
        _temperature(reading, limits or Limits()),
        *_throttling(board, reading),
        _disk(reading),
        _clock(reading),
        _sensors(reading),
    ]
    if board.gpu:
        found.append(Advice("gpu", "ok", f"GPU: {board.gpu}"))
    return [advice for advice in found if advice is not None]


def _processor(board: Board) -> Advice:
    features = " ".join(board.features) or "none that matter"
    if board.has_dot_products:
        return Advice("cpu_features", "ok", f"the processor has dot products ({features})")
    if "avx2" in board.features:
        return Advice("cpu_features", "ok", f"the processor has AVX2 but no dot products ({features})")
    return Advice(
        "cpu_features",
        "warn",
        f"the processor has no dot products ({features}), so models with 4 or 8 bits run at a fraction of the speed",
        "Choose a small model; boards with dot products are Raspberry Pi 5, Jetson Orin, and PCs with AVX-VNNI.",
    )


def _memory(board: Board, reading: Reading) -> Advice | None:
    if reading.memory is None:
        return Advice(
            "memory", "warn", "the memory cannot be read", "Mount /proc in full (systemd: no ProcSubset=pid)."
        )
    total, free = reading.memory.total_bytes, reading.memory.available_bytes
    fact = f"{_size(free)} of {_size(board.memory_bytes or total)} memory available"
    if free * 10 > total:
        return Advice("memory", "ok", fact)
    return Advice("memory", "warn", fact, "Stop other programs, or choose a smaller model or a shorter model.context.")


def _model(reading: Reading, model_bytes: int | None) -> Advice | None:
    if model_bytes is None or reading.memory is None:
        return None
    # The worker frees its own memory when it loads another model.
    own = (reading.worker.rss_bytes or 0) if reading.worker else 0
    available, total = reading.memory.available_bytes + own, reading.memory.total_bytes
    if model_bytes >= total:
        fact = f"the model ({_size(model_bytes)}) is larger than the board's memory ({_size(total)})"
        return Advice("model_memory", "fail", fact, "Choose a smaller model, or fewer bits (model.bits).")
    if model_bytes >= available:
        fact = f"the model ({_size(model_bytes)}) is larger than what is available ({_size(available)})"
        return Advice("model_memory", "fail", fact, "Stop other programs, or choose a smaller model.")
    return Advice("model_memory", "ok", f"the model ({_size(model_bytes)}) fits into the memory available")


def _swap(reading: Reading) -> Advice | None:
    if reading.memory is None:
        return None
    used, size = reading.memory.swap_used_bytes, reading.memory.swap_total_bytes
    if size == 0:
        return Advice("swap", "ok", "no swap")
    fact = f"{_size(used)} of {_size(size)} swap in use"
    if used * 4 < reading.memory.total_bytes:
        return Advice("swap", "ok", fact)
    return Advice("swap", "warn", fact, "Stop other programs or choose a smaller model: answers from swap are slow.")


def _memory_cgroup(board: Board) -> Advice | None:
    if board.memory_cgroup is None:
        return Advice(
            "memory_cgroup",
            "warn",
            "whether the kernel can limit a service's memory is not known",
            "Mount /sys/fs/cgroup.",
        )
    if board.memory_cgroup:
        return Advice("memory_cgroup", "ok", "the memory cgroup is on")
    where = "/boot/firmware/cmdline.txt" if board.kind == "raspberry_pi" else "the kernel's command line"
    return Advice(
        "memory_cgroup",
        "warn",
        "the memory cgroup is off, so MemoryMax= of the service does nothing",
        f"Add cgroup_enable=memory cgroup_memory=1 to {where} (one line) and reboot.",
    )


def _temperature(reading: Reading, limits: Limits) -> Advice | None:
    if reading.temperature_c is None:
        return Advice("temperature", "ok", "no temperature sensor")
    fact = f"{reading.temperature_c:.1f} °C, the limit is {limits.temperature_c:.0f} °C"
    if reading.temperature_c < limits.temperature_c:
        return Advice("temperature", "ok", fact)
    status: Status = "fail" if reading.temperature_c >= limits.temperature_critical_c else "warn"
    return Advice("temperature", status, fact, "Cool the board: improve the air flow, add a heat sink or a fan.")


def _throttling(board: Board, reading: Reading) -> list[Advice]:
    throttle = reading.throttle
    if throttle is None:
        if board.kind != "raspberry_pi":
            return [Advice("throttled", "ok", "this board does not report throttling")]
        fact = "the firmware's throttling state cannot be read"
        return [Advice("throttled", "warn", fact, "Add the user of the service to the group video (for /dev/vcio).")]
    if not throttle.since_boot and not throttle.now:
        return [Advice("throttled", "ok", "not throttled since boot")]
    found = []
    if throttle.now:
        fact = f"slowed down now by {_listed(throttle.now)}"
        found.append(Advice("throttled", "warn", fact, _fix_for(throttle.now)))
    if past := [flag for flag in throttle.since_boot if flag not in throttle.now]:
        fact = f"slowed down since boot by {_listed(past)}"
        found.append(Advice("throttled_since_boot", "warn", fact, _fix_for(past)))
    return found


def _fix_for(flags: Sequence[ThrottleFlag]) -> str:
    if "under_voltage" in flags:
        return "Use the board's own power supply and a short, thick cable."
    return "Cool the board: improve the air flow, add a heat sink or a fan."


def _disk(reading: Reading) -> Advice | None:
    if reading.disk is None:
        return Advice(
            "disk",
            "warn",
            "the disk of state_dir cannot be read",
            "Check that state_dir exists and that this user may read it.",
        )
    free, total = reading.disk.free_bytes, reading.disk.total_bytes
    fact = f"{_size(free)} of {_size(total)} free on the disk of state_dir"
    wanted = free_space_wanted(total)
    if free > wanted:
        return Advice("disk", "ok", fact)
    return Advice(
        "disk",
        "fail" if free <= wanted // 10 else "warn",
        fact,
        "Free some space: `edged model list` shows models, `edged model remove` deletes one.",
    )


def _clock(reading: Reading) -> Advice:
    if reading.at < CLOCK_FLOOR:
        fix = (
            'Start a time service (`timedatectl set-ntp true`): until the clock is set TLS fails with "not yet valid".'
        )
        return Advice("clock", "fail", "the clock is not set", fix)
    if reading.clock_synced is None:
        return Advice("clock", "ok", "the clock is set; whether it is synchronised is not known")
    if reading.clock_synced:
        return Advice("clock", "ok", "the clock is synchronised")
    return Advice(
        "clock", "warn", "the clock is not synchronised", "Start a time service (`timedatectl set-ntp true`)."
    )


def _sensors(reading: Reading) -> Advice | None:
    if not reading.broken and not reading.stuck:
        return None
    parts = [
        f"{verb}: {', '.join(names)}"
        for verb, names in (("wrong values from", reading.broken), ("no answer from", reading.stuck))
        if names
    ]
    return Advice("sensors", "warn", "; ".join(parts), "Look into the kernel log (`dmesg`); these sensors are ignored.")


def _listed(flags: Sequence[ThrottleFlag]) -> str:
    names = [_FLAG_TEXTS[flag] for flag in flags]
    return " and ".join([", ".join(names[:-1]), names[-1]] if len(names) > 1 else names)


def _size(size: int) -> str:
    """A size as people write it; KB = 1,000."""
    value = float(size)
    for unit in ("B", "KB", "MB", "GB"):
        if value < 1000:
            return f"{value:.0f} {unit}" if unit in {"B", "KB", "MB"} else f"{value:.1f} {unit}"
        value /= 1000
    return f"{value:.1f} TB"
