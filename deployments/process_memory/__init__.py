"""The memory of a process as the operating system and Python see it."""
