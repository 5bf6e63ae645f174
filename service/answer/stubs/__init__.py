"""
Typed definitions of what is served, for TypeScript and Python, made from `describe`.
"""
