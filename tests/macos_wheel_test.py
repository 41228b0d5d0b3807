# SPDX-License-Identifier: MIT
"""Inspects a cross-built macOS wheel: macos_wheel_test.py WHEEL.

Nothing here can run the module, but what the loader of a Mac looks at can be read: the processor,
the oldest system, the libraries, and which library each missing symbol is to come from.
"""

from __future__ import annotations

import re
import struct
import sys
import unittest
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass, field

_MAGIC_64, _ARM64, _DYLIB, _BUNDLE = 0xFEEDFACF, 0x0100000C, 6, 8
_SYMTAB, _LOAD_DYLIB, _BUILD_VERSION, _BINDINGS = 0x2, 0xC, 0x32, 0x80000022
_LOAD_COMMANDS_OF_LIBRARIES = (_LOAD_DYLIB, 0x80000018, 0x8000001F, 0x80000023)
_MACOS = 1
_EXTERNAL, _TYPE, _UNDEFINED, _DEBUG = 0x01, 0x0E, 0x0, 0xE0
_ANY_LIBRARY = -2  # the symbol is looked for in whatever is loaded: the interpreter

# What the loader is told symbol by symbol: an operation in the upper half of a byte, a small number
# in the lower half, perhaps followed by longer numbers.
_SET_LIBRARY, _SET_LONG_LIBRARY, _SET_ANY_LIBRARY, _SET_SYMBOL = 0x10, 0x20, 0x30, 0x40
_BIND = (0x90, 0xA0, 0xB0, 0xC0)
_LONG_NUMBERS = {0x20: 1, 0x60: 1, 0x70: 1, 0x80: 1, 0xA0: 1, 0xC0: 2}


@dataclass
class Image:
    """What is of interest in a Mach-O file."""

    processor: int
    kind: int
    platform: int = 0
    oldest_system: tuple[int, int] = (0, 0)
    libraries: list[str] = field(default_factory=list)
    #: Missing symbols and the number of the library that each is to come from.
    missing: dict[str, int] = field(default_factory=dict)
    undefined: list[str] = field(default_factory=list)
    exported: list[str] = field(default_factory=list)


def commands(content: bytes) -> Iterator[tuple[int, int]]:
    """Kind and place of each load command."""
    count, place = struct.unpack_from("<I", content, 16)[0], 32
    for _ in range(count):
        kind, size = struct.unpack_from("<II", content, place)
        yield kind, place
        place += size


def text_at(content: bytes, place: int) -> str:
    return content[place : content.index(b"\0", place)].decode()


def read_symbols(content: bytes, place: int, image: Image) -> None:
    offset, count, strings = struct.unpack_from("<III", content, place + 8)
    for n in range(count):
        name, kind = struct.unpack_from("<IB", content, offset + 16 * n)
        if kind & _DEBUG or not kind & _EXTERNAL:
            continue
        is_undefined = kind & _TYPE == _UNDEFINED
        (image.undefined if is_undefined else image.exported).append(
            text_at(content, strings + name)
        )


def long_number(content: bytes, place: int) -> tuple[int, int]:
    """A number in groups of seven bits, and the place behind it."""
    number = shift = 0
    while True:
        byte = content[place]
        number |= (byte & 0x7F) << shift
        place, shift = place + 1, shift + 7
        if byte < 0x80:
            return number, place


def bindings(content: bytes, place: int, end: int) -> Iterator[tuple[str, int]]:
    """Each symbol that the loader is to look up between two places, and the library's number."""
    symbol, library = "", 0
    while place < end:
        operation, small = content[place] & 0xF0, content[place] & 0x0F
        place += 1
        numbers = []
        for _ in range(_LONG_NUMBERS.get(operation, 0)):
            number, place = long_number(content, place)
            numbers.append(number)
        if operation == _SET_LIBRARY:
            library = small
        elif operation == _SET_LONG_LIBRARY:
            library = numbers[0]
        elif operation == _SET_ANY_LIBRARY:
            library = small - 16 if small else 0
        elif operation == _SET_SYMBOL:
            symbol = text_at(content, place)
            place += len(symbol) + 1
        elif operation in _BIND:
            yield symbol, library


