"""Sampling: prompts in, pictures and text out, many prompts in one compiled batch."""
