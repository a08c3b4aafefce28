"""Text from elsewhere, such as names of files, as it can be printed."""


def printable(text: str) -> str:
    """Text with control characters, and bytes of names that are no UTF-8, as escapes.

    Names of files and folders are anybody's: printed as they are, they could move the cursor,
    colour or hide what stands beside them, or not be printable at all. Line ends stay.
    """
    return "".join(c if c.isprintable() or c == "\n" else ascii(c)[1:-1] for c in text)
