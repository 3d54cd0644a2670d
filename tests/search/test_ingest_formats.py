"""Documents that real libraries wrote: the text that was put in comes out, on its page and under its heading."""

import datetime
import io
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hostile_files import docx, paragraph, zipped

from pplx_edge.text.structure import Structure
from pplx_search.documents import Document, Piece
from pplx_search.ingest import dates
from pplx_search.ingest.reading import Reader, ReadFailed


@pytest.fixture
def read(reader: Reader) -> Callable[[Path], Document]:
    """Reads the one document of a file, whose pieces may be looked at any time after."""

    def read_one(path: Path) -> Document:
        with reader.read(path) as found:
            (document,) = found.documents
            return Document(
                kind=document.kind,
                pieces=tuple(document.pieces),
                title=document.title,
                markup=document.markup,
                metadata=document.metadata,
                remarks=document.remarks,
            )

    return read_one


Read = Callable[[Path], Document]


def headings(document: Document) -> list[tuple[int, str]]:
    """Level and title of what the chunker takes for headings."""
    return [(each.level, each.title) for each in Structure(document.text).headings]


def pages(document: Document) -> dict[int | None, str]:
    found: dict[int | None, str] = {}
    for piece in document.pieces:
        found[piece.page] = found.get(piece.page, "") + piece.text
    return found


# HTML


PAGE = """<!doctype html><html lang=en><head><meta charset=utf-8><title>The &amp; page</title>
<meta name=author content="Ann Author"><meta property="article:published_time" content="2026-01-31T12:00:00+01:00">
<style>p { color: red }</style><script>var hidden = "<p>script</p>"</script></head><body>
<nav><a href=/>Home</a></nav><h1>Top   <em>heading</em></h1>
<p>Some <b>bold</b>ness, and a<br>second line.<script>bad()</script>
<p># not a heading<ul><li>one<li>two<ol><li>deep<li>deeper</ol></ul>
<h2></h2><h3>Third</h3><table><tr><th>Name<th>Value<tr><td>pi<td>3.14 <b>15</b></table>
<pre>  code
    more</pre><div>loose <div>inner</div> tail</div><img src=x alt="a picture"><noscript>no</noscript></body>"""


def test_a_page_keeps_headings_lists_and_tables_and_loses_scripts_and_navigation(tmp_path: Path, read: Read):
    (tmp_path / "a.html").write_text(PAGE, encoding="utf-8")
    document = read(tmp_path / "a.html")
    assert document.text == (
        "# Top heading\n\nSome boldness, and a\nsecond line.\n\n\\# not a heading\n\n- one\n- two\n  1. deep\n"
        "  2. deeper\n\n### Third\n\nName | Value\npi | 3.14 15\n\n  code\n    more\n\nloose\n\ninner\n\ntail\n\n"
        "a picture\n"
    )
    assert headings(document) == [(1, "Top heading"), (3, "Third")]
    assert (document.title, document.kind, document.markup) == ("The & page", "html", "markdown")
    assert document.metadata == {"author": "Ann Author", "date": "2026-01-31T12:00:00+01:00"}


@pytest.mark.parametrize("charset", ["windows-1251", "iso-8859-1", "shift_jis", "utf-8", "utf-16"])
def test_a_page_is_read_in_the_charset_that_it_names(charset: str, tmp_path: Path, read: Read):
    word = {"windows-1251": "Привет", "shift_jis": "日本語"}.get(charset, "Größe")
    page = f"<meta charset={charset}><p>{word}</p>"
    (tmp_path / "a.html").write_bytes(page.encode(charset))
    assert read(tmp_path / "a.html").text == word + "\n"


def test_a_page_without_a_title_has_its_first_heading(tmp_path: Path, read: Read):
    (tmp_path / "a.html").write_text("<p>x<h2>Heading</h2>", encoding="ascii")
    assert read(tmp_path / "a.html").title == "Heading"


def test_menus_and_links_of_headings_are_not_text(tmp_path: Path, read: Read):
    page = (
        "<div role=navigation><h3>Contents</h3><ul><li>One</ul></div>"
        "<h1>One<a class=headerlink href=#one>\u00b6</a></h1><p>before<nav>menu</nav>after<div role=search>find</div>"
    )
    (tmp_path / "a.html").write_text(page, encoding="utf-8")
    assert read(tmp_path / "a.html").text == "# One\n\nbefore\n\nafter\n"


