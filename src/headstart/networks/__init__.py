"""Pre-trained networks by name: architecture, weights, cut points, graph."""
