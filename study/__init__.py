"""The study itself: configuration, search, trials, evaluation, records."""