def read_bindings(content: bytes, place: int, image: Image) -> None:
    """Those that are resolved when the module is loaded, and those that are when first called."""
    fields = struct.unpack_from("<10I", content, place + 8)
    for offset, size in (fields[2:4], fields[6:8]):
        image.missing.update(bindings(content, offset, offset + size))


def read(content: bytes) -> Image:
    magic, processor, _, kind = struct.unpack_from("<IIII", content)
    if magic != _MAGIC_64:
        raise ValueError(f"not a 64-bit Mach-O file: it begins with {magic:#x}")
    image = Image(processor, kind)
    for command, place in commands(content):
        if command in _LOAD_COMMANDS_OF_LIBRARIES:
            offset = struct.unpack_from("<I", content, place + 8)[0]
            image.libraries.append(text_at(content, place + offset))
        elif command == _BUILD_VERSION:
            image.platform, oldest = struct.unpack_from("<II", content, place + 8)
            image.oldest_system = (oldest >> 16, oldest >> 8 & 0xFF)
        elif command == _SYMTAB:
            read_symbols(content, place, image)
        elif command == _BINDINGS:
            read_bindings(content, place, image)
    return image


class MacWheel(unittest.TestCase):
    wheel = ""

    def setUp(self) -> None:
        self.archive = zipfile.ZipFile(self.wheel)
        self.addCleanup(self.archive.close)
        modules = [name for name in self.archive.namelist() if name.endswith(".so")]
        self.assertEqual(len(modules), 1, modules)
        self.module = modules[0]
        self.image = read(self.archive.read(self.module))

    def test_tag(self) -> None:
        self.assertRegex(self.wheel, r"-cp3\d+-(abi3|cp3\d+)-macosx_14_0_arm64\.whl$")
        tag = self.wheel.rsplit("-", 3)[1:]
        (info,) = (name for name in self.archive.namelist() if name.endswith("/WHEEL"))
        self.assertIn(f"Tag: {'-'.join(tag)[:-4]}\n", self.archive.read(info).decode())

    def test_name_of_the_module(self) -> None:
        self.assertRegex(self.module, r"^mps_sdpa/_core\.(abi3|cpython-3\d+-darwin)\.so$")
        self.assertEqual(".abi3." in self.module, "-abi3-" in self.wheel)

    def test_processor_and_system(self) -> None:
        self.assertEqual(self.image.processor, _ARM64)
        self.assertIn(self.image.kind, (_BUNDLE, _DYLIB))
        self.assertEqual(self.image.platform, _MACOS)
        self.assertEqual(self.image.oldest_system, (14, 0))

    def test_it_needs_nothing_but_the_system(self) -> None:
        self.assertEqual(self.image.libraries, ["/usr/lib/libSystem.B.dylib"])

    def test_missing_symbols_are_the_systems_or_pythons(self) -> None:
        self.assertTrue(self.image.missing)
        self.assertLessEqual(set(self.image.missing), set(self.image.undefined))
        for name, library in self.image.missing.items():
            is_pythons = re.match(r"__?Py", name) is not None
            self.assertEqual(library, _ANY_LIBRARY if is_pythons else 1, f"{name} is nobody's")
        for name in self.image.undefined:  # also those that only code needs which was left out
            self.assertNotRegex(name, r"^__Z", "C++'s own library is linked in")

    def test_python_finds_the_module(self) -> None:
        self.assertIn("_PyInit__core", self.image.exported)

    def test_the_metal_host_code_and_kernels_are_in_it(self) -> None:
        content = self.archive.read(self.module)
        for text in (b"Metal.framework", b"newLibraryWithSource:options:error:", b"SDPA_UNROLL"):
            self.assertIn(text, content)


if __name__ == "__main__":
    MacWheel.wheel = sys.argv.pop()
    unittest.main()
