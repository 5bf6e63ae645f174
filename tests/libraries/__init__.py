"""Tests of libraries: defects of twistar and adbapi, and twistar's own tests."""
