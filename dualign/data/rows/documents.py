"""The text of a document: a plain text, Markdown, PDF or Word file.

A file that can't be read is the fault of a row, so that a recipe may drop and count it. No file is
read in part: what is wrong is looked for before its first piece is a row.
"""

import re
from collections.abc import Iterator, Sequence
from importlib.util import find_spec
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

import fsspec

from dualign.data.faults import RowFault
from dualign.data.rows.file_signs import binary_lines, encoding, packing, undecodable
from dualign.errors import DataError

if TYPE_CHECKING:
    from docx.table import Table
    from docx.text.paragraph import Paragraph

_READERS = {".pdf": ("pypdf", "pypdf"), ".docx": ("docx", "python-docx")}
_CHUNK = 1 << 20
_HALVES = re.compile("[\0\ud800-\udfff]")
_HEADING = re.compile(r"Heading ([1-6])")
_OLE = b"\xd0\xcf\x11\xe0"
_WRAPPERS = (
    *("ins", "moveTo", "sdt", "sdtContent", "smartTag", "customXml"),
    *("fldSimple", "dir", "bdo"),
)
"""Elements of Word around paragraphs, cells or runs: tracked insertions, content controls, fields."""
_PAGES_SHOWN = 20
_FORMS = 5
"""Forms within forms that are looked into; a form of a broken file may draw itself."""


def _document_kind(file: Path) -> str:
    """Return the ending of a document's name, without that of a compression."""
    suffixes = [suffix.lower() for suffix in file.suffixes]
    return next(suffix for suffix in reversed(suffixes) if suffix in (".txt", ".md", *_READERS))


def require_document_readers(files: Sequence[Path]) -> None:
    """Raise DataError for PDF or Word files if the package that reads them is missing."""
    for kind in sorted({_document_kind(file) for file in files} & set(_READERS)):
        module, package = _READERS[kind]
        if find_spec(module) is None:
            raise DataError(
                f"{kind} files need the package {package}: pip install 'dualign[documents]'"
            )


def document_text(file: Path) -> tuple[Iterator[str], RowFault | None]:
    """Return the text of a document in parts, and what is missing in it.

    Raises:
        RowFault: the document can't be read, or has no text.
    """
    match _document_kind(file):
        case ".pdf":
            return _pdf(file)
        case ".docx":
            return iter([_word(file)]), None
        case _:
            _check_text(file)
            return _chunks(file), None


def has_headings(file: Path) -> bool:
    """Return whether headings of a document's text begin with #."""
    return _document_kind(file) in (".md", ".docx")


def _check_text(file: Path) -> None:
    try:
        for chunk in _chunks(file):
            if "\0" in chunk:
                what = "holds NUL characters, so it is a binary file or no Unicode text"
                raise RowFault("unreadable_document", f"{file}: {what}")
    except UnicodeDecodeError as error:
        raise RowFault("unreadable_document", _undecodable(file, error)) from error


def _undecodable(file: Path, error: UnicodeDecodeError) -> str:
    """Say which line isn't text; of UTF-16, whose lines can't be told, only that it isn't."""
    if encoding(file) == "utf-8-sig":
        for number, line in enumerate(binary_lines(file), 1):
            try:
                line.decode()
            except UnicodeDecodeError as of_line:
                return str(undecodable(file, number, of_line))
    return f"{file}: isn't {encoding(file).upper()} text ({error}). Convert it to UTF-8."


def _chunks(file: Path) -> Iterator[str]:
    text = fsspec.open(
        str(file), "rt", compression=packing(file), encoding=encoding(file), newline=None
    )
    with text as stream:
        while chunk := stream.read(_CHUNK):
            yield chunk


def _content(file: Path) -> BytesIO:
    with fsspec.open(str(file), "rb", compression=packing(file)) as stream:
        return BytesIO(stream.read())


