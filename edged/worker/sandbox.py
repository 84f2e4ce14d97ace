"""Takes from this process what computing a model does not need: new privileges, the network, other files.

Three mechanisms of Linux, each used where the kernel has it; what is missing is reported, never fatal:

- `PR_SET_NO_NEW_PRIVS` (prctl(2)): no program that is started gains rights.
- a seccomp filter (seccomp(2)): system calls that reach other machines, other processes or the kernel's own state fail
  with EPERM. `socket` is among them; sockets that are open already still work.
- Landlock (Documentation/userspace-api/landlock.rst): only the files that are named can be opened. It holds for the
  calling thread and for threads and processes that it starts, so restrict before there are others.

All of it holds for child processes, too, and cannot be undone.
"""

from __future__ import annotations

import ctypes
import errno
import os
import platform
import stat
import struct
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

_PR_SET_NO_NEW_PRIVS, _PR_GET_NO_NEW_PRIVS = 38, 39
_SECCOMP_SET_MODE_FILTER, _SECCOMP_GET_ACTION_AVAIL = 1, 2
_SECCOMP_FILTER_FLAG_TSYNC = 1  # all threads of the process
_RET_ALLOW, _RET_ERRNO = 0x7FFF0000, 0x00050000
_LOAD_WORD, _JUMP_EQUAL, _JUMP_NOT_BELOW, _RETURN = 0x20, 0x15, 0x35, 0x06  # opcodes of classic BPF
_X32 = 0x40000000  # system calls of x86-64's other numbering begin here

_CREATE_RULESET, _ADD_RULE, _RESTRICT_SELF = 444, 445, 446  # the same numbers on every processor
_CREATE_RULESET_VERSION = 1
_PATH_BENEATH = 1
_EXECUTE, _WRITE_FILE, _READ_FILE, _READ_DIR = (1 << bit for bit in range(4))
_REFER, _TRUNCATE, _IOCTL_DEV = 1 << 13, 1 << 14, 1 << 15
_OF_FILES = _EXECUTE | _WRITE_FILE | _READ_FILE | _TRUNCATE | _IOCTL_DEV  # the others are for folders
_DEVICES = sum(1 << bit for bit in (6, 9, 10, 11))  # to make devices, sockets and pipes: for nobody
_RIGHTS: Final = ((1, 13), (2, 14), (3, 15), (5, 16))  # version of Landlock → rights to files, the lowest bits
_ANY_TCP: Final = 3  # bind and connect, from version 4
_SIGNALS_AND_ABSTRACT_SOCKETS: Final = 3  # scopes, from version 6

# What a model never needs, with the numbers of asm/unistd_64.h and of asm-generic/unistd.h.
_DENIED: Final[dict[str, tuple[int, int]]] = {
    # the network
    "socket": (41, 198), "connect": (42, 203), "bind": (49, 200), "listen": (50, 201), "accept": (43, 202),
    "accept4": (288, 242), "io_uring_setup": (425, 425),
    # other processes
    "ptrace": (101, 117), "process_vm_readv": (310, 270), "process_vm_writev": (311, 271), "pidfd_getfd": (438, 438),
    "kcmp": (312, 272),
    # other views of the system
    "mount": (165, 40), "umount2": (166, 39), "pivot_root": (155, 41), "chroot": (161, 51), "setns": (308, 268),
    "unshare": (272, 97), "open_by_handle_at": (304, 265), "open_tree": (428, 428), "move_mount": (429, 429),
    "fsopen": (430, 430), "fsconfig": (431, 431), "fsmount": (432, 432), "fspick": (433, 433),
    "mount_setattr": (442, 442), "mknodat": (259, 33),
    # the kernel and the machine
    "bpf": (321, 280), "perf_event_open": (298, 241), "userfaultfd": (323, 282), "add_key": (248, 217),
    "request_key": (249, 218), "keyctl": (250, 219), "init_module": (175, 105), "finit_module": (313, 273),
    "delete_module": (176, 106), "kexec_load": (246, 104), "kexec_file_load": (320, 294), "reboot": (169, 142),
    "swapon": (167, 224), "swapoff": (168, 225), "acct": (163, 89), "settimeofday": (164, 170),
    "clock_settime": (227, 112), "adjtimex": (159, 171), "clock_adjtime": (305, 266), "sethostname": (170, 161),
    "setdomainname": (171, 162), "quotactl": (179, 60), "syslog": (103, 116),
}  # fmt: skip
_ONLY_X86: Final = (133, 172, 173)  # mknod, iopl, ioperm