def test_a_page_of_nothing_but_navigation_is_kept(tmp_path: Path, read: Read):
    page = "<nav><h2>Contents</h2><ul><li>One<li>Two</ul></nav> <script>x</script>"
    (tmp_path / "a.html").write_text(page, encoding="utf-8")
    assert read(tmp_path / "a.html").text == "## Contents\n\n- One\n- Two\n"


def test_a_table_in_a_table_is_part_of_its_cell(tmp_path: Path, read: Read):
    page = "<table><tr><td>a<table><tr><td>b<td>c</table><td>d<tr><td><h2>e</h2><td></table>"
    (tmp_path / "a.html").write_text(page, encoding="ascii")
    assert read(tmp_path / "a.html").text == "a b c | d\ne\n"


# Office


def test_a_word_document_keeps_headings_lists_and_tables(tmp_path: Path, read: Read):
    word = pytest.importorskip("docx")
    document = word.Document()
    document.core_properties.title, document.core_properties.author = "The report", "Ann"
    document.core_properties.modified = datetime.datetime(2026, 1, 31, 12, 0)
    document.add_heading("Part", 0)
    document.add_heading("Chapter", 1)
    document.add_paragraph("Words\tand words\nin two lines")
    document.add_paragraph("# no heading")
    document.add_paragraph("first", style="List Bullet")
    document.add_paragraph("second", style="List Number")
    document.add_heading("Section", 2)
    table = document.add_table(2, 2)
    for i, text in enumerate(("a", "b", "c", "d")):
        table.cell(i // 2, i % 2).text = text
    document.sections[0].footer.paragraphs[0].text = "the footer"
    document.save(str(tmp_path / "a.docx"))
    found = read(tmp_path / "a.docx")
    assert found.text == (
        "# Part\n\n# Chapter\n\nWords and words\nin two lines\n\n\\# no heading\n\n- first\n- second\n\n"
        "## Section\n\na | b\nc | d\n\nthe footer\n"
    )
    assert headings(found) == [(1, "Part"), (1, "Chapter"), (2, "Section")]
    assert (found.title, found.kind) == ("The report", "docx")
    assert found.metadata == {"author": "Ann", "date": "2026-01-31T12:00:00+00:00"}


def test_deleted_text_is_left_out_and_inserted_text_is_read(tmp_path: Path, read: Read):
    body = (
        "<w:p><w:r><w:t>kept </w:t></w:r><w:del><w:r><w:delText>deleted</w:delText></w:r></w:del>"
        "<w:ins><w:r><w:t>inserted</w:t></w:r></w:ins></w:p>"
        "<w:p><w:r><w:instrText>HYPERLINK</w:instrText></w:r><w:r><w:t>link</w:t></w:r></w:p>"
        "<w:p><w:r><w:t>around</w:t><w:txbxContent>"
        "<w:p><w:r><w:t>in a box</w:t></w:r></w:p></w:txbxContent></w:r></w:p>"
    )
    (tmp_path / "a.docx").write_bytes(docx(body))
    assert read(tmp_path / "a.docx").text == "kept inserted\n\nlink\n\nin a box\n\naround\n"


def test_slides_are_pages_with_their_notes(tmp_path: Path, read: Read):
    pptx = pytest.importorskip("pptx")
    deck = pptx.Presentation()
    slide = deck.slides.add_slide(deck.slide_layouts[1])
    slide.shapes.title.text, slide.placeholders[1].text = "First slide", "one\ntwo"
    slide.notes_slide.notes_text_frame.text = "say this"
    slide = deck.slides.add_slide(deck.slide_layouts[5])
    slide.shapes.title.text = "Second slide"
    table = slide.shapes.add_table(2, 2, 0, 0, 100, 100).table
    table.cell(0, 0).text, table.cell(0, 1).text, table.cell(1, 1).text = "a", "b", "c"
    deck.save(str(tmp_path / "a.pptx"))
    found = read(tmp_path / "a.pptx")
    assert pages(found) == {
        1: "# First slide\n\none\n\ntwo\n\nsay this\n\n",
        2: "# Second slide\n\na | b\n | c\n",
    }
    assert headings(found) == [(1, "First slide"), (1, "Second slide")]
    assert found.title == "First slide"


def test_slides_are_in_the_order_in_which_they_are_shown(tmp_path: Path, read: Read):
    pptx = pytest.importorskip("pptx")
    deck = pptx.Presentation()
    for i in range(12):
        deck.slides.add_slide(deck.slide_layouts[5]).shapes.title.text = f"slide {i}"
    order = deck.slides._sldIdLst
    order.insert(0, order[11])
    deck.save(str(tmp_path / "a.pptx"))
    assert [title for _, title in headings(read(tmp_path / "a.pptx"))] == [
        "slide 11",
        *(f"slide {i}" for i in range(11)),
    ]


def test_sheets_are_pages_and_cells_are_as_people_see_them(tmp_path: Path, read: Read):
    openpyxl = pytest.importorskip("openpyxl")
    book = openpyxl.Workbook()
    sheet = book.active
    sheet.title = "Sums"
    sheet.append(["name", "value", "when"])
    sheet.append(["pi", 3.14159, datetime.date(2026, 1, 31)])
    sheet.append([])
    sheet.append(["# no heading", 0.1 + 0.2, datetime.datetime(2026, 1, 31, 12, 30), True, 12345678901, 7])
    sheet["F4"].number_format = '0 "days"'
    book.create_sheet("Other")["C3"] = "far\naway"
    book.create_sheet("Empty")
    book.save(tmp_path / "a.xlsx")
    found = read(tmp_path / "a.xlsx")
    assert pages(found) == {
        1: (
            "# Sums\n\nname | value | when\npi | 3.14159 | 2026-01-31\n"
            "\\# no heading | 0.3 | 2026-01-31 12:30:00 | TRUE | 12345678901 | 7\n\n"
        ),
        2: "# Other\n\n |  | far away\n\n",
        3: "# Empty\n",
    }
    assert found.title == ""


def test_an_opendocument_text_keeps_headings_lists_and_tables(tmp_path: Path, read: Read):
    pytest.importorskip("odf")
    from odf.dc import Title
    from odf.opendocument import OpenDocumentText
    from odf.table import Table, TableCell, TableRow
    from odf.text import H, LineBreak, List, ListItem, Note, NoteBody, NoteCitation, P, S

    document: Any = OpenDocumentText()
    document.meta.addElement(Title(text="The letter"))
    body = document.text
    body.addElement(H(outlinelevel=1, text="Chapter"))
    line = P(text="two")
    line.addElement(S(c=3))
    line.addText("words")
    line.addElement(LineBreak())
    line.addText("next line")
    note = Note(noteclass="footnote")
    note.addElement(NoteCitation(text="1"))
    note.addElement(NoteBody())
    note.childNodes[1].addElement(P(text="a note"))
    line.addElement(note)
    body.addElement(line)
    items = List()
    for text in ("one", "two"):
        item = ListItem()
        item.addElement(P(text=text))
        items.addElement(item)
    body.addElement(items)
    table, row = Table(name="t"), TableRow()
    for text in ("a", "b"):
        cell = TableCell()
        cell.addElement(P(text=text))
        row.addElement(cell)
    table.addElement(row)
    body.addElement(table)
    body.addElement(H(outlinelevel=2, text="Section"))
    document.save(str(tmp_path / "a.odt"))
    found = read(tmp_path / "a.odt")
    assert found.text == ("# Chapter\n\na note\n\ntwo words\nnext line\n\n- one\n- two\n\na | b\n\n## Section\n")
    assert (found.title, found.kind) == ("The letter", "odt")


def epub(chapters: dict[str, str], encryption: str = "") -> bytes:
    items = "".join(f"<item id='{name}' href='{name}' media-type='application/xhtml+xml'/>" for name in chapters)
    spine = "".join(f"<itemref idref='{name}'/>" for name in reversed(chapters))
    entries = {
        "mimetype": "application/epub+zip",
        "META-INF/container.xml": (
            "<container xmlns='urn:oasis:names:tc:opendocument:xmlns:container'><rootfiles>"
            "<rootfile full-path='OEBPS/book.opf'/></rootfiles></container>"
        ),
        "OEBPS/book.opf": (
            "<package xmlns='http://www.idpf.org/2007/opf' xmlns:dc='http://purl.org/dc/elements/1.1/'><metadata>"
            "<dc:title>The book</dc:title><dc:creator>Bob</dc:creator><dc:date>2020-05</dc:date></metadata>"
            f"<manifest>{items}</manifest><spine>{spine}</spine></package>"
        ),
    }
    if encryption:
        entries["META-INF/encryption.xml"] = (
            "<encryption xmlns='urn:oasis:names:tc:opendocument:xmlns:container'><EncryptedData>"
            f"<EncryptionMethod Algorithm='{encryption}'/></EncryptedData></encryption>"
        )
    return zipped(entries | {f"OEBPS/{name}": text for name, text in chapters.items()})


CHAPTERS = {
    "two.xhtml": "<!DOCTYPE html><html><body><h1>Second</h1><p>more&nbsp;text</p></body></html>",
    "one.xhtml": "<?xml version='1.0'?><html><body><h1>First</h1><p>text</p></body></html>",
}


def test_chapters_of_a_book_are_read_in_their_order(tmp_path: Path, read: Read):
    (tmp_path / "a.epub").write_bytes(epub(CHAPTERS))
    found = read(tmp_path / "a.epub")
    assert pages(found) == {1: "# First\n\ntext\n\n", 2: "# Second\n\nmore text\n"}
    assert (found.title, found.kind) == ("The book", "epub")
    assert found.metadata == {"author": "Bob", "date": "2020-05"}


def test_scrambled_fonts_do_not_make_a_book_unreadable_and_scrambled_chapters_do(tmp_path: Path, reader: Reader):
    (tmp_path / "fonts.epub").write_bytes(epub(CHAPTERS, "http://www.idpf.org/2008/embedding"))
    with reader.read(tmp_path / "fonts.epub") as found:
        assert found.documents[0].title == "The book"
    (tmp_path / "drm.epub").write_bytes(epub(CHAPTERS, "http://www.w3.org/2001/04/xmlenc#aes128-cbc"))
    with pytest.raises(ReadFailed, match="protected") as failed:
        reader.read(tmp_path / "drm.epub")
    assert failed.value.code == "encrypted"


def test_entries_of_an_archive_that_nobody_asks_for_may_be_damaged(tmp_path: Path, read: Read):
    archive = docx(paragraph("text"), **{"word/media/image.png": "not a picture"})
    (tmp_path / "a.docx").write_bytes(archive.replace(b"not a picture", b"bot a picture"))
    assert read(tmp_path / "a.docx").text == "text\n"


def test_an_entry_that_is_damaged_and_needed_is_named(tmp_path: Path, reader: Reader):
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as archive, zipfile.ZipFile(io.BytesIO(docx("x"))) as source:
        for name in source.namelist():
            archive.writestr(name, source.read(name))
    (tmp_path / "a.docx").write_bytes(file.getvalue().replace(b"<w:body>x", b"<w:body>y"))
    with pytest.raises(ReadFailed, match=r"word/document.xml: Bad CRC-32") as failed:
        reader.read(tmp_path / "a.docx")
    assert failed.value.code == "damaged"


# PDF


def canvas(path: Path, **options: Any) -> Any:
    return pytest.importorskip("reportlab.pdfgen.canvas").Canvas(str(path), **options)


def test_pages_of_a_pdf_keep_their_numbers(tmp_path: Path, read: Read):
    pdf = canvas(tmp_path / "a.pdf")
    pdf.setTitle("The paper")
    pdf.setAuthor("Ann")
    for i, lines in enumerate((["first line", "# second line"], [], ["third page"])):
        for j, line in enumerate(lines):
            pdf.drawString(72, 700 - 20 * j, line)
        pdf.showPage()
        assert i < 3
    pdf.save()
    found = read(tmp_path / "a.pdf")
    assert pages(found) == {1: "first line\n# second line\n\n", 3: "third page\n\n"}
    assert (found.title, found.kind, found.markup) == ("The paper", "pdf", "text")
    assert found.metadata["author"] == "Ann"
    assert datetime.datetime.fromisoformat(found.metadata["date"]).year >= 2024
    assert found.remarks == ()  # an empty page is no scan


def picture(tmp_path: Path) -> str:
    image = pytest.importorskip("PIL.Image")
    image.new("L", (40, 40)).save(tmp_path / "scan.png")
    return str(tmp_path / "scan.png")


def test_a_scan_is_reported_and_not_silently_empty(tmp_path: Path, reader: Reader):
    pdf = canvas(tmp_path / "a.pdf")
    for _ in range(3):
        pdf.drawImage(picture(tmp_path), 0, 0)
        pdf.showPage()
    pdf.save()
    with pytest.raises(ReadFailed, match="all of 3 pages are scanned images") as failed:
        reader.read(tmp_path / "a.pdf")
    assert failed.value.code == "no-text"
    assert len(failed.value.sha256) == 64


def test_scanned_pages_among_others_are_named(tmp_path: Path, read: Read):
    pdf = canvas(tmp_path / "a.pdf")
    for i in range(1, 8):
        if i in (2, 4, 5, 6):
            pdf.drawImage(picture(tmp_path), 0, 0)
        else:
            pdf.drawString(72, 700, f"page {i}")
        pdf.showPage()
    pdf.save()
    found = read(tmp_path / "a.pdf")
    assert sorted(page or 0 for page in pages(found)) == [1, 3, 7]
    assert found.remarks == ("no text layer on page 2, 4-6 of 7: images only",)


def test_an_encrypted_pdf_is_refused_and_one_that_opens_without_a_password_is_read(tmp_path: Path, reader: Reader):
    encryption = pytest.importorskip("reportlab.lib.pdfencrypt").StandardEncryption
    for name, password in (("shut", "secret"), ("open", "")):
        pdf = canvas(tmp_path / f"{name}.pdf", encrypt=encryption(password, ownerPassword="owner"))
        pdf.drawString(72, 700, "the text")
        pdf.save()
    with pytest.raises(ReadFailed, match="password") as failed:
        reader.read(tmp_path / "shut.pdf")
    assert failed.value.code == "encrypted"
    with reader.read(tmp_path / "open.pdf") as found:
        assert found.documents[0].text == "the text\n\n"


def test_a_pdf_that_is_cut_short_is_damaged_or_read_but_never_ends_the_reader(tmp_path: Path, reader: Reader):
    pdf = canvas(tmp_path / "a.pdf")
    for i in range(20):
        pdf.drawString(72, 700, f"page {i}")
        pdf.showPage()
    pdf.save()
    content = (tmp_path / "a.pdf").read_bytes()
    (tmp_path / "cut.pdf").write_bytes(content[: len(content) // 3])
    with pytest.raises(ReadFailed) as failed:
        reader.read(tmp_path / "cut.pdf")
    assert failed.value.code == "damaged"


def test_words_that_are_broken_at_the_end_of_a_line_are_whole(tmp_path: Path, read: Read):
    pdf = canvas(tmp_path / "a.pdf")
    pdf.drawString(72, 700, "the results are repre-")
    pdf.drawString(72, 685, "sentative")
    pdf.save()
    assert "representative" in read(tmp_path / "a.pdf").text


# Dates


@pytest.mark.parametrize(
    ("read_date", "text", "expected"),
    [
        (dates.iso, "2026-01-31T12:00:00Z", "2026-01-31T12:00:00+00:00"),
        (dates.iso, "2026-01", "2026-01"),
        (dates.iso, "31.01.2026", ""),
        (dates.iso, "2026-99-99T00:00:00", ""),
        (dates.from_pdf, "D:20260131120000+01'00'", "2026-01-31T12:00:00+01:00"),
        (dates.from_pdf, "D:2026", "2026-01-01T00:00:00"),
        (dates.from_pdf, "D:20261399", ""),
        (dates.from_pdf, "yesterday", ""),
        (dates.from_mail, "Sat, 31 Jan 2026 12:00:00 +0100", "2026-01-31T12:00:00+01:00"),
        (dates.from_mail, "some day", ""),
    ],
)
def test_dates_become_iso_8601(read_date: Callable[[str], str], text: str, expected: str):
    assert read_date(text) == expected


def test_pieces_of_a_page_follow_each_other(tmp_path: Path, read: Read):
    (tmp_path / "a.docx").write_bytes(docx("".join(paragraph("word " * 2000) for _ in range(30))))
    found = read(tmp_path / "a.docx")
    assert len(tuple(found.pieces)) > 1
    assert found.text == "\n\n".join([("word " * 2000).strip()] * 30) + "\n"
    assert all(isinstance(piece, Piece) for piece in found.pieces)
