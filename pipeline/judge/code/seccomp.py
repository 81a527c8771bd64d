"""The system call filter of a box, as bubblewrap loads it: no namespaces, mounts or hidden memory.

A nested user namespace would let the program mount a tmpfs beyond every limit; memory in a memfd or
in System V shared memory is in no process's resident size. clone3 hides its flags behind a pointer,
so it "does not exist" and the C library uses clone.
"""

from __future__ import annotations

import os
import platform
import struct

_LOAD, _EQUAL, _MASKED, _AT_LEAST, _RETURN = 0x20, 0x15, 0x45, 0x35, 0x06
_ALLOW, _KILL, _REFUSE = 0x7FFF0000, 0x80000000, 0x00050000
_EPERM, _ENOSYS = 1, 38
_NEW_NAMESPACES = 0x7E020080
"""CLONE_NEWNS, NEWCGROUP, NEWUTS, NEWIPC, NEWUSER, NEWPID, NEWNET and NEWTIME."""
_NEW_MOUNTS = (428, 429, 430, 431, 432, 433, 442)
"""open_tree, move_mount, fsopen, fsconfig, fsmount, fspick, mount_setattr: equal everywhere."""
_MACHINES = {  # audit architecture, clone, and unshare setns mount umount2 pivot_root memfd shmget
    "x86_64": (0xC000003E, 56, (272, 308, 165, 166, 155, 319, 29)),
    "aarch64": (0xC00000B7, 220, (97, 268, 40, 39, 41, 279, 194))}
_CLONE3, _MEMFD_SECRET = 435, 447


def _statement(code: int, value: int, if_true: int = 0, if_false: int = 0) -> bytes:
    return struct.pack("=HBBI", code, if_true, if_false, value)


def program(machine: str) -> bytes:
    """The BPF program for `machine`; b"" for one whose system calls are not known."""
    if machine not in _MACHINES:
        return b""
    architecture, clone, refused = _MACHINES[machine]
    out = [_statement(_LOAD, 4), _statement(_EQUAL, architecture, 1, 0),
           _statement(_RETURN, _KILL), _statement(_LOAD, 0)]
    if machine == "x86_64":  # the x32 numbers, which would pass by every line below
        out += [_statement(_AT_LEAST, 0x40000000, 0, 1), _statement(_RETURN, _REFUSE | _EPERM)]
    for number in (*refused, *_NEW_MOUNTS, _MEMFD_SECRET):
        out += [_statement(_EQUAL, number, 0, 1), _statement(_RETURN, _REFUSE | _EPERM)]
    out += [_statement(_EQUAL, _CLONE3, 0, 1), _statement(_RETURN, _REFUSE | _ENOSYS),
            _statement(_EQUAL, clone, 0, 3), _statement(_LOAD, 16),
            _statement(_MASKED, _NEW_NAMESPACES, 0, 1), _statement(_RETURN, _REFUSE | _EPERM),
            _statement(_RETURN, _ALLOW)]
    return b"".join(out)


def open_filter() -> int | None:
    """Open a descriptor with this machine's filter; None if the machine is not supported."""
    if not (text := program(platform.machine())):
        return None
    descriptor = os.memfd_create("seccomp")
    os.write(descriptor, text)
    os.lseek(descriptor, 0, os.SEEK_SET)
    return descriptor
