"""Files that break readers: what each is, and the code of the reason that it must be given (None: it is read)."""

import io
import json
import os
import socket
import struct
import zipfile
import zlib
from collections.abc import Callable
from contextlib import chdir
from functools import cache
from pathlib import Path

DOCX_PARTS = {
    "[Content_Types].xml": "<Types xmlns='http://schemas.openxmlformats.org/package/2006/content-types'/>",
    "_rels/.rels": (
        "<Relationships xmlns='http://schemas.openxmlformats.org/package/2006/relationships'><Relationship Id='r1' "
        "Type='http://schemas.openxmlformats.org/officeDocument/2006/relationships/officeDocument' "
        "Target='word/document.xml'/></Relationships>"
    ),
}
WORD = "http://schemas.openxmlformats.org/wordprocessingml/2006/main"


def docx(body: str, **more: str) -> bytes:
    """A Word document of the given XML; `more` adds entries to the archive."""
    document = f"<w:document xmlns:w='{WORD}'><w:body>{body}</w:body></w:document>"
    return zipped(DOCX_PARTS | {"word/document.xml": document} | more)


def paragraph(text: str) -> str:
    return f"<w:p><w:r><w:t>{text}</w:t></w:r></w:p>"


def zipped(entries: dict[str, str] | dict[str, bytes]) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in entries.items():
            archive.writestr(name, content)
    return file.getvalue()


