"""Small PDF files, written by hand as the format asks."""

from collections.abc import Sequence
from pathlib import Path

IMAGE = b"<< /Type /XObject /Subtype /Image /Width 1 /Height 1 /ColorSpace /DeviceGray /BitsPerComponent 8 /Length 1 >>\nstream\n\0\nendstream"


def write_pdf(path: Path, pages: Sequence[Sequence[str] | None]) -> Path:
    """Write a page for each list of lines; None is a scanned page: an image alone."""
    first = 5
    kids = " ".join(f"{first + 2 * number} 0 R" for number in range(len(pages)))
    objects = [
        b"<< /Type /Catalog /Pages 2 0 R >>",
        f"<< /Type /Pages /Kids [{kids}] /Count {len(pages)} >>".encode(),
        b"<< /Type /Font /Subtype /Type1 /BaseFont /Helvetica >>",
        IMAGE,
    ]
    for number, lines in enumerate(pages):
        uses = b"/XObject << /I 4 0 R >>" if lines is None else b"/Font << /F 3 0 R >>"
        objects.append(
            b"<< /Type /Page /Parent 2 0 R /MediaBox [0 0 600 800] /Resources << %s >> /Contents %d 0 R >>"
            % (uses, first + 2 * number + 1)
        )
        shown = b" ".join(b"(%s) Tj 0 -20 Td" % line.encode("latin-1") for line in lines or ())
        drawn = b"/I Do" if lines is None else b"BT /F 12 Tf 50 700 Td %s ET" % shown
        objects.append(b"<< /Length %d >>\nstream\n%s\nendstream" % (len(drawn), drawn))
    content, places = b"%PDF-1.4\n", []
    for number, body in enumerate(objects, 1):
        places.append(len(content))
        content += b"%d 0 obj\n%s\nendobj\n" % (number, body)
    table = b"".join(b"%010d 00000 n \n" % place for place in places)
    start = len(content)
    content += b"xref\n0 %d\n0000000000 65535 f \n%s" % (len(objects) + 1, table)
    path.write_bytes(
        content
        + b"trailer\n<< /Size %d /Root 1 0 R >>\nstartxref\n%d\n%%%%EOF" % (len(objects) + 1, start)
    )
    return path
