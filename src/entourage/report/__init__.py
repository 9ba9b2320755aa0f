"""What a person or a program is shown of a migration, all of it drawn from one stream of events."""
