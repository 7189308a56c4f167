"""The ways to use a backbone: a file each, and the table of them."""
