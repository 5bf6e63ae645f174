"""The only room that knows autobahn."""
