"""A user's modules, each of which imports a library at its top: what `libraries` has tasks call."""
