"""The choice of a kernel's tile: the shapes that there are, a model of the chip, the pick."""
