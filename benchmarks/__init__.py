"""What the project claims of speed, memory and size, measured; nothing in the other rooms imports this one."""
