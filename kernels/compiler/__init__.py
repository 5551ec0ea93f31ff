"""Compilation of launches for any chip, without having one, and the figures of the code."""
