"""Shares as percentages that are never rounded up to 100 % or down to 0 %."""


def percent(part: float, whole: float, digits: int = 2) -> str:
    """Return a share as a percentage: `12.30%`; 100 and 0 only where it is exactly that, else `>99.99%` or `<0.01%`."""
    if not whole:
        return "–"
    step = 10.0**-digits
    value = 100 * part / whole
    if part < whole and value > 100 - step:
        return f">{100 - step:.{digits}f}%"
    if part and value < step:
        return f"<{step:.{digits}f}%"
    return f"{value:.{digits}f}%"
