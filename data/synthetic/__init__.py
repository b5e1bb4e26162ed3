"""Procedural video: scenes, toy scenes, and scenes with exact motion."""
