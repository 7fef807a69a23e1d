"""How exactly held-out bits per byte are known, and when too little is held out to compare students by them.

The standard error says how far another sample of held-out documents would typically lead. It is itself uncertain by
1 / √(2 (D − 1)) of its value with D documents: by a quarter with 10, by a half with 3. So fewer than 10 documents are
too few, and so are documents whose standard error exceeds a tenth of the bits per byte. Students that are measured on
the same documents differ less by chance than their standard errors say, since documents are hard or easy for all.
"""

LEAST_DOCUMENTS = 10
LARGEST_ERROR = 0.1
"""of the bits per byte"""


def bits_text(bits: float, error: float | None) -> str:
    """Return bits per byte as a text, with their standard error if it is known."""
    return f"{bits:.4f}" if error is None else f"{bits:.4f}, standard error {error:.4f}"


def why_too_few(documents: int, bits: float, error: float | None) -> str:
    """Return why students can't be compared by these bits per byte; empty if they can."""
    if documents < LEAST_DOCUMENTS:
        return f"only {documents} held-out document{'' if documents == 1 else 's'}: too few to compare"
    if error is not None and error > LARGEST_ERROR * bits:
        return f"a standard error of {error / bits:.0%}: too few held-out documents to compare"
    return ""
