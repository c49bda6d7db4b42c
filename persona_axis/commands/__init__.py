"""The commands of `persona-axis`, one module each, and the options they share. Thin: everything is done elsewhere."""
