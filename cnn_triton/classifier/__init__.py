"""The image classifier, an application of the library: data, networks, training, runs, pages of pictures."""
