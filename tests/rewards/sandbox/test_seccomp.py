"""The filter, run on a machine of a dozen lines."""

from __future__ import annotations

import struct

import pytest

from posttrain_jax.rewards.sandbox import seccomp

EPERM, ENOSYS = seccomp.ERRNO | 1, seccomp.ERRNO | 38


def verdict(code: bytes, number: int, arguments: tuple[int, ...] = (), architecture: int = 0xC000003E) -> int:
    """What the filter returns of one call."""
    data = struct.pack("<IIQ6Q", number, architecture, 0, *arguments, *[0] * (6 - len(arguments)))
    program = list(struct.iter_unpack("=HBBI", code))
    at, value = 0, 0
    while True:
        kind, yes, no, operand = program[at]
        at += 1
        if kind == seccomp.RETURN:
            return operand
        if kind == seccomp.LOAD:
            (value,) = struct.unpack_from("<I", data, operand)
        elif kind == seccomp.JUMP_EQUAL:
            at += yes if value == operand else no
        else:
            assert kind == seccomp.JUMP_BITS
            at += yes if value & operand else no


@pytest.mark.parametrize("machine", list(seccomp.MACHINES))
def test_each_call_is_judged_as_it_should_be(machine: str):
    column, architecture = seccomp.MACHINES[machine]
    code = seccomp.make_filter(machine)

    def of(numbers: tuple[int, int], *arguments: int) -> int:
        return verdict(code, numbers[column], arguments, architecture)

    for name, numbers in seccomp.DENIED.items():
        if numbers[column] is not None:
            assert verdict(code, numbers[column], (), architecture) == EPERM, name
    assert of(seccomp.CLONE3) == ENOSYS
    assert of(seccomp.CLONE, 17) == of(seccomp.CLONE, 0x3D0F00) == seccomp.ALLOW  # a fork and a thread
    for flag in (0x20000, 0x2000000, 0x4000000, 0x8000000, 0x10000000, 0x20000000, 0x40000000):
        assert of(seccomp.CLONE, flag | 17) == EPERM
    assert of(seccomp.SOCKET, 1) == seccomp.ALLOW
    assert of(seccomp.SOCKET, 1 | 1 << 32) == seccomp.ALLOW  # the kernel reads the low half
    for family in (2, 10, 16, 17, 38, 40):
        assert of(seccomp.SOCKET, family) == of(seccomp.SOCKET, family | 1 << 32) == EPERM
    for request in (0x5412, 0x541C):
        assert of(seccomp.IOCTL, 0, request) == of(seccomp.IOCTL, 0, request | 1 << 32) == EPERM
    assert of(seccomp.IOCTL, 0x5412, 0x5401) == seccomp.ALLOW
    for harmless in ({0: 0, 1: 63}, {0: 1, 1: 64}, {0: 9, 1: 222}):  # read, write, mmap
        assert verdict(code, harmless[column], (), architecture) == seccomp.ALLOW


def test_calls_of_other_architectures_are_none():
    code = seccomp.make_filter("x86_64")
    assert verdict(code, 0, (), 0x40000003) == seccomp.KILL  # i386
    assert verdict(code, 0x40000000, ()) == EPERM  # x32
    with pytest.raises(NotImplementedError, match="riscv64"):
        seccomp.make_filter("riscv64")
