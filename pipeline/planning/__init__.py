"""What a run will need and cost, computed before it starts: formulas alone, without torch."""
