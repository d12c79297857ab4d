"""Forward passes over sequences end to end, without padding."""
