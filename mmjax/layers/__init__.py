"""Functions on arrays, and the weights they need."""