@cache
def ratio_bomb() -> bytes:
    """An entry of 100 MB of blanks in a hundred kilobytes."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in DOCX_PARTS.items():
            archive.writestr(name, content)
        with archive.open("word/document.xml", "w") as entry:
            for _ in range(10):
                entry.write(b" " * (10 << 20))
    return file.getvalue()


def lying_bomb() -> bytes:
    """An entry that says it has 100 bytes, and has 100 MB."""
    bomb = bytearray(ratio_bomb())
    size = struct.pack("<L", 100 << 20)
    at = bomb.find(size)
    while at >= 0:
        bomb[at : at + 4] = struct.pack("<L", 100)
        at = bomb.find(size)
    return bytes(bomb)


def bomb_of_bombs() -> bytes:
    """Sixteen documents inside each other, each beside a bomb."""
    inner = ratio_bomb()
    for _ in range(16):
        inner = zipped({"inner.docx": inner})
    return inner


def many_entries(n_entries: int = 70_000) -> bytes:
    """An archive of nothing but its list of entries, all of which are the same few bytes."""
    name, payload = b"word/document.xml", zlib.compress(b"x")[2:-4]
    local = struct.pack("<4s5H3L2H", b"PK\x03\x04", 20, 0, 8, 0, 0, zlib.crc32(b"x"), len(payload), 1, len(name), 0)
    fields = (b"PK\x01\x02", 20, 20, 0, 8, 0, 0, zlib.crc32(b"x"), len(payload), 1, len(name), 0, 0, 0, 0, 0, 0)
    entry = struct.pack("<4s6H3L5H2L", *fields) + name
    start = local + name + payload
    count = min(n_entries, 0xFFFF)
    end = struct.pack("<4s4H2LH", b"PK\x05\x06", 0, 0, count, count, n_entries * len(entry), len(start), 0)
    return start + entry * n_entries + end


def billion_laughs() -> bytes:
    entities = "".join(f"<!ENTITY l{i} '{f'&l{i - 1};' * 10}'>" for i in range(1, 10))
    document = (
        f"<?xml version='1.0'?><!DOCTYPE lolz [<!ENTITY l0 'lol'>{entities}]>"
        f"<w:document xmlns:w='{WORD}'><w:body><w:p><w:r><w:t>&l9;</w:t></w:r></w:p></w:body></w:document>"
    )
    return zipped(DOCX_PARTS | {"word/document.xml": document})


def external_entity() -> bytes:
    document = (
        "<?xml version='1.0'?><!DOCTYPE d [<!ENTITY secret SYSTEM 'file:///etc/passwd'>]>"
        f"<w:document xmlns:w='{WORD}'><w:body><w:p><w:r><w:t>&secret;</w:t></w:r></w:p></w:body></w:document>"
    )
    return zipped(DOCX_PARTS | {"word/document.xml": document})


def encrypted_zip() -> bytes:
    archive = bytearray(docx(paragraph("secret")))
    for signature, offset in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        at = archive.find(signature)
        while at >= 0:
            archive[at + offset] |= 1
            at = archive.find(signature, at + 4)
    return bytes(archive)


def encrypted_office() -> bytes:
    return b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1" + bytes(504) + "EncryptedPackage".encode("utf-16-le") + bytes(2048)


def sparse_line(path: Path) -> None:
    """Two gigabytes that are one line of NUL bytes and take no room."""
    with open(path, "wb") as file:
        file.write(b"log: ")
        os.truncate(file.fileno(), 2 << 30)


def long_line(path: Path) -> None:
    """Eighty megabytes of letters without a line end."""
    with open(path, "wb") as file:
        for _ in range(80):
            file.write(b"abcdefgh" * (1 << 17))


def late_nuls(path: Path) -> None:
    """Text that turns into NUL bytes behind the part that is looked at first."""
    path.write_bytes(b"a line of text\n" * 1000 + bytes(1 << 20))


def loop_pdf() -> bytes:
    """A PDF whose tree of pages contains itself."""
    return pdf_of(
        [
            b"<< /Type /Catalog /Pages 2 0 R >>",
            b"<< /Type /Pages /Kids [2 0 R 2 0 R] /Count 100000000 >>",
        ]
    )


def laughing_pdf(n_levels: int = 9, times: int = 10) -> bytes:
    """A page that draws a form ten times, which draws another one ten times, and so on: a thousand million words.

    It takes all the time and all the memory that there is; which it has used up first depends on the machine.
    """
    forms = [b"/X Do " * times] * n_levels + [b"BT /F 12 Tf 1 1 Td (ha) Tj ET"]
    objects = page_of(forms[0], b"/XObject << /X 6 0 R >>")
    for i, form in enumerate(forms[1:], start=6):
        further = b"/XObject << /X %d 0 R >>" % (i + 1) if i < 5 + n_levels else b""
        head = b"/Type /XObject /Subtype /Form /BBox [0 0 99 99] /Resources << /Font << /F 5 0 R >> %s >>" % further
        objects.append(stream(form, head))
    return pdf_of(objects)


def scan_pdf() -> bytes:
    """A page that is an image."""
    head = b"/Type /XObject /Subtype /Image /Width 8 /Height 8 /ColorSpace /DeviceGray /BitsPerComponent 8"
    return pdf_of([*page_of(b"q 99 0 0 99 0 0 cm /X Do Q", b"/XObject << /X 6 0 R >>"), stream(bytes(64), head)])


def encrypted_pdf() -> bytes:
    """A PDF that no known password opens."""
    key = b"<%s>" % (b"5a" * 32)
    return pdf_of(
        page_of(b"BT /F 12 Tf (secret) Tj ET"),
        b"/ID [<00> <00>] /Encrypt << /Filter /Standard /V 1 /R 2 /P -4 /O %s /U %s >>" % (key, key),
    )


def text_pdf(text: str) -> bytes:
    """A page that says something."""
    return pdf_of(page_of(b"BT /F 12 Tf 20 50 Td (%s) Tj ET" % text.encode("ascii")))


def page_of(content: bytes, resources: bytes = b"") -> list[bytes]:
    """The objects of a document of one page, five of them; what `resources` name comes after them."""
    return [
        b"<< /Type /Catalog /Pages 2 0 R >>",
        b"<< /Type /Pages /Kids [3 0 R] /Count 1 >>",
        b"<< /Type /Page /Parent 2 0 R /MediaBox [0 0 400 99] /Contents 4 0 R"
        b" /Resources << /Font << /F 5 0 R >> %s >> >>" % resources,
        stream(content),
        b"<< /Type /Font /Subtype /Type1 /BaseFont /Helvetica >>",
    ]


def stream(content: bytes, head: bytes = b"") -> bytes:
    return b"<< %s /Length %d >>\nstream\n%s\nendstream" % (head, len(content), content)


def pdf_of(objects: list[bytes], trailer: bytes = b"") -> bytes:
    content, places = b"%PDF-1.4\n", []
    for i, body in enumerate(objects):
        places.append(len(content))
        content += b"%d 0 obj\n%s\nendobj\n" % (i + 1, body)
    table = b"".join(b"%010d 00000 n \n" % place for place in places)
    size = len(objects) + 1
    head = b"xref\n0 %d\n0000000000 65535 f \n" % size
    tail = b"trailer << /Root 1 0 R /Size %d %s >>\nstartxref\n%d\n%%%%EOF" % (size, trailer, len(content))
    return content + head + table + tail


def deep_mail(depth: int = 1200) -> bytes:
    """A multipart message in a multipart message, and so on."""
    head = b"Subject: deep\nMIME-Version: 1.0\n"
    for i in range(depth):
        head += b"Content-Type: multipart/mixed; boundary=b%d\n\n--b%d\n" % (i, i)
    return head + b"Content-Type: text/plain\n\nbottom\n"


def written(content: bytes | Callable[[], bytes]) -> Callable[[Path], None]:
    def write(path: Path) -> None:
        path.write_bytes(content if isinstance(content, bytes) else content())

    return write


# name -> how it is written, and the code of the reason, None for a file that is read
HOSTILE: dict[str, tuple[Callable[[Path], None], str | None]] = {
    "ratio-bomb.docx": (written(ratio_bomb), "zip-bomb"),
    "lying-bomb.docx": (written(lying_bomb), "damaged"),
    "bomb-of-bombs.docx": (written(bomb_of_bombs), "damaged"),
    "many-entries.docx": (written(many_entries), "zip-bomb"),
    "more-entries-than-told.docx": (written(lambda: many_entries(400_000)), "zip-bomb"),
    "billion-laughs.docx": (written(billion_laughs), "unsafe"),
    "external-entity.docx": (written(external_entity), "unsafe"),
    "traversal.docx": (written(lambda: docx(paragraph("x"), **{"../../etc/passwd": "x"})), "unsafe"),
    "absolute.docx": (written(lambda: docx(paragraph("x"), **{"/etc/passwd": "x"})), "unsafe"),
    "drive.docx": (written(lambda: docx(paragraph("x"), **{"C:\\x\\..\\y": "x"})), "unsafe"),
    "deep.docx": (written(lambda: docx("<w:sdt>" * 100_000)), "too-deep"),
    "broken-xml.docx": (written(lambda: docx("<w:p><w:r>")), "damaged"),
    "cut.docx": (written(lambda: docx(paragraph("x") * 1000)[:500]), "damaged"),
    "empty.docx": (written(b""), "damaged"),
    "not-a-zip.docx": (written(b"plain text under a false name"), "damaged"),
    "other-zip.docx": (written(lambda: zipped({"a.txt": "text"})), "damaged"),
    "encrypted-zip.docx": (written(encrypted_zip), "encrypted"),
    "encrypted.xlsx": (written(encrypted_office), "encrypted"),
    "old.docx": (written(b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1" + bytes(4096)), "unsupported"),
    "sparse.log": (sparse_line, "binary"),
    "late-nuls.txt": (late_nuls, "binary"),
    "nul.txt": (written(b"a\0b"), "binary"),
    "random.txt": (written(bytes(range(1, 256)) * 40), "binary"),
    "picture.txt": (written(b"\x89PNG\r\n\x1a\nrest"), "binary"),
    "archive.md": (written(lambda: docx(paragraph("x"))), "binary"),
    "empty.txt": (written(b""), None),
    "mixed.txt": (written("grün\n".encode() * 50 + "grau-blaue Möwe\n".encode("latin-1")), None),
    "deep.html": (written(b"<div>" * 100_000 + b"bottom"), "too-deep"),
    "unclosed.html": (written(b"<p><b><li>x" * 2000 + b"bottom"), None),
    "binary.html": (written(b"<p>\0\0\0"), "binary"),
    "empty.html": (written(b""), None),
    "deep.json": (written(lambda: b"[" * 4_000 + b"]" * 4_000), None),
    "deep.jsonl": (written(lambda: b'{"a":' * 2_000 + b"\n"), None),
    "surrogate.jsonl": (written(json.dumps({"a": "\ud800"}).encode()), None),
    "loop.pdf": (written(loop_pdf), "damaged"),
    "scan.pdf": (written(scan_pdf), "no-text"),
    "encrypted.pdf": (written(encrypted_pdf), "encrypted"),
    "cut.pdf": (written(b"%PDF-1.4\n1 0 obj\n<< /Type /Cat"), "damaged"),
    "empty.pdf": (written(b""), "damaged"),
    "not.pdf": (written(b"plain text under a false name"), "damaged"),
    "deep.eml": (written(deep_mail), None),
    "not.eml": (written(b"\x7fELF plain nonsense"), "damaged"),
    "not.mbox": (written(b"plain text under a false name\n"), "damaged"),
    "empty.mbox": (written(b""), None),
    "escapes.md": (written(b"# \x1b]0;title\x07 red\n\n\x1b[31mThe text is red.\x1b[0m\x9b2J\n"), None),
    "escapes.html": (written(b"<title>\x1b]0;title\x07</title><p>\x1b[31mThe text is red, too.&#27;[0m"), None),
    "escapes.eml": (written(b"Subject: =?utf-8?q?=1B]0;title=07?=\nFrom: =?utf-8?q?=1B[31m?= <a@b.c>\n\nRed.\n"), None),
    "line\nend.txt": (written(b"name with a line end"), None),
    "\x1b[31mred\x1b]0;title\x07.txt": (written(b"name that colors a terminal"), None),
    "--help.txt": (written(b"name that looks like an option"), None),
    "n" * 251 + ".txt": (written(b"name as long as one may be"), None),
    "\u202egpj.txt": (written(b"name that runs from right to left"), None),
    os.fsdecode(b"byte-\xff.txt"): (written(b"name that is not Unicode"), None),
}

STUB_PDF = b"%PDF-stub "  # a file that begins so makes the parser of pdf_stub.py misbehave as it says
MISBEHAVING = {
    "dies.pdf": ("die", "crashed"),
    "leaves.pdf": ("leave", "crashed"),
    "raises.pdf": ("raise", "crashed"),
    "forges.pdf": ("forge \x00\x00", "crashed"),
    "hoards.pdf": ("hoard", "memory"),
    "allocates.pdf": ("allocate", "memory"),
    "recurses.pdf": ("recurse", "too-deep"),
    "spins.pdf": ("spin", "timeout"),
    "connects.pdf": ("connect", "unreadable"),
    "starts.pdf": ("start", "unreadable"),
    "prints.pdf": ("print", None),
}


def write_hostile_folder(folder: Path) -> dict[str, str | None]:
    """Everything hostile below a folder; gives the code of the reason for each path, None for what is read.

    The codes of what a walk passes over are its reasons.
    """
    expected: dict[str, str | None] = {}
    for name, (write, code) in HOSTILE.items():
        try:
            write(folder / name)
        except OSError:  # a file system that takes Unicode names only
            continue
        expected[name] = code
    for name, (order, code) in MISBEHAVING.items():
        (folder / name).write_bytes(STUB_PDF + order.encode())
        expected[name] = code
    return expected | _write_what_is_passed_over(folder)


def _write_what_is_passed_over(folder: Path) -> dict[str, str | None]:
    (folder / "traversal.zip").write_bytes(zipped({"../../etc/passwd": "x"}))
    os.mkfifo(folder / "pipe.txt")
    with socket.socket(socket.AF_UNIX) as plug, chdir(folder):
        plug.bind("plug.txt")  # macOS limits the path of a socket to 104 bytes
    (folder / "loop").mkdir()
    (folder / "loop" / "again").symlink_to(folder, target_is_directory=True)
    (folder / "self.txt").symlink_to(folder / "self.txt")
    (folder / "nowhere.txt").symlink_to("/nowhere/at/all.txt")
    deep = folder.joinpath(*["d"] * 300)
    deep.mkdir(parents=True)
    (deep / "bottom.txt").write_text("a file far down", encoding="ascii")
    return {
        "traversal.zip": "no reader for .zip files",
        "pipe.txt": "not a regular file",
        "plug.txt": "not a regular file",
        "loop/again": "symbolic link",
        "self.txt": "symbolic link",
        "nowhere.txt": "symbolic link",
        str((deep / "bottom.txt").relative_to(folder)): None,
    }


def dig(folder: Path, n_levels: int = 20) -> None:
    """Folders within each other, until their path is longer than the system takes."""
    inside = os.open(folder, os.O_RDONLY)
    for _ in range(n_levels):
        os.mkdir("e" * 250, dir_fd=inside)
        below = os.open("e" * 250, os.O_RDONLY, dir_fd=inside)
        os.close(inside)
        inside = below
    os.close(os.open("bottom.txt", os.O_CREAT | os.O_WRONLY, dir_fd=inside))
    os.close(inside)
