"""Print what the kernels in wheels need of the system, and fail if that is more than the tag of a wheel promises."""

import io
import re
import struct
import sys
import zipfile
from pathlib import Path

from elftools.elf.elffile import ELFFile
from elftools.elf.gnuversions import GNUVerNeedSection

_BUILD_VERSION, _MAGIC_64 = 0x32, 0xFEEDFACF  # load command and magic number of Mach-O
_SIZE_LIMIT = 1 << 20


def elf_needs(library: bytes) -> tuple[set[str], tuple[int, int]]:
    """Return the libraries that an ELF file loads, and the newest version of glibc whose symbols it uses."""
    elf = ELFFile(io.BytesIO(library))
    needed = {tag.needed for tag in elf.get_section_by_name(".dynamic").iter_tags() if tag.entry.d_tag == "DT_NEEDED"}
    sections = [section for section in elf.iter_sections() if isinstance(section, GNUVerNeedSection)]
    names = [aux.name for section in sections for _, auxiliaries in section.iter_versions() for aux in auxiliaries]
    if foreign := [name for name in names if not name.startswith("GLIBC_")]:
        sys.exit(f"needs {', '.join(foreign)}")
    versions = [re.findall(r"\d+", name)[:2] for name in names]
    return needed, max((int(major), int(minor)) for major, minor in versions)


def macos_needs(library: bytes) -> tuple[int, int]:
    """Return the oldest macOS that loads a Mach-O file."""
    magic, _, _, _, n_commands = struct.unpack_from("<5I", library)
    if magic != _MAGIC_64:
        sys.exit("not a 64-bit Mach-O library")
    at = 32
    for _ in range(n_commands):
        command, size = struct.unpack_from("<2I", library, at)
        if command == _BUILD_VERSION:
            (oldest,) = struct.unpack_from("<I", library, at + 12)
            return oldest >> 16, oldest >> 8 & 0xFF
        at += size
    sys.exit("has no minimum version")


def main() -> None:
    for path in map(Path, sys.argv[1:]):
        with zipfile.ZipFile(path) as wheel:
            (name,) = (name for name in wheel.namelist() if "kernels/libpplx_kernels" in name)
            library = wheel.read(name)
        platform, *promised = re.search(r"-(manylinux|macosx)_(\d+)_(\d+)_", path.name).groups()  # type: ignore[union-attr]
        limit = tuple(map(int, promised))
        if platform == "macosx":
            found, what = macos_needs(library), "macOS"
        else:
            (needed, found), what = elf_needs(library), "glibc"
            if system := needed - {"libc.so.6", "libm.so.6", "libpthread.so.0", "libdl.so.2", "ld-linux-aarch64.so.1"}:
                sys.exit(f"{path.name}: loads {', '.join(system)}")
        print(f"{path.name}: {len(library):,} bytes, needs {what} {'.'.join(map(str, found))}")
        if found > limit or len(library) > _SIZE_LIMIT:
            sys.exit(f"{path.name}: needs more than its tag says, or is larger than {_SIZE_LIMIT:,} bytes")


if __name__ == "__main__":
    main()
