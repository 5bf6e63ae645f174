"""What there is to call, as JSON Schema and as types of other languages."""
