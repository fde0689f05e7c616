"""What a command shows and hears: progress, escaped and masked text, signals."""
