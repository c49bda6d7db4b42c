"""What the terminal shows. Rendering only: every figure is asked of its owner."""
