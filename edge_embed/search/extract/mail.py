"""E-mail: a message (.eml) or a box of them (.mbox). Attachments are named, not read."""

from __future__ import annotations

import email
import email.policy
import re
from collections.abc import Iterator
from email.message import EmailMessage
from typing import Any

from edge_embed.search.extract import ExtractError, html
from edge_embed.search.types import Section

_BETWEEN = re.compile(rb"(?:\A|\n\r?\n)(?=From [^\n]*\d\d:\d\d[^\n]*\n)")


def read(data: bytes, name: str) -> Iterator[Section]:
    """The sections of each message, under its subject.

    Raises:
        ExtractError: it is no message.
    """
    if not name.lower().endswith(".mbox"):
        yield from _message(data)
        return
    messages = [part for part in _BETWEEN.split(data) if part.strip()]
    if not messages or not messages[0].startswith(b"From "):
        raise ExtractError("is no mailbox: it does not begin with a line `From ...`")
    for part in messages:
        yield from _message(part.partition(b"\n")[2].replace(b"\n>From ", b"\nFrom "))


def _message(data: bytes) -> Iterator[Section]:
    try:
        message = email.message_from_bytes(data, policy=email.policy.default)
        head = {field: str(message[field]) for field in ("From", "To", "Date", "Subject") if message[field]}
        if not head:
            raise ExtractError("is no e-mail: it has none of From, To, Date and Subject")
        body = message.get_body(("plain", "html"))
        attached = [str(part.get_filename()) for part in message.iter_attachments() if part.get_filename()]
        content = None if body is None else _content(body)
    except (ExtractError, MemoryError):
        raise
    except Exception as error:  # headers and bodies that no standard foresaw
        raise ExtractError(f"is no sound e-mail: {type(error).__name__}: {error}") from None
    heading = (" ".join(head["Subject"].split()),) if head.get("Subject") else ()
    about = [f"{field}: {value}" for field, value in head.items() if field != "Subject"]
    if attached:
        about.append(f"Attachments: {', '.join(attached)}")
    if body is not None and body.get_content_subtype() == "html":
        yield Section("\n".join(about), heading)
        yield from html.sections(content or "", heading)
    else:
        yield Section("\n".join(about) + "\n\n" + (content or "").strip(), heading)


def _content(body: Any) -> str:
    assert isinstance(body, EmailMessage)
    try:
        text = body.get_content()
    except LookupError:  # a charset that Python does not know
        text = (body.get_payload(decode=True) or b"").decode("utf-8", "replace")  # type: ignore[union-attr]
    return str(text).replace("\r\n", "\n")
