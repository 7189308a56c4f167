"""A data set through a frozen network, once per image, ever: activations on disk."""
