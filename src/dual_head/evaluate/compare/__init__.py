"""What answers, verdicts and scores come to: win rates, differences and frontiers, with their intervals."""
