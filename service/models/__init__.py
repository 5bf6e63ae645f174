"""The twistar seam: a model for every relation."""