@dataclass(frozen=True)
class _Processor:
    """How a processor's system calls are distinguished: the audit architecture, seccomp's number, those denied."""

    audit: int
    seccomp: int
    denied: tuple[int, ...]


_PROCESSORS: Final = {
    "x86_64": _Processor(0xC000003E, 317, (*(pair[0] for pair in _DENIED.values()), *_ONLY_X86)),
    "aarch64": _Processor(0xC00000B7, 277, tuple(pair[1] for pair in _DENIED.values())),
}


@dataclass(frozen=True)
class Access:
    """The files that stay within reach; what is in a folder counts with it, and a path that is not there is skipped.

    `read`: files and folders. `run`: programs. `devices`: to read, write and control. `update`: to read and write what
    is there. `names`: folders to list, their files not to be read. `write`: folders in which files are made, changed
    and removed.
    """

    read: Iterable[Path] = ()
    run: Iterable[Path] = ()
    devices: Iterable[Path] = ()
    update: Iterable[Path] = ()
    names: Iterable[Path] = ()
    write: Iterable[Path] = ()


@dataclass
class Restrictions:
    """`held`: what is (or can be) taken from the process, in words. `missing`: what is not, and why."""

    held: list[str] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        parts = [f"restricted: {', '.join(self.held)}"] if self.held else []
        return "; ".join([*parts, *(f"not restricted: {why}" for why in self.missing)])


def restrict(access: Access) -> Restrictions:
    """Restricts this process for the rest of its life, as far as this kernel can; gives what holds."""
    report = Restrictions()
    try:
        _prctl(_PR_SET_NO_NEW_PRIVS, 1)
        report.held.append("no new privileges")
    except OSError as error:
        report.missing.append(f"new privileges ({_why(error)})")
    try:
        _set_filter()
        report.held.append("no network (seccomp)")
    except (OSError, LookupError) as error:
        report.missing.append(f"the network ({_why(error)})")
    threads = len(list(Path("/proc/self/task").iterdir()))
    try:
        version = landlock_version()
        _confine(access, version)
        report.held.append(f"only its own files (Landlock {version})")
        if threads > 1:
            report.missing.append(f"files for {threads - 1} threads that were there before")
    except OSError as error:
        report.missing.append(f"files ({_why(error)})")
    return report


def available() -> Restrictions:
    """What `restrict` could take on this machine. Changes nothing."""
    report = Restrictions()
    try:
        _prctl(_PR_GET_NO_NEW_PRIVS, 0)
        report.held.append("no new privileges")
    except OSError as error:
        report.missing.append(f"new privileges ({_why(error)})")
    try:
        action = ctypes.c_uint32(_RET_ERRNO)
        _syscall(_processor().seccomp, _SECCOMP_GET_ACTION_AVAIL, 0, ctypes.addressof(action))
        report.held.append("no network (seccomp)")
    except (OSError, LookupError) as error:
        report.missing.append(f"the network ({_why(error)})")
    try:
        report.held.append(f"only its own files (Landlock {landlock_version()})")
    except OSError as error:
        report.missing.append(f"files ({_why(error)})")
    return report


def landlock_version() -> int:
    """The version of Landlock's interface (from 1 on). Raises OSError where this kernel has none or leaves it off."""
    return _syscall(_CREATE_RULESET, 0, 0, _CREATE_RULESET_VERSION)


# ---- seccomp ---------------------------------------------------------------------------------------------------------


def _processor() -> _Processor:
    """Raises LookupError for a processor whose numbers are not known here."""
    machine = platform.machine()
    if machine not in _PROCESSORS or ctypes.sizeof(ctypes.c_void_p) != 8:
        raise LookupError(f"no filter for {machine} processors with {8 * ctypes.sizeof(ctypes.c_void_p)}-bit programs")
    return _PROCESSORS[machine]


