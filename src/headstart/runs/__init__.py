"""The whole of one run: its folder, its classifier, how good it is."""
