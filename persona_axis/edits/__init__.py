"""Changes to the residual stream: their arithmetic, and hooks that provably act and leave nothing behind."""
