"""What callers see, and what is kept, when processes die and connections break."""
