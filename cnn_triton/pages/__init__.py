"""HTML pages from the templates beside this file."""

from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from .. import __version__

__all__ = ["count", "render"]


def render(template: str, /, **values: Any) -> bytes:
    """Return a page, as UTF-8: the template filled with the values; texts are escaped."""
    environment = Environment(
        loader=PackageLoader("cnn_triton", "pages"), autoescape=True, undefined=StrictUndefined,
        trim_blocks=True, lstrip_blocks=True,
    )  # fmt: skip
    environment.filters["count"] = count
    return environment.get_template(template).render(version=__version__, **values).encode()


def count(number: int) -> str:
    """Return a whole number as text, from ten millions on as a power of ten."""
    if number < 10**7:
        return f"{number:,}"
    factor, exponent = f"{number:.1e}".split("e+")
    power = "10" + str(int(exponent)).translate(str.maketrans("0123456789", "⁰¹²³⁴⁵⁶⁷⁸⁹"))
    return power if factor == "1.0" else f"{float(factor):g} · {power}"
