"""Vulkan's devices and drivers by name: what draws for SAPIEN. Standard library alone."""

import ctypes
from ctypes import POINTER, Structure, byref, c_char, c_char_p, c_uint8, c_uint32, c_void_p

_LIBRARY = "libvulkan.so.1"
_APPLICATION, _INSTANCE, _PROPERTIES, _DRIVER = 0, 1, 1000059001, 1000196000
"""Kinds of structures (VkStructureType)."""
_VERSION = 1 << 22 | 2 << 12
"""1.2, from which on drivers name themselves."""


class _Application(Structure):
    _fields_ = [
        *[("kind", c_uint32), ("next", c_void_p), ("name", c_char_p), ("version", c_uint32)],
        *[("engine", c_char_p), ("engine_version", c_uint32), ("api_version", c_uint32)],
    ]


class _Instance(Structure):
    _fields_ = [
        *[("kind", c_uint32), ("next", c_void_p), ("flags", c_uint32), ("application", POINTER(_Application))],
        *[("layers", c_uint32), ("layer_names", c_void_p), ("extensions", c_uint32), ("extension_names", c_void_p)],
    ]


class _Driver(Structure):
    """VkPhysicalDeviceDriverProperties."""

    _fields_ = [
        *[("kind", c_uint32), ("next", c_void_p), ("id", c_uint32), ("name", c_char * 256), ("info", c_char * 256)],
        ("conformance", c_uint8 * 4),
    ]


class _Properties(Structure):
    """VkPhysicalDeviceProperties2; the limits and what follows them, which nobody reads, are `rest`."""

    _fields_ = [
        *[("kind", c_uint32), ("next", c_void_p), ("api_version", c_uint32), ("driver_version", c_uint32)],
        *[("vendor", c_uint32), ("device", c_uint32), ("type", c_uint32), ("name", c_char * 256)],
        ("rest", c_uint8 * 1024),
    ]


def describe_vulkan() -> str:
    """The devices, each with its driver, as `llvmpipe (LLVM 19.1.7, 256 bits), llvmpipe, Mesa 25.0.7`; `none` without
    any.
    """
    try:
        vulkan = ctypes.CDLL(_LIBRARY)
    except OSError:
        return "none"
    application = _Application(kind=_APPLICATION, api_version=_VERSION)
    wanted = _Instance(kind=_INSTANCE, application=ctypes.pointer(application))
    instance, count = c_void_p(), c_uint32()
    if vulkan.vkCreateInstance(byref(wanted), None, byref(instance)) != 0:
        return "none"
    try:
        vulkan.vkEnumeratePhysicalDevices(instance, byref(count), None)
        devices = (c_void_p * count.value)()
        vulkan.vkEnumeratePhysicalDevices(instance, byref(count), devices)
        return "; ".join(_describe(vulkan, device) for device in devices[: count.value]) or "none"
    finally:
        vulkan.vkDestroyInstance(instance, None)


def _describe(vulkan: ctypes.CDLL, device: int) -> str:
    driver = _Driver(kind=_DRIVER)
    found = _Properties(kind=_PROPERTIES, next=ctypes.cast(ctypes.pointer(driver), c_void_p))
    vulkan.vkGetPhysicalDeviceProperties2(c_void_p(device), byref(found))
    return ", ".join(part.decode(errors="replace") for part in (found.name, driver.name, driver.info) if part)
