"""The process that draws one page of a PDF: `python -m pplx_search.page.pdf_page PAGE PIXELS < FILE` writes a PNG.

PDFs are hostile. This process has no network, may start no programs, and is ended by the system after some seconds of
computing or when it takes too much memory.
"""

import os
import resource
import struct
import sys
import zlib
from typing import Any

_REFUSED_EVENTS = ("socket.", "subprocess.", "os.system", "os.exec", "os.fork", "os.posix_spawn")
CPU_SECONDS = 10
MEMORY_BYTES = 2 << 30
MAX_PIXELS = 1600


def main() -> None:
    page_number, width = int(sys.argv[1]), min(MAX_PIXELS, int(sys.argv[2]))
    import pypdfium2
    from pypdfium2.raw import FPDFBitmap_BGR

    resource.setrlimit(resource.RLIMIT_CPU, (CPU_SECONDS, CPU_SECONDS))
    if sys.platform == "linux":
        resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
    sys.addaudithook(_refuse)
    with os.fdopen(0, "rb") as file:
        document = pypdfium2.PdfDocument(file.read())
        if not 1 <= page_number <= len(document):
            sys.exit(3)
        page = document[page_number - 1]
        scale = min(width / max(1.0, page.get_width()), 2 * width / max(1.0, page.get_height()))
        options: dict[str, Any] = {"scale": scale, "rev_byteorder": True, "force_bitmap_format": FPDFBitmap_BGR}
        bitmap = page.render(**options)
        sys.stdout.buffer.write(png(bitmap.width, bitmap.height, bitmap.stride, bytes(bitmap.buffer)))
        sys.stdout.buffer.flush()


def png(width: int, height: int, stride: int, pixels: bytes) -> bytes:
    """Return an image as PNG from rows of red, green and blue bytes."""
    rows = b"".join(b"\0" + pixels[at : at + 3 * width] for at in range(0, height * stride, stride))
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    chunks = ((b"IHDR", header), (b"IDAT", zlib.compress(rows, 1)), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data)) for name, data in chunks
    )


def _refuse(event: str, _: tuple[object, ...]) -> None:
    if event.startswith(_REFUSED_EVENTS):
        raise PermissionError(f"{event}: the drawing process may not use the network or other programs")


if __name__ == "__main__":
    main()
