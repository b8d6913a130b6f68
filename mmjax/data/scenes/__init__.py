"""Drawn worlds whose truth is known exactly: scenes, pictures, words, and an oracle that looks."""
