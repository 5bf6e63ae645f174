"""
`describe`: what is served as one JSON document, with JSON Schema for all that is sent.
"""
