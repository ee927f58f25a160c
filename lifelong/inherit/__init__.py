"""Knowledge inheritance: the loss, its teachers, schedules and caches."""
