"""The compiled core. Arguments are unchecked: use the Python classes."""

__version__: str

def simd() -> str: ...
