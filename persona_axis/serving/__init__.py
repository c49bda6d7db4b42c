"""The same cap inside servers: it is proven before the first request, and it cannot fail open."""
