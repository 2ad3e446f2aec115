"""Measurements of the speed, memory and size that the project claims; no other package imports this one."""
