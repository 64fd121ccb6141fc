"""Speed of steepest, beside what a user would write without it."""
