"""Which tile a kernel runs with: the shapes that there are, a model of the chip, the pick."""
