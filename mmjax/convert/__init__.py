"""Weights of other libraries: what each of their tensors is called here, and how it lies."""
