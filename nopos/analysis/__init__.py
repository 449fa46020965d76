"""Pure functions from a model, or its arrays, to arrays: one method a file."""
