"""Devices and memory of onnxruntime's API: the CPU."""

from __future__ import annotations

from enum import IntEnum

from ..records import dataclass
from .exceptions import RefusedError


class Named(IntEnum):
    """An enumeration whose members read as `Kind.MEMBER`, as onnxruntime's do."""

    def __str__(self) -> str:  # IntEnum's own differs between Pythons
        return f"{type(self).__name__}.{self.name}"


class OrtDeviceVendorId(IntEnum):
    """Vendors of devices, by their PCI numbers."""

    NONE = 0x0000
    AMD = 0x1002
    NVIDIA = 0x10DE
    ARM = 0x13B5
    MICROSOFT = 0x1414
    HUAWEI = 0x19E5
    QUALCOMM = 0x5143
    INTEL = 0x8086


class OrtAllocatorType(Named):
    """Kinds of allocators."""

    INVALID = -1
    ORT_DEVICE_ALLOCATOR = 0
    ORT_ARENA_ALLOCATOR = 1


class OrtMemType(Named):
    """Kinds of memory that a device reads and writes."""

    CPU_INPUT = -2
    CPU_OUTPUT = -1
    DEFAULT = 0
    CPU = -1  # the same as CPU_OUTPUT


class OrtDeviceMemoryType(Named):
    """Kinds of memory of a device."""

    DEFAULT = 0
    HOST_ACCESSIBLE = 5


class OrtDevice:
    """The CPU: `OrtDevice.make("cpu", 0)`. Another device raises RefusedError, which is a RuntimeError."""

    def __init__(self, device_id: int = 0):
        self._id = device_id

    @staticmethod
    def make(ort_device_name: str, device_id: int, vendor_id: int = -1) -> OrtDevice:
        """The device of this name and number."""
        check_cpu(ort_device_name)
        return OrtDevice(device_id)

    @staticmethod
    def cpu() -> int:
        """The number of this type of device."""
        return 0

    def device_id(self) -> int:
        """The number of the device."""
        return self._id

    def device_type(self) -> int:
        """0, the CPU."""
        return 0

    def device_vendor_id(self) -> int:
        """0, no vendor."""
        return 0

    def device_mem_type(self) -> int:
        """0, plain memory."""
        return 0


@dataclass(frozen=True)
class OrtMemoryInfo:
    """Where a value is kept: plain memory of the CPU."""

    name: str = "Cpu"
    allocator_type: OrtAllocatorType = OrtAllocatorType.ORT_ARENA_ALLOCATOR
    device_id: int = 0
    mem_type: OrtMemType = OrtMemType.DEFAULT
    device_mem_type: OrtDeviceMemoryType = OrtDeviceMemoryType.DEFAULT
    device_vendor_id: int = 0


def check_cpu(device_type: str) -> None:
    """Raise RefusedError for any device but the CPU."""
    if str(device_type).lower() != "cpu":
        raise RefusedError(f"the device {device_type!r}: fastrnn runs on 'cpu'")
