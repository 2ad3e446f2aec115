"""The HTML page that compares runs, made from their folders."""
