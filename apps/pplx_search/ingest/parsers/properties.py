"""Read the metadata of a zipped document: title, author and date."""

from pplx_search.ingest import dates
from pplx_search.ingest.output import Output, field
from pplx_search.ingest.parsers.zipped import Archive

# element of docProps/core.xml, meta.xml or content.opf -> what it is here; of several, the first that holds anything
_FIELDS = {"title": "title", "creator": "author", "initial-creator": "author"}
_DATES = ("modified", "date", "created", "creation-date")


def describe(archive: Archive, name: str, output: Output) -> None:
    """Copy the properties from an XML file in an archive, if it exists."""
    if name not in archive:
        return
    found: dict[str, str] = {}
    inside, text = "", []
    for event in archive.events(name):
        if event.what == "start":
            inside, text = event.name, []
        elif event.what == "text":
            text.append(event.text)
        elif event.name == inside:
            found.setdefault(inside, "".join(text).strip())
            inside = ""
    for element, target in _FIELDS.items():
        if target == "title":
            output.title = output.title or field(found.get(element, ""))
        elif value := found.get(element, ""):
            output.metadata.setdefault(target, value)
    if date := next((date for name in _DATES if (date := dates.iso(found.get(name, "")))), ""):
        output.metadata["date"] = date
