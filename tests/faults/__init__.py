"""Tests of calls, changes and live queries while processes are killed and connections break."""
