"""Personal fields, the keys of persons, and how a person is forgotten."""
