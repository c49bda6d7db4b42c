"""Rooms of `persona_axis.calibrate`: what is tried, how it is measured and kept, how one is chosen, what is told."""
