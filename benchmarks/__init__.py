"""What the project claims of speed, memory and size, measured; no other package imports this one."""
