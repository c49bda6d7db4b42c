"""What `persona_axis.drift` makes: the table of turns, what it comes to, and what represents a message in it."""
