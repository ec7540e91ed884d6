"""Releases: what is due, what is safe, and the bytes that go onto `models`."""
