"""What each setting is called, takes and means, read from any configuration's pydantic models."""
