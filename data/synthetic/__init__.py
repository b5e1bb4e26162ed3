"""Procedural training video; `python -m data.synthetic` writes a sample scene."""
