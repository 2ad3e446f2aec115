"""What the project claims of memory, measured; nothing in the other rooms imports this one."""
