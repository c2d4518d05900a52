"""IPTC's digital source type, which says in a file's XMP that a machine made the picture, or part of it."""

import re
from typing import Final, Literal

from serve_app.observability.versions import darkroom_version

SourceType = Literal["trainedAlgorithmicMedia", "compositeWithTrainedAlgorithmicMedia"]

MADE: Final[SourceType] = "trainedAlgorithmicMedia"
"""All of it was made by a model."""

CHANGED: Final[SourceType] = "compositeWithTrainedAlgorithmicMedia"
"""A model has changed a picture that somebody had."""

NAMESPACE: Final = "http://cv.iptc.org/newscodes/digitalsourcetype/"

_FOUND: Final = re.compile(
    rb"DigitalSourceType(?:\s*=\s*[\"']|>\s*|\s+rdf:resource\s*=\s*[\"'])https?://cv\.iptc\.org/newscodes/"
    rb"digitalsourcetype/([A-Za-z]{1,64})"
)


def xmp_of(source: SourceType) -> bytes:
    """Returns an XMP packet that says `source`, and which program it was."""
    return (
        '<?xpacket begin="\ufeff" id="W5M0MpCehiHzreSzNTczkc9d"?>'
        '<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#">'
        '<rdf:Description rdf:about="" xmlns:Iptc4xmpExt="http://iptc.org/std/Iptc4xmpExt/2008-02-29/"'
        ' xmlns:xmp="http://ns.adobe.com/xap/1.0/"'
        f' Iptc4xmpExt:DigitalSourceType="{NAMESPACE}{source}" xmp:CreatorTool="Darkroom {darkroom_version()}"/>'
        '</rdf:RDF></x:xmpmeta><?xpacket end="w"?>'
    ).encode()


def read_source_type(xmp: bytes) -> str | None:
    """Returns the last part of IPTC's code in anybody's packet, which is not parsed: it may be no XML at all."""
    found = _FOUND.search(xmp)
    return found[1].decode() if found else None
