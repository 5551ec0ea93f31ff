"""Tools for work with the layers: warm-up, profile, and the code that a call compiles to; no command line."""
