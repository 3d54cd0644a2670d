"""Messages and mailboxes that the standard library wrote."""

import mailbox
from email.message import EmailMessage
from pathlib import Path

import pytest

from pplx_search.ingest.reading import Reader, ReadFailed


def message(subject: str, text: str = "", *, page: str = "", message_id: str = "") -> EmailMessage:
    made = EmailMessage()
    made["Subject"], made["From"], made["To"] = (
        subject,
        "Ann Möller <ann@example.org>",
        "bob@example.org, c@example.org",
    )
    made["Date"] = "Sat, 31 Jan 2026 12:00:00 +0100"
    if message_id:
        made["Message-ID"] = message_id
    if text:
        made.set_content(text)
    if page:
        made.add_alternative(page, subtype="html")
    return made


def test_a_message_is_its_plain_text_under_its_subject(tmp_path: Path, reader: Reader):
    made = message("Größe der Möwe", "Line one\n# not a heading\n\n> quoted\n", page="<p>the page</p>")
    (tmp_path / "a.eml").write_bytes(bytes(made))
    with reader.read(tmp_path / "a.eml") as found:
        (document,) = found.documents
        assert document.text == (
            "# Größe der Möwe\n\nFrom: Ann Möller <ann@example.org>\nTo: bob@example.org, c@example.org\n"
            "Date: Sat, 31 Jan 2026 12:00:00 +0100\n\nLine one\n\\# not a heading\n\n> quoted\n"
        )
        assert (document.kind, document.title, document.part) == ("mail", "Größe der Möwe", "")
        assert document.metadata == {
            "from": "Ann Möller <ann@example.org>",
            "author": "Ann Möller <ann@example.org>",
            "to": "bob@example.org, c@example.org",
            "date": "2026-01-31T12:00:00+01:00",
        }
        assert document.remarks == ()


def test_a_message_without_plain_text_is_that_of_its_page(tmp_path: Path, reader: Reader):
    made = message("Offer")
    made.set_content("<h2>Offer</h2><p>Buy <b>now</b></p><script>x</script>", subtype="html")
    (tmp_path / "a.eml").write_bytes(bytes(made))
    with reader.read(tmp_path / "a.eml") as found:
        assert found.documents[0].text.endswith("\n\n## Offer\n\nBuy now\n")


def test_attachments_are_named_and_not_read(tmp_path: Path, reader: Reader):
    made = message("Files", "see the files")
    made.add_attachment(b"%PDF-", maintype="application", subtype="pdf", filename="Angebot – März.pdf")
    made.add_attachment("a,b", subtype="csv", filename="table.csv")
    made.add_attachment(message("inner", "inner text"))
    (tmp_path / "a.eml").write_bytes(bytes(made))
    with reader.read(tmp_path / "a.eml") as found:
        (document,) = found.documents
        assert "inner text" not in document.text
        assert document.remarks == (
            "attachments not read: Angebot – März.pdf, table.csv, (message/rfc822 without a name)",
        )


def test_every_message_of_a_mailbox_is_a_document_that_keeps_its_part(tmp_path: Path, reader: Reader):
    box = mailbox.mbox(tmp_path / "a.mbox")
    for i in range(5):
        box.add(message(f"message {i}", f"text {i}\n\nFrom the start of a line\n", message_id=f"<{i}@example.org>"))
    box.add(message("message 1", "again", message_id="<1@example.org>"))
    box.add(message("no id", "text"))
    box.flush()

    def parts() -> dict[str, str]:
        with reader.read(tmp_path / "a.mbox") as found:
            return {document.part: document.text for document in found.documents}

    before = parts()
    assert list(before)[:6] == [*(f"<{i}@example.org>" for i in range(5)), "<1@example.org>#2"]
    assert list(before)[6].startswith("sha256:")
    assert "text 3\n\nFrom the start of a line\n" in before["<3@example.org>"]
    box.remove(box.keys()[0])
    box.flush()
    box.close()
    assert parts() == {part: text for part, text in before.items() if part != "<0@example.org>"}


@pytest.mark.parametrize(
    ("content", "text", "remark"),
    [
        (b"Subject: x\nContent-Type: text/plain; charset=nonsense\n\nGr\xfc\xdfe an alle", "Grüße an alle", ""),
        (b"Subject: x\nContent-Type: text/plain; charset=utf-8\n\nGr\xfc\xdfe an alle", "Grüße", "decoded as cp1252"),
        (b"Subject: x\nContent-Type: multipart/mixed\n\nno boundary", "no boundary", "broken MIME"),
        (
            b"Subject: x\nContent-Type: multipart/mixed; boundary=b\n\n--b\nContent-Type: text/plain\n\ncut off",
            "cut off",
            "broken MIME",
        ),
        (b"Subject: x\nContent-Transfer-Encoding: base64\n\naGVsbG8gd29ybG", "hello wor", "broken MIME"),
        (b"Subject: =?utf-8?b?broken?=\nFrom: \xff\xfe\nDate: never\n\ntext", "text", ""),
    ],
)
def test_broken_mime_is_read_as_far_as_it_goes(content: bytes, text: str, remark: str, tmp_path: Path, reader: Reader):
    (tmp_path / "a.eml").write_bytes(content)
    with reader.read(tmp_path / "a.eml") as found:
        (document,) = found.documents
        assert text in document.text
        assert remark in " ".join(document.remarks)
        assert document.metadata.get("date", "") == ""


def test_a_message_that_is_nested_too_deeply_does_not_take_its_mailbox_with_it(tmp_path: Path, reader: Reader):
    deep = b"Subject: deep\nMIME-Version: 1.0\n"
    for i in range(1200):
        deep += b"Content-Type: multipart/mixed; boundary=b%d\n\n--b%d\n" % (i, i)
    content = b"From a\n" + deep + b"\n\nbottom\n\nFrom b\nSubject: next\n\nnext text\n"
    (tmp_path / "a.mbox").write_bytes(content)
    with reader.read(tmp_path / "a.mbox") as found:
        first, second = found.documents
        assert "nested too deeply" in first.remarks[0]
        assert first.title == "deep"
        assert "next text" in second.text


def test_apple_mail_files_are_messages_between_a_length_and_a_list(tmp_path: Path, reader: Reader):
    content = bytes(message("Apple", "the text"))
    (tmp_path / "1.emlx").write_bytes(b"%d\n" % len(content) + content + b"<?xml version='1.0'?><plist/>")
    with reader.read(tmp_path / "1.emlx") as found:
        assert found.documents[0].title == "Apple"
        assert "plist" not in found.documents[0].text


def test_a_mailbox_of_very_many_messages_is_read_without_holding_them(tmp_path: Path, reader: Reader):
    one = b"From x\nMessage-ID: <%d>\nSubject: s\n\n" + b"words of text " * 100 + b"\n\n"
    (tmp_path / "a.mbox").write_bytes(b"".join(one % i for i in range(1500)))
    with reader.read(tmp_path / "a.mbox") as found:
        assert len(found.documents) == 1500
        assert found.documents[-1].part == "<1499>"
        assert [document.part for document in found.documents[:2]] == ["<0>", "<1>"]


def test_a_message_without_a_header_is_refused(tmp_path: Path, reader: Reader):
    (tmp_path / "a.eml").write_bytes(b"\n\nno header at all, just words")
    with pytest.raises(ReadFailed, match="header"):
        reader.read(tmp_path / "a.eml")
