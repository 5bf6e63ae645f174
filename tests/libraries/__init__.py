"""What releases of others do: twistar and adbapi by themselves, and twistar's own tests."""
