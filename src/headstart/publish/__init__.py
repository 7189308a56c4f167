"""A run or an advice -> the world: pictures."""
