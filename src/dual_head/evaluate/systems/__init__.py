"""Systems: what answers questions, told from its files, and the answers that are kept."""
