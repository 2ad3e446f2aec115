"""Estimates what a run will need and cost before it starts, with formulas alone and without torch."""