def _pdf(file: Path) -> tuple[Iterator[str], RowFault | None]:
    """Return the text of all pages. Lines, hyphens, headers and footers stay as the pages have them."""
    import pypdf

    try:
        reader = pypdf.PdfReader(_content(file))
        if reader.is_encrypted and not reader.decrypt(""):
            raise RowFault("unreadable_document", f"{file}: is encrypted. Remove its password.")
        pages = [page.extract_text() for page in reader.pages]
        scans = [
            number
            for number, (page, text) in enumerate(zip(reader.pages, pages, strict=True), 1)
            if not text.strip() and _has_image(page)
        ]
    except RowFault:
        raise
    except Exception as error:  # pypdf raises whatever a broken file leads to
        what = f"can't be read as a PDF ({type(error).__name__}: {error})"
        raise RowFault("unreadable_document", f"{file}: {what}") from error
    for number, text in enumerate(pages, 1):
        _check_characters(text, f"{file}, page {number}")
    if not any(text.strip() for text in pages):
        what = f"none of its {len(pages)} pages has text. Scans need text recognition (ocrmypdf)."
        raise RowFault("no_text", f"{file}: {what}")
    missing = f"{file}: {_listed(scans)}: an image without text. Scans need text recognition."
    text = "\n".join(page.rstrip() for page in pages if page.strip())
    return iter([text]), RowFault("no_text", missing) if scans else None


def _listed(pages: Sequence[int]) -> str:
    shown = ", ".join(map(str, pages[:_PAGES_SHOWN]))
    more = len(pages) - _PAGES_SHOWN
    return f"page{'s' if len(pages) > 1 else ''} {shown}" + (
        f" and {more} more" if more > 0 else ""
    )


def _has_image(drawn: Any, depth: int = 0) -> bool:
    """Return whether a page, or a form that it draws, has an image."""
    resources = drawn.get("/Resources")
    objects = resources.get_object().get("/XObject") if resources else None
    items = [item.get_object() for item in objects.get_object().values()] if objects else []
    return any(
        item.get("/Subtype") == "/Image" or (depth < _FORMS and _has_image(item, depth + 1))
        for item in items
    )


def _word(file: Path) -> str:
    """Return paragraphs and tables in their order, headings with # before them."""
    import docx
    from docx.text.paragraph import Paragraph

    content = _content(file)
    if content.getvalue().startswith(_OLE):
        what = "is encrypted, or an old .doc. Save it as .docx without a password."
        raise RowFault("unreadable_document", f"{file}: {what}")
    try:
        document = docx.Document(content)
        _unwrap(document.element.body)
        blocks = [
            _paragraph(block) if isinstance(block, Paragraph) else _table(block)
            for block in document.iter_inner_content()
        ]
    except Exception as error:  # python-docx raises whatever a broken file leads to
        what = f"can't be read as a Word document ({type(error).__name__}: {error})"
        raise RowFault("unreadable_document", f"{file}: {what}") from error
    text = "\n\n".join(block for block in blocks if block.strip())
    if not text:
        raise RowFault("no_text", f"{file}: has no text outside of images, notes and margins")
    _check_characters(text, str(file))
    return text + "\n"


def _unwrap(body: Any) -> None:
    """Put what stands in wrappers in their place: python-docx reads no text in them.

    Insertions of tracked changes count as accepted, and what was deleted isn't text. A table of
    contents, which repeats the headings with their pages, is taken out.
    """
    for gallery in [*body.iter("{*}docPartGallery")]:
        control = next(gallery.iterancestors("{*}sdt"), None)
        if control is not None and "Table of Contents" in gallery.values():
            control.getparent().remove(control)
    for wrapper in [*body.iter(*(f"{{*}}{name}" for name in _WRAPPERS))]:
        parent = wrapper.getparent()
        place = parent.index(wrapper)
        parent[place : place + 1] = list(wrapper)


def _paragraph(paragraph: "Paragraph") -> str:
    style = str(paragraph.style.name if paragraph.style is not None else "")
    if heading := _HEADING.fullmatch(style):
        return f"{'#' * int(heading[1])} {paragraph.text}"
    mark = {"Title": "# ", "List Bullet": "- ", "List Number": "1. "}.get(style, "")
    return mark + str(paragraph.text)


def _table(table: "Table") -> str:
    """Return a line for each row; a cell that spans several columns counts once. Lines of a table in
    a cell are words of that cell.
    """
    from docx.table import Table

    rows = []
    for row in table.rows:
        cells = dict.fromkeys(cell._tc for cell in row.cells)
        texts = {
            cell._tc: " ".join(
                _table(block) if isinstance(block, Table) else block.text
                for block in cell.iter_inner_content()
            )
            for cell in row.cells
        }
        rows.append(" | ".join(" ".join(texts[cell].split()) for cell in cells))
    return "\n".join(rows)


def _check_characters(text: str, where: str) -> None:
    if _HALVES.search(text):
        what = "holds NUL or half characters: its fonts don't say what their signs mean"
        raise RowFault("unreadable_document", f"{where}: {what}")
