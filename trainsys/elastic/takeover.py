"""What a rank has missed of what the manager before had decided.

A decision counts when it stands in the book, whoever was told of it. A step: those who have not heard of it get the
verdict. A layout: those who have not heard of it still hold both states and get the word to switch. Whatever else was
under way is called off, like after any other loss.
"""

from __future__ import annotations

from dataclasses import replace

from trainsys.elastic.book import Book
from trainsys.elastic.messages import CommitEpoch, Hello, Verdict


def missed(book: Book, hello: Hello) -> list[CommitEpoch | Verdict]:
    """For a rank that returns, before it is called off; there is one at most."""
    if hello.rank in book.participants and hello.switched < book.stands:
        return [CommitEpoch(book.stands)]
    works = book.layout is not None and hello.rank in book.layout
    if works and book.verdict is not None and hello.steps == book.step - 1 == book.verdict.decision.step:
        return [replace(book.verdict, checkpoint=False, stop=False, change=-1)]
    return []
