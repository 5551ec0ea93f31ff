"""What helps to work with the layers: warm-up, profile, and what a call compiles to; no command line."""
