"""Features, activations or pixels become a trained classifier: settings, heads, the loop, strategies."""
