"""Anything with images in it, read safely: a folder becomes a `Dataset`, bytes become pixels."""