def filter_program(audit: int, denied: Iterable[int]) -> bytes:
    """A classic BPF program that lets all system calls through but these, and none of another architecture's."""
    numbers = sorted(denied)
    checks = [(_JUMP_NOT_BELOW, _X32), *((_JUMP_EQUAL, number) for number in numbers)]
    end = len(checks)  # the first return; the second denies
    program = [
        struct.pack("HBBI", _LOAD_WORD, 0, 0, 4),  # seccomp_data.arch
        struct.pack("HBBI", _JUMP_EQUAL, 0, end + 2, audit),
        struct.pack("HBBI", _LOAD_WORD, 0, 0, 0),  # seccomp_data.nr
        *(struct.pack("HBBI", code, end - at, 0, value) for at, (code, value) in enumerate(checks)),
        struct.pack("HBBI", _RETURN, 0, 0, _RET_ALLOW),
        struct.pack("HBBI", _RETURN, 0, 0, _RET_ERRNO | errno.EPERM),
    ]
    return b"".join(program)


def _set_filter() -> None:
    processor = _processor()
    program = filter_program(processor.audit, processor.denied)
    code = ctypes.create_string_buffer(program, len(program))
    pointer = struct.pack("HxxxxxxP", len(program) // 8, ctypes.addressof(code))  # struct sock_fprog
    prog = ctypes.create_string_buffer(pointer, len(pointer))
    _syscall(processor.seccomp, _SECCOMP_SET_MODE_FILTER, _SECCOMP_FILTER_FLAG_TSYNC, ctypes.addressof(prog))


# ---- Landlock --------------------------------------------------------------------------------------------------------


def _confine(access: Access, version: int) -> None:
    rights = (1 << max(bits for since, bits in _RIGHTS if since <= version)) - 1
    attributes = [
        rights,
        *([_ANY_TCP] if version >= 4 else []),
        *([_SIGNALS_AND_ABSTRACT_SOCKETS] if version >= 6 else []),
    ]
    packed = struct.pack(f"={len(attributes)}Q", *attributes)
    buffer = ctypes.create_string_buffer(packed, len(packed))
    ruleset = _syscall(_CREATE_RULESET, ctypes.addressof(buffer), len(packed), 0)
    try:
        for paths, allowed in (
            (access.read, _READ_FILE | _READ_DIR),
            (access.run, _READ_FILE | _EXECUTE),
            (access.devices, _READ_FILE | _WRITE_FILE | _READ_DIR | _IOCTL_DEV),
            (access.update, _READ_FILE | _READ_DIR | _WRITE_FILE | _TRUNCATE),
            (access.names, _READ_DIR),
            (access.write, rights & ~(_EXECUTE | _IOCTL_DEV | _DEVICES)),
        ):
            for path in paths:
                _allow(ruleset, path, allowed & rights)
        _syscall(_RESTRICT_SELF, ruleset, 0)
    finally:
        os.close(ruleset)


def _allow(ruleset: int, path: Path, allowed: int) -> None:
    with suppress(FileNotFoundError, NotADirectoryError, PermissionError):
        handle = os.open(path, os.O_PATH | os.O_CLOEXEC)
        try:
            if not stat.S_ISDIR(os.fstat(handle).st_mode):
                allowed &= _OF_FILES
            packed = struct.pack("=Qi", allowed, handle)  # struct landlock_path_beneath_attr is packed
            rule = ctypes.create_string_buffer(packed, len(packed))
            _syscall(_ADD_RULE, ruleset, _PATH_BENEATH, ctypes.addressof(rule), 0)
        finally:
            os.close(handle)


# ---- the kernel ------------------------------------------------------------------------------------------------------


def _prctl(option: int, value: int) -> int:
    return _checked(_libc().prctl(option, *(ctypes.c_ulong(number) for number in (value, 0, 0, 0))))


def _syscall(number: int, *arguments: int) -> int:
    return _checked(_libc().syscall(ctypes.c_long(number), *(ctypes.c_long(argument) for argument in arguments)))


def _libc() -> ctypes.CDLL:
    libc = ctypes.CDLL(None, use_errno=True)
    libc.syscall.restype = ctypes.c_long
    return libc


def _checked(result: int) -> int:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
    return result


def _why(error: OSError | LookupError) -> str:
    if not isinstance(error, OSError):
        return str(error.args[0])
    words = {
        errno.ENOSYS: "this kernel does not have it",
        errno.EOPNOTSUPP: "it is switched off in this kernel; add landlock to lsm= on the kernel's command line",
        errno.EPERM: "it is not permitted here",
        errno.EINVAL: "this kernel does not take it",
    }
    return words.get(error.errno or 0, error.strerror or str(error))
