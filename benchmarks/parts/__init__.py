"""Code that several benchmark commands share: the skeleton of a command, measured models, and ways to decode."""
